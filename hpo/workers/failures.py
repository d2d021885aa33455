"""What is done about failures, in one place (the table is in ARCHITECTURE.md).

Responsible for telling what is a property of a setting from what is in the way of everyone. A trial fails for the
first and goes back to the queue for the second. Nothing is poisoned: `study retry` queues failed settings again.
"""

import math
import traceback
from dataclasses import dataclass

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from hpo.study.objective import Objective
from hpo.study.record import ENDED, StudyRecord
from objectives.errors import RunError
from objectives.trial import TrialResult
from quant.errors import QuantizationError
from storage.errors import StorageError

FIRST_FAILURES, RECENT = 5, 20


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a trial failed: a word, the reason, and whether its worker has to stop."""

    outcome: str
    reason: str
    stops_worker: bool = False


def failure_of(error: Exception) -> Failure | None:
    """Classify an exception as a failure; None where it is no property of the setting, and someone may try it again."""
    if isinstance(error, QuantizationError):
        return Failure(outcome="not quantizable", reason=str(error))
    if isinstance(error, RunError | StorageError | OSError | StorageInternalError | SQLAlchemyError):
        return None
    text = "".join(traceback.format_exception(error))
    return Failure(outcome="error", reason=text, stops_worker=True)


def failure_in(result: TrialResult, objective: Objective) -> Failure | None:
    """Classify a result as a failure; None where it has a value of the objective, and a perplexity."""
    if result.outcome == "out-of-memory":
        peak = result.peak_bytes / 1e9
        reason = f"out of memory at a peak of {peak:.2f} GB, one sequence at a time; use a smaller --max-memory"
        return Failure(outcome=result.outcome, reason=reason)
    if result.outcome == "non-finite":
        return Failure(outcome=result.outcome, reason="the quantized model gives NaN or Inf")
    if result.score is None or not math.isfinite(result.score.perplexity):
        return Failure(outcome=result.outcome, reason="the perplexity is infinite")
    if not math.isfinite(objective.value(result.score)):
        return Failure(outcome=result.outcome, reason=f"the {objective.label} is not finite")
    return None


def require_some_success(record: StudyRecord) -> None:
    """Stop a study in which something is in the way of every trial; all its workers find the same.

    Raises:
        RunError: With the last failure.
    """
    ended = [trial for trial in record.counted if trial.state in ENDED]
    recent = ended[-RECENT:]
    failed = [trial for trial in recent if trial.state == "FAIL"]
    at_first = len(ended) >= FIRST_FAILURES and len(failed) == len(ended)
    mostly = len(recent) == RECENT and len(failed) > RECENT / 2
    if at_first or mostly:
        last = failed[-1]
        share = f"all {len(ended)} trials" if at_first else f"{len(failed)} of the last {RECENT} trials"
        raise RunError(
            f"{share} of study {record.name!r} failed; the last: {last.outcome}: "
            f"{str(last.reason).strip().splitlines()[-1]}; change what is in the way, then `study retry {record.name}`"
        )
