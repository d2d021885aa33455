"""How the shipped model was made: run `python -m training.train_bundled --help`. Not used by the product."""
