"""Tuning what is continuous in a quantized model: scales, norms and biases, for its divergence from full precision."""
