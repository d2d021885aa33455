"""What a study says while it runs, as values: whoever listens decides how to show it."""

from collections.abc import Callable
from dataclasses import dataclass

from hpo.study.record import TrialRecord


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something a person should know; `passing` if only now."""

    text: str
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A trial is under way.

    Attributes:
        trial: As it was claimed.
        value: Of the sequences read so far, as the study's objective has it.
        perplexity: Of them.
        read: Their number.
        total: How many there are.
    """

    trial: TrialRecord
    value: float
    perplexity: float
    read: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trial has ended.

    Attributes:
        trial: As it was told.
        best: The best completed trial.
        done: Trials of the study that have ended.
        budget: Trials the study may have.
        saved: Share of the tokens of all ended trials that pruning spared.
        seconds_left: Until the budget is used up, at this worker's pace so far.
        twin: Name of what was measured before with the same weights; None where nothing was.
    """

    trial: TrialRecord
    best: TrialRecord | None
    done: int
    budget: int
    saved: float
    seconds_left: float
    twin: str | None = None


@dataclass(frozen=True, kw_only=True)
class Working:
    """Who is at what, each with its last sign of life."""

    trials: tuple[TrialRecord, ...]


Event = Notice | Looked | Finished | Working
Listener = Callable[[Event], None]
