"""The ask/tell loop: claim or propose a setting, measure it, tell what came of it, until the budget is used up.

Responsible for every trial it started reaching a terminal state, or going back to the queue when the worker is
interrupted. The result is kept before anyone is told of it, and told only while the trial is still this worker's. May
assume that the contract was checked.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import monotonic, sleep
from typing import TypeVar

import optuna
from optuna.trial import Trial

from hpo.search.proposal import propose
from hpo.search.pruners.registry import Pruning
from hpo.search.stopping import Stopping, noise_of, reason_to_stop
from hpo.space.space import Space
from hpo.study.attributes import SETTING, VERSIONS
from hpo.study.events import Finished, Listener, Looked, Notice
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import ENDED, StudyRecord, TrialRecord, read_study, trial_record
from hpo.workers.failures import failure_in, failure_of, require_some_success
from hpo.workers.heartbeat import Heartbeat
from hpo.workers.interrupts import Interrupts
from hpo.workers.ledger import Ledger, trial_versions
from hpo.workers.measuring import Planned
from hpo.workers.queue import Queue
from objectives.errors import InputError
from objectives.progress import Progress
from objectives.results import keep_measured, load_result, measurement_key, score_of_weights
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult, replayed, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.errors import DamagedEntryError
from storage.results import ResultStore
from storage.studies.retries import with_retries
from storage.typed_json import decode

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_SECONDS = 1.0
USED_UP, WAITING = "every setting of the space was tried", "waiting"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a study may spend: `trials` in all, and no trial begins after `deadline` (of `monotonic`)."""

    trials: int
    deadline: float = math.inf

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InputError(f"--trials {self.trials} is not at least 1")


