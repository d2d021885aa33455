"""A trial: text, model and its layer roles, calibration, quantization, score; and paired statistics of scores.

Knows transformers and datasets; calls `quant` with tensors and `storage` with bytes. Knows nothing of studies.
"""
