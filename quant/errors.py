"""The one error of this package: a setting, a weight or a statistic that cannot be quantized with."""


class QuantizationError(ValueError):
    """Raised with one line that says what was received, what is allowed and what to do."""
