"""The two ways a trial can be refused or fail, each as one line with its remedy."""


class InputError(ValueError):
    """What the user asked for cannot be: unknown model, unsuitable text, impossible setting (exit code 2)."""


class RunError(RuntimeError):
    """What was asked for is fine, but it failed while running (exit code 1)."""
