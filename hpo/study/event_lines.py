"""Events for programs: one object per line, with the fields that docs/study-json.md describes.

Responsible for their names and types. Trials are named by their numbers.
"""

from dataclasses import dataclass
from typing import Literal

from hpo.study.events import Event, Finished, Looked, Notice, Working
from hpo.study.record import TrialRecord
from hpo.study.status import running_trial
from quant.setting import Setting


@dataclass(frozen=True, kw_only=True)
class NoticeLine:
    """Something a person should know."""

    event: Literal["notice"] = "notice"
    text: str
    passing: bool


@dataclass(frozen=True, kw_only=True)
class ProgressLine:
    """How far something is."""

    event: Literal["progress"] = "progress"
    phase: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class LookedLine:
    """A trial is under way."""

    event: Literal["looked"] = "looked"
    trial: int
    read: int
    total: int
    value: float
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class FinishedLine:
    """A trial has ended."""

    event: Literal["finished"] = "finished"
    trial: int
    state: str
    setting: Setting | None
    value: float | None
    perplexity: float | None
    worker: str | None
    best: int | None
    best_value: float | None
    best_perplexity: float | None
    done: int
    budget: int
    tokens_saved: float
    seconds_left: float
    twin_of: str | None


@dataclass(frozen=True, kw_only=True)
class WorkerAtWork:
    """What one worker is at."""

    name: str | None
    host: str | None
    device: str | None
    trial: int
    phase: str


@dataclass(frozen=True, kw_only=True)
class WorkingLine:
    """What all workers are at."""

    event: Literal["working"] = "working"
    workers: tuple[WorkerAtWork, ...]


EventLine = NoticeLine | LookedLine | FinishedLine | WorkingLine


def event_line(event: Event) -> EventLine:
    """Convert an event to the line that is printed."""
    match event:
        case Looked():
            return LookedLine(
                trial=event.trial.number,
                read=event.read,
                total=event.total,
                value=event.value,
                perplexity=event.perplexity,
            )
        case Finished():
            return _finished(event)
        case Working():
            return WorkingLine(workers=tuple(map(_at_work, event.trials)))
        case Notice():
            return NoticeLine(text=event.text, passing=event.passing)


def _finished(event: Finished) -> FinishedLine:
    trial, best = event.trial, event.best
    return FinishedLine(
        trial=trial.number,
        state=trial.state,
        setting=trial.setting,
        value=trial.value,
        perplexity=trial.perplexity,
        worker=trial.owner.name if trial.owner else None,
        best=best.number if best else None,
        best_value=best.value if best else None,
        best_perplexity=best.perplexity if best else None,
        done=event.done,
        budget=event.budget,
        tokens_saved=event.saved,
        seconds_left=event.seconds_left,
        twin_of=event.twin,
    )


def _at_work(trial: TrialRecord) -> WorkerAtWork:
    at_work = running_trial(trial)
    return WorkerAtWork(
        name=at_work.worker, host=at_work.host, device=at_work.device, trial=at_work.number, phase=at_work.phase
    )
