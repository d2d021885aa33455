"""Refining a quantized model towards full precision: codes move by a step, then scales, norms and biases are tuned."""
