"""Where a study stands, in a few facts that need neither its model nor its values per sequence."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter

from hpo.study.record import StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial at work: who is at it, since when, and how far."""

    number: int
    setting: str | None
    seconds: int | None
    worker: str | None
    host: str | None
    pid: int | None
    device: str | None
    versions: Mapping[str, str]
    phase: str
    last_sign: str | None
    sequences_read: int
    takeovers: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is studied, trials by state, the best at equal bits, who works on what."""

    study: str
    model: str
    tuning_text: str
    objective: str
    trials: Mapping[str, int]
    references: Mapping[str, float | None]
    best: Mapping[str, str]
    tokens_saved: float | None
    running: tuple[RunningTrial, ...]
    last_failure: str | None
    confirmation: str | None


def summary(record: StudyRecord) -> Summary:
    """Say where a study stands."""
    contract = record.contract
    tuning = contract.tuning
    complete = record.complete
    size_classes = {trial.size_class for trial in complete if trial.size_class is not None}
    return Summary(
        study=record.name,
        model=contract.model.name,
        tuning_text=f"{tuning.sequences} sequences of {tuning.source} ({tuning.protocol})",
        objective=record.objective.label,
        trials=dict(Counter(trial.state for trial in record.trials)),
        references={reference.full_name: record.objective.of(reference) for reference in record.references},
        best={
            str(size_class): _best(next(trial for trial in complete if trial.size_class == size_class))
            for size_class in sorted(size_classes, key=attrgetter("order"))
        },
        tokens_saved=round(record.tokens_saved, 3) if complete else None,
        running=tuple(running_trial(trial) for trial in record.trials if trial.state == "RUNNING"),
        last_failure=next((trial.reason for trial in reversed(record.trials) if trial.state == "FAIL"), None),
        confirmation=record.confirmation.sentence if record.confirmation else None,
    )


def _best(trial: TrialRecord) -> str:
    assert trial.setting is not None
    assert trial.value is not None
    return f"{trial.objective.number(trial.value)} {trial.name}: {trial.setting.label()}"


def running_trial(trial: TrialRecord) -> RunningTrial:
    """Say who is at a running trial, since when, and how far it is."""
    started = datetime.fromisoformat(trial.started) if trial.started else None
    beat = datetime.fromisoformat(trial.beat.at) if trial.beat else None
    owner = trial.owner
    return RunningTrial(
        number=trial.number,
        setting=trial.setting.label() if trial.setting else None,
        seconds=round((datetime.now() - started).total_seconds()) if started else None,
        worker=owner.name if owner else None,
        host=owner.host if owner else None,
        pid=owner.pid if owner else None,
        device=owner.device if owner else None,
        versions=trial.versions,
        phase=phase(trial),
        last_sign=f"{(datetime.now(UTC) - beat).total_seconds():.0f} s ago" if beat else None,
        sequences_read=max(trial.running, default=0),
        takeovers=trial.takeovers,
    )


def phase(trial: TrialRecord) -> str:
    """What a running trial is at: `scoring 16/64`."""
    beat = trial.beat
    return "starting" if beat is None else f"{beat.phase} {beat.done}/{beat.total}"
