"""Bytes on disk: paths, the calibration cache, results.

Takes `dict[str, Tensor]`, JSON-able dicts and paths; knows nothing of models, statistics or trials.
Nothing is ever pickled, and every file appears whole under its final name or not at all.
"""
