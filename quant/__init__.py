"""Tensors in, tensors out: statistics, salience, scale search, rounding, schemes, methods and sizes.

Knows torch and frozen dataclasses only: no files, no Optuna, no transformers. Nothing here mutates its inputs.
Shape letters used throughout: `O` outputs, `I` inputs, `G` groups along the inputs, `N` tokens.
"""
