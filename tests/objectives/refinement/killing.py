"""Refinements that end as if their process had been killed."""

from objectives.progress import Progress


class Killed(BaseException):
    """As if the process had ended."""


def killing_at(beginning: str, step: int = 1) -> Progress:
    """Progress that kills at a step of the phase that begins so."""

    def killing(phase: str, done: int, total: int) -> None:
        if phase.startswith(beginning) and done == step:
            raise Killed

    return killing
