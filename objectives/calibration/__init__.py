"""One pass over the calibration text, kept as sufficient statistics."""
