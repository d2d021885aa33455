"""The ask/tell loop: claim or propose a setting, measure it, tell what came of it, until the budget is used up.

Responsible for every trial it started reaching a terminal state, or going back to the queue when the worker is
interrupted. The result is kept before anyone is told of it. May assume that the contract was checked.
"""

import math
import platform
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from time import monotonic
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from hpo.events import Finished, Listener, Looked, Notice
from hpo.footprint import footprint_of
from hpo.interrupts import Interrupts
from hpo.proposal import SamplerName, propose
from hpo.pruning import Incumbent, PrunerName, estimate, is_hopeless, optuna_pruner, reports
from hpo.queue import Queue
from hpo.record import (
    BITS,
    BYTES,
    ESTIMATE,
    OUTCOME,
    PEAK,
    REASON,
    RESULT,
    SECONDS,
    SETTING,
    TOKENS,
    VERSIONS,
    StudyRecord,
    read_study,
)
from hpo.space import Space
from objectives.errors import InputError, RunError
from objectives.kept import keep_result, measurement_key, recall_result
from objectives.progress import Progress
from objectives.scoring import Score, look_sizes
from objectives.sequences import Sequences
from objectives.trial import Bench, TrialResult, run_trial
from quant.errors import QuantizationError
from quant.methods import Setting
from storage.errors import DamagedEntryError, StorageError
from storage.results import ResultStore

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
FIRST_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a study may spend: `trials` in all, and no trial begins after `deadline` (of `monotonic`)."""

    trials: int
    deadline: float = math.inf

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InputError(f"--trials {self.trials} is not at least 1")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process at work on one study."""

    queue: Queue
    store: ResultStore
    bench: Bench
    tuning: Sequences
    sampler: SamplerName
    pruner: PrunerName
    seed: int
    listen: Listener
    progress: Progress
    interrupts: Interrupts = field(default_factory=Interrupts)

    @property
    def study(self) -> optuna.Study:
        """The study it works on."""
        return self.queue.study

    @property
    def space(self) -> Space:
        """What it searches."""
        return self.queue.space

    def work(self, budget: Budget) -> None:
        """Work until the budget is used up or the space has no other setting.

        Raises:
            KeyboardInterrupt: When interrupted; the running trial is back in the queue.
            RunError: If the first trials all fail.
        """
        self.study.pruner = optuna_pruner(self.pruner, len(self.tuning))
        started, done_here = monotonic(), 0
        while True:
            trial: Trial | None = None
            try:
                with self.interrupts.deferred():
                    trial = self._next(budget)
                if trial is None:
                    return
                self._measure(trial)
            except BaseException:
                # Whatever it is, it is no property of the setting: someone may try it again.
                if trial is not None and self.queue.hand_back(trial):
                    self.listen(Notice(text=f"trial {trial.number} handed back"))
                raise
            done_here += 1
            record = read_study(self.study)
            self._report(record, trial.number, budget, (monotonic() - started) / done_here)
            _require_some_success(record)

    def _next(self, budget: Budget) -> Trial | None:
        for number in self.queue.take_back_orphans():
            self.listen(Notice(text=f"trial {number} was left by a process that died; it is queued again"))
        record = read_study(self.study)
        taken = sum(trial.state in (*FINISHED, "RUNNING") for trial in record.trials)
        if taken >= budget.trials or monotonic() >= budget.deadline:
            return None
        waiting = self.queue.claim()
        if waiting is not None:
            return waiting
        setting = propose(self.space, record.trials, self.sampler, self.seed)
        if setting is None:
            self.listen(Notice(text="every setting of the space was tried"))
            return None
        self.queue.add(setting, self.sampler)
        return self.queue.claim()

    def _measure(self, trial: Trial) -> None:
        setting = Setting(**trial.user_attrs[SETTING])
        try:
            result = self._result(trial, setting)
        except QuantizationError as error:
            self._fail(trial, "not quantizable", str(error))
            return
        except (RunError, StorageError, OSError):
            raise
        except Exception:
            # A mistake of ours: the trial says where, and the worker stops.
            self._fail(trial, "error", traceback.format_exc())
            raise
        self._finish(trial, setting, result)

    def _result(self, trial: Trial, setting: Setting) -> TrialResult:
        record = read_study(self.study).trials[trial.number]
        trial.set_user_attr(VERSIONS, versions())

        def go_on(look: Score) -> bool:
            self.interrupts.check()
            self._tell_look(trial, look)
            seen = Looked(trial=record, perplexity=look.perplexity, read=len(look.nll), total=len(self.tuning))
            self.listen(seen)
            return self._is_worth(trial, setting, look)

        known = self._known(setting)
        if known is not None:
            return _replayed(known, go_on)
        return run_trial(self.bench, setting, self.tuning, go_on, self.progress)

    def _known(self, setting: Setting) -> TrialResult | None:
        """What is already measured of a setting to the end: by a worker that died before it told, or another study."""
        key = measurement_key(self.bench, setting, self.tuning)
        if key not in self.store:
            return None
        try:
            return recall_result(self.store, key)
        except DamagedEntryError as damage:
            self.listen(Notice(text=f"{damage}; it is measured again"))
            return None

    def _is_worth(self, trial: Trial, setting: Setting, look: Score) -> bool:
        if self.pruner != "paired":
            return not trial.should_prune()
        incumbent = self._incumbent(setting)
        return incumbent is None or not is_hopeless(look, incumbent.score, self.tuning.clusters)

    def _incumbent(self, setting: Setting) -> Incumbent | None:
        complete = read_study(self.study).complete
        equals = [trial for trial in complete if trial.footprint == footprint_of(setting) and trial.result]
        if not equals:
            return None
        best = equals[0]
        score = recall_result(self.store, str(best.result)).score
        return None if score is None else Incumbent(number=best.number, score=score)

    def _tell_look(self, trial: Trial, look: Score) -> None:
        told = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for step, value in reports(self.pruner, look).items():
            if step not in told and math.isfinite(value):
                trial.report(value, step)

    def _finish(self, trial: Trial, setting: Setting, result: TrialResult) -> None:
        score = result.score
        if result.outcome in ("complete", "stopped") and score is not None and math.isfinite(score.perplexity):
            key = measurement_key(self.bench, setting, self.tuning[: len(score.nll)])
            keep_result(self.store, key, result)
            self._describe(trial, {RESULT: key, TOKENS: int(score.tokens.sum())}, result)
            for size in look_sizes(len(score.nll)):
                self._tell_look(trial, score.first(size))
            self._tell(trial, setting, result, score)
            return
        reasons = {
            "out-of-memory": f"out of memory at a peak of {result.peak_bytes / 1e9:.2f} GB; use a smaller --max-memory",
            "non-finite": "the quantized model gives NaN or Inf",
        }
        self._describe(trial, {}, result)
        self._fail(trial, result.outcome, reasons.get(result.outcome, "the perplexity is infinite"))

    def _tell(self, trial: Trial, setting: Setting, result: TrialResult, score: Score) -> None:
        if result.outcome == "complete":
            self.study.tell(trial, score.perplexity, skip_if_finished=True)
            return
        incumbent = self._incumbent(setting)
        if incumbent is not None:
            found = estimate(score, incumbent, self.tuning.clusters)
            trial.set_user_attr(ESTIMATE, vars(found))
        self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def _describe(self, trial: Trial, attributes: dict[str, Any], result: TrialResult) -> None:
        attributes = {
            **attributes,
            OUTCOME: result.outcome,
            BITS: result.size.bits_per_weight,
            BYTES: result.size.model_bytes,
            PEAK: result.peak_bytes,
            SECONDS: {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def _fail(self, trial: Trial, outcome: str, reason: str) -> None:
        trial.set_user_attr(OUTCOME, outcome)
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def _report(self, record: StudyRecord, number: int, budget: Budget, pace: float) -> None:
        ended = [trial for trial in record.trials if trial.state in FINISHED]
        left = max(0, budget.trials - len(ended))
        finished = Finished(
            trial=record.trials[number],
            best=record.best,
            done=len(ended),
            budget=budget.trials,
            saved=record.tokens_saved(int(sum(mask.sum() for mask in self.tuning.scored))),
            seconds_left=min(left * pace, max(0.0, budget.deadline - monotonic())),
        )
        self.listen(finished)


def _replayed(known: TrialResult, go_on: Callable[[Score], bool]) -> TrialResult:
    """A known result as the trial would have ended, pruned where it would have been: equal studies get equal trials."""
    assert known.score is not None
    for size in look_sizes(len(known.score.nll))[:-1]:
        look = known.score.first(size)
        if not go_on(look):
            return replace(known, outcome="stopped", score=look)
    return known


def versions() -> dict[str, str]:
    """What a trial's numbers may depend on."""
    return {name: version(name) for name in ("praqtune", "torch", "transformers")} | {
        "python": platform.python_version()
    }


def _require_some_success(record: StudyRecord) -> None:
    ended: Sequence[Any] = [trial for trial in record.trials if trial.state in FINISHED]
    if len(ended) >= FIRST_FAILURES and all(trial.state == "FAIL" for trial in ended):
        last = ended[-1]
        raise RunError(
            f"all {len(ended)} trials of study {record.name!r} failed; the last: {last.outcome}: "
            f"{str(last.reason).strip().splitlines()[-1]}; the study is kept: change what is in the way and go on"
        )
