"""What ships with the project: a small causal LM trained by this repository, and its text.

`text` reads prose from the Python installation; `model/` holds the weights, the tokenizer, the training
log and the model card. Nothing here needs a network, and nothing is imported by importing the package.
"""
