"""Where a study stands, in a few facts that need neither its model nor its values per sequence."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from hpo.study.record import StudyRecord, TrialRecord


def summary(record: StudyRecord) -> dict[str, Any]:
    """JSON-able facts: what is studied, trials by state, the best at equal bits, who works on what."""
    contract = record.contract
    tuning = contract.tuning
    complete = record.complete
    size_classes = {trial.size_class for trial in complete if trial.size_class is not None}
    return {
        "study": record.name,
        "model": contract.model.name,
        "tuning_text": f"{tuning.sequences} sequences of {tuning.source} ({tuning.protocol})",
        "trials": dict(Counter(trial.state for trial in record.trials)),
        "references": {one.full_name: one.perplexity for one in record.references},
        "best": {
            str(size_class): _best(next(trial for trial in complete if trial.size_class == size_class))
            for size_class in sorted(size_classes, key=lambda one: one.order)
        },
        "tokens_saved": round(record.tokens_saved(record.full_tokens), 3) if complete else None,
        "running": [_running(trial) for trial in record.trials if trial.state == "RUNNING"],
        "last_failure": next((trial.reason for trial in reversed(record.trials) if trial.state == "FAIL"), None),
        "confirmation": record.confirmation["sentence"] if record.confirmation else None,
    }


def _best(trial: TrialRecord) -> str:
    assert trial.setting is not None
    return f"{trial.perplexity:.3f} {trial.name}: {trial.setting.label()}"


def _running(trial: TrialRecord) -> dict[str, Any]:
    started = datetime.fromisoformat(trial.started) if trial.started else None
    beat = datetime.fromisoformat(trial.beat.at) if trial.beat else None
    return {
        "number": trial.number,
        "setting": trial.setting.label() if trial.setting else None,
        "seconds": round((datetime.now() - started).total_seconds()) if started else None,
        "worker": trial.owner and trial.owner.name,
        "host": trial.owner and trial.owner.host,
        "pid": trial.owner and trial.owner.pid,
        "device": trial.owner and trial.owner.device,
        "versions": dict(trial.versions),
        "phase": phase(trial),
        "last_sign": f"{(datetime.now(UTC) - beat).total_seconds():.0f} s ago" if beat else None,
        "sequences_read": max(trial.running, default=0),
        "takeovers": trial.takeovers,
    }


def phase(trial: TrialRecord) -> str:
    """What a running trial is at: `scoring 16/64`."""
    beat = trial.beat
    return "starting" if beat is None else f"{beat.phase} {beat.done}/{beat.total}"