@dataclass(frozen=True, kw_only=True)
class Settled:
    """That there is no further trial: `reason` says why, if it is not the budget, as long as trials have `states`."""

    states: tuple[str, ...] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process at work on one study.

    Attributes:
        queue: The study, and this worker's name in it.
        store: Where results are kept.
        bench: Model, roles, calibration.
        tuning: What trials are scored on.
        sampler: Who proposes.
        pruning: Who gives trials up, and when.
        seed: Of the study.
        listen: Told of every look and every trial.
        progress: Told how far everything is.
        stopping: When the study has seen enough.
        trial_timeout: Seconds without progress after which a trial fails and the process ends.
        interrupts: Of the process.
        objective: What a trial's value is.
        planned: How a setting becomes a plan.
    """

    queue: Queue
    store: ResultStore
    bench: Bench
    tuning: Sequences
    sampler: str
    pruning: Pruning
    seed: int
    listen: Listener
    progress: Progress
    stopping: Stopping = field(default_factory=Stopping)
    trial_timeout: float | None = None
    interrupts: Interrupts = field(default_factory=Interrupts)
    objective: Objective = PERPLEXITY
    planned: Planned = Plan.uniform

    @property
    def study(self) -> optuna.Study:
        """Return the study it works on."""
        return self.queue.study

    @property
    def space(self) -> Space:
        """Return the space it searches."""
        return self.queue.space

    @cached_property
    def ledger(self) -> Ledger:
        """Hold what it writes about trials."""
        return Ledger(
            queue=self.queue,
            store=self.store,
            tuning=self.tuning,
            pruning=self.pruning,
            objective=self.objective,
            listen=self.listen,
        )

    def work(self, budget: Budget) -> None:
        """Work until the budget is used up or the space has no other setting, and the others have ended theirs.

        Raises:
            KeyboardInterrupt: When interrupted; the running trial is back in the queue.
            RunError: If the first trials all fail, or most of the last ones.
        """
        self.study.pruner = self.pruning.pruner.in_optuna(self.pruning, len(self.tuning))
        started, done_here = monotonic(), 0
        try:
            while (trial := self._next(budget)) is not None:
                self._measure(trial)
                done_here += 1
                self._report(trial.number, budget, (monotonic() - started) / done_here)
        except BaseException:
            # Whatever it is, it is no property of the setting: someone may try it again.
            self._hand_back()
            raise

    def _next(self, budget: Budget) -> Trial | None:
        """Find the next trial; None when there is nothing to do, also for others. Waits while they may still die."""
        settled, noticed = Settled(), set[str]()
        while True:
            answer = self._retried(partial(self.ask, budget, settled))
            if isinstance(answer, Trial):
                return answer
            settled = answer
            running = self._patiently(self.queue.others_run)
            if settled.reason is not None and settled.reason not in noticed:
                self.listen(Notice(text=settled.reason))
                noticed.add(settled.reason)
            if not running:
                return None
            if WAITING not in noticed:
                self.listen(Notice(text=f"waiting for {running} trials of other workers", passing=True))
                noticed.add(WAITING)
            self.interrupts.check()
            sleep(POLL_SECONDS)

    def ask(self, budget: Budget, settled: Settled) -> Trial | Settled:
        """Claim or propose, or say why not; the budget and what was tried are counted under the study's lock.

        While others work, everybody asks again and again; what was `settled` for the same trials is not gone into
        again.
        """
        with self.queue.exclusive(), self.interrupts.deferred():
            for number, became in self.queue.take_back():
                self.listen(Notice(text=f"trial {number}: {became}"))
            record = read_study(self.study)
            require_some_success(record)
            begun = sum(trial.state in (*ENDED, "RUNNING") for trial in record.counted)
            if begun >= budget.trials or monotonic() >= budget.deadline:
                return Settled()
            waiting = self.queue.claim()
            if waiting is not None:
                return waiting
            states = tuple(trial.state for trial in record.trials)
            if settled.states == states:
                return settled
            noise = noise_of(record, self.ledger.scores)
            reason = reason_to_stop(self.stopping, self.space, record, noise, self.seed)
            setting = None if reason else propose(self.space, record.trials, self.sampler, self.seed, noise)
            if setting is None:
                return Settled(states=states, reason=reason or USED_UP)
            self.queue.add(setting, self.sampler)
            return self.queue.claim() or Settled()

    def _hand_back(self) -> None:
        try:
            with self.interrupts.deferred():
                for number in self.queue.hand_back():
                    self.listen(Notice(text=f"trial {number} handed back"))
        except Exception as error:
            # What stopped the worker matters more; another one takes the trial over.
            log.warning("the running trial could not be handed back (%s)", error)

    def _patiently(self, step: Callable[[], T]) -> T:
        return self._retried(self.interrupts.shielded(step))

    def _retried(self, step: Callable[[], T]) -> T:
        return with_retries(step, lambda text: self.listen(Notice(text=text)), self.interrupts.check)

    def _measure(self, trial: Trial) -> None:
        setting = decode(Setting, trial.user_attrs[SETTING], f"trial {trial.number}: setting")
        with Heartbeat(self.queue.storage, trial._trial_id, self.trial_timeout) as heartbeat:
            try:
                result = self._result(trial, setting, heartbeat)
            except Exception as error:
                failure = failure_of(error)
                if failure is None:
                    raise
                self._patiently(lambda: self.ledger.fail(trial, failure))
                if failure.stops_worker:
                    raise
                return
            heartbeat.note("telling", 0, 1)
            self._finish(trial, setting, result)

    def _result(self, trial: Trial, setting: Setting, heartbeat: Heartbeat) -> TrialResult:
        record = self._patiently(lambda: trial_record(self.queue.storage.get_trial(trial._trial_id), self.objective))
        self._patiently(lambda: self.ledger.write(trial, VERSIONS, trial_versions()))

        def go_on(look: Score) -> bool:
            self.interrupts.check()
            self._patiently(lambda: self.ledger.look(trial, look))
            value, total = self.objective.value(look), len(self.tuning)
            looked = Looked(trial=record, value=value, perplexity=look.perplexity, read=len(look.nll), total=total)
            self.listen(looked)
            return self._patiently(lambda: self.ledger.is_worth(trial, setting, look))

        recalled = self._recalled(setting)
        if recalled is not None:
            return replayed(recalled, go_on, self.pruning.first_look)
        listening = heartbeat.listening(self.progress)
        twin = partial(score_of_weights, self.store, self.bench, self.tuning)
        return run_trial(
            self.bench, self.planned(setting), self.tuning, go_on, listening, self.pruning.first_look, twin
        )

    def _recalled(self, setting: Setting) -> TrialResult | None:
        """Recall a setting that was measured to the end: by a worker that died before it told, or for another study."""
        key = measurement_key(self.bench, self.planned(setting), self.tuning)
        if key not in self.store:
            return None
        try:
            return load_result(self.store, key)
        except DamagedEntryError as damage:
            self.listen(Notice(text=f"{damage}; it is measured again"))
            return None

    def _finish(self, trial: Trial, setting: Setting, result: TrialResult) -> None:
        failure = failure_in(result, self.objective)
        if failure is not None:
            self._patiently(lambda: self.ledger.fail(trial, failure, result))
            return
        assert result.score is not None
        key = measurement_key(self.bench, result.plan, self.tuning[: len(result.score.nll)])
        keep_measured(self.store, self.bench, self.tuning, key, result)
        self._patiently(lambda: self.ledger.tell(trial, setting, result, key))

    def _report(self, number: int, budget: Budget, pace: float) -> None:
        record: StudyRecord = self._patiently(lambda: read_study(self.study))
        ended = [trial for trial in record.counted if trial.state in ENDED]
        self.listen(finished_event(record, record.trials[number], len(ended), budget, pace))


def finished_event(record: StudyRecord, trial: TrialRecord, done: int, budget: Budget, pace: float) -> Finished:
    """Make the event of a trial that has ended.

    Args:
        record: The study.
        trial: As it was told.
        done: Trials of the study that have ended.
        budget: Of the study.
        pace: Seconds between two ends.
    """
    left = max(0, budget.trials - done)
    twin = record.twin_of(trial)
    return Finished(
        trial=trial,
        best=record.best,
        done=done,
        budget=budget.trials,
        saved=record.tokens_saved,
        seconds_left=min(left * pace, max(0.0, budget.deadline - monotonic())),
        twin=twin.full_name if twin else None,
    )
