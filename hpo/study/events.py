"""What a study says while it runs, as values: whoever listens decides how to show it."""

from collections.abc import Callable
from dataclasses import dataclass

from hpo.study.record import TrialRecord
from hpo.study.status import phase
from storage.typed_json import encode


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
        perplexity: Of the sequences read so far.
        read: Their number.
        total: How many there are.
    """

    trial: TrialRecord
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
    """

    trial: TrialRecord
    best: TrialRecord | None
    done: int
    budget: int
    saved: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Working:
    """Who is at what, each with its last sign of life."""

    trials: tuple[TrialRecord, ...]


Event = Notice | Looked | Finished | Working
Listener = Callable[[Event], None]


def event_json(event: Event) -> dict[str, object]:
    """An event for a program; trials with their number, and the best with its perplexity."""
    match event:
        case Looked():
            about = {"read": event.read, "total": event.total, "perplexity": event.perplexity}
            return {"event": "looked", "trial": event.trial.number, **about}
        case Finished():
            return {
                "event": "finished",
                "trial": event.trial.number,
                "state": event.trial.state,
                "setting": None if event.trial.setting is None else encode(event.trial.setting),
                "perplexity": event.trial.perplexity,
                "worker": event.trial.owner and event.trial.owner.name,
                "best": None if event.best is None else event.best.number,
                "best_perplexity": None if event.best is None else event.best.perplexity,
                "done": event.done,
                "budget": event.budget,
                "tokens_saved": event.saved,
                "seconds_left": event.seconds_left,
            }
        case Working():
            return {"event": "working", "workers": [_at_work(trial) for trial in event.trials]}
        case Notice():
            return {"event": "notice", "text": event.text, "passing": event.passing}


def _at_work(trial: TrialRecord) -> dict[str, object]:
    owner = trial.owner
    return {
        "name": owner and owner.name,
        "host": owner and owner.host,
        "device": owner and owner.device,
        "trial": trial.number,
        "phase": phase(trial),
    }
