"""What a worker writes about a trial, and what it reads of the others to prune.

Responsible for attributes, looks and outcomes in the storage. Every step may be done again, and changes nothing where
someone else has ended the trial. May assume that a result is kept before it is told.
"""

import math
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo.search.incumbent import Incumbent, estimate, make_incumbent
from hpo.search.pruners.pruner import Case
from hpo.search.pruners.registry import Pruning
from hpo.space.size_class import SizeClass, size_class_of
from hpo.study.attributes import (
    BITS,
    BYTES,
    ESTIMATE,
    FINGERPRINT,
    FLIPS,
    KL,
    OUTCOME,
    PEAK,
    PERPLEXITY,
    RESULT,
    SECONDS,
    SETTING,
    SIZE,
    TOKENS,
    value_of,
    write_failure,
)
from hpo.study.events import Listener, Notice
from hpo.study.objective import Objective
from hpo.study.record import read_references, trial_record
from hpo.study.scores import Scores
from hpo.workers.failures import Failure
from hpo.workers.queue import Queue
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import TrialResult
from objectives.versions import versions
from quant.setting import Setting
from storage.errors import DamagedEntryError
from storage.results import ResultStore
from storage.typed_json import decode, encode

# Completed trials that a trial is compared with beside the best, and that say how differences scatter.
MOST_OTHERS = 8


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The trials of one study as one worker writes them."""

    queue: Queue
    store: ResultStore
    tuning: Sequences
    pruning: Pruning
    objective: Objective
    listen: Listener

    @cached_property
    def scores(self) -> Scores:
        """Hold what was read of other trials' results; trials whose values cannot be read are not compared with."""
        return Scores(self.store, self._left_out)

    def _left_out(self, damage: DamagedEntryError) -> None:
        self.listen(Notice(text=f"not compared with a trial: {damage}", passing=True))

    def is_worth(self, trial: Trial, setting: Setting, look: Score) -> bool:
        """Decide whether the pruner lets a trial go on after a look."""
        case = Case(look=look, incumbent=partial(self.incumbent, setting), optuna_prunes=trial.should_prune)
        return not self.pruning.pruner.should_prune(case, self.pruning)

    def incumbent(self, setting: Setting) -> Incumbent | None:
        """Find the best completed trial that a trial of this setting is compared with; None before there is one.

        It is of equal bits; on a front of no larger a budget, so that whoever is behind it is dominated by it.
        """
        study, size_class = self.queue.study, size_class_of(setting)
        # Not the whole record: most of a large study's trials have other bits, or were given up.
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        comparable = [
            trial for trial in complete if RESULT in trial.user_attrs and size_class.holds(_size_class(trial))
        ]
        best_first = sorted(comparable, key=lambda trial: (value_of(trial), trial.number))[: 1 + MOST_OTHERS]
        scored = self.scores.readable(trial_record(trial, self.objective) for trial in best_first)
        if not scored:
            return None
        equal_bits = (reference for reference in read_references(study) if reference.size_class == size_class)
        (best, incumbent), *others = scored
        compared = [score for _, score in (*others, *self.scores.readable(equal_bits))]
        return make_incumbent(best.number, incumbent, compared, self.objective)

    def look(self, trial: Trial, look: Score) -> None:
        """Report a look to Optuna, unless it was reported already."""
        reported = self.queue.storage.get_trial(trial._trial_id).intermediate_values
        for step, value in self.pruning.pruner.reports(look, len(self.tuning), self.objective).items():
            if step not in reported and math.isfinite(value):
                try:
                    # Optuna's own way refuses studies of several values.
                    self.queue.storage.set_trial_intermediate_value(trial._trial_id, step, value)
                except UpdateFinishedTrialError:
                    # Someone else ended the trial; what this worker measures is kept all the same.
                    return

    def tell(self, trial: Trial, setting: Setting, result: TrialResult, key: str) -> None:
        """Tell what was measured and kept under `key`, if the trial is still this worker's."""
        score = result.score
        assert score is not None
        if not self.queue.owns(trial):
            self._say_taken(trial)
            return
        for size in self.pruning.looks(len(score.nll)):
            self.look(trial, score.first(size))
        self._describe(trial, {RESULT: key, TOKENS: int(score.tokens.sum())}, result)
        if result.outcome == "complete":
            self.write(trial, PERPLEXITY, score.perplexity)
            self.write(trial, KL, score.mean_kl)
            self.write(trial, FLIPS, score.percent_flips)
            values = [result.size.model_bytes, self.objective.value(score)]
            self.queue.study.tell(trial, values[-len(self.queue.study.directions) :], skip_if_finished=True)
            return
        incumbent = self.incumbent(setting)
        if incumbent is not None:
            self.write(trial, ESTIMATE, encode(estimate(score, incumbent)))
        self.queue.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def _say_taken(self, trial: Trial) -> None:
        state = self.queue.storage.get_trial(trial._trial_id).state.name
        if state in ("RUNNING", "WAITING"):
            became = "another worker has it, or will"
        else:
            became = f"it had been told already ({state})"
        self.listen(Notice(text=f"trial {trial.number} is no longer this worker's: {became}; its result is kept"))

    def _describe(self, trial: Trial, attributes: dict[str, Any], result: TrialResult) -> None:
        attributes = {
            **attributes,
            OUTCOME: result.outcome,
            BITS: result.size.bits_per_weight,
            BYTES: result.size.model_bytes,
            SIZE: encode(result.size),
            PEAK: result.peak_bytes,
            SECONDS: {phase: round(seconds, 3) for phase, seconds in result.seconds.items()},
        }
        if result.fingerprint is not None:
            attributes[FINGERPRINT] = result.fingerprint
        for name, value in attributes.items():
            self.write(trial, name, value)

    def write(self, trial: Trial, name: str, value: object) -> None:
        """Write an attribute of a trial; those of a trial that someone has ended meanwhile are settled."""
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(name, value)

    def fail(self, trial: Trial, failure: Failure, result: TrialResult | None = None) -> None:
        """End a trial without a value, if it is still this worker's."""
        if not self.queue.owns(trial):
            self._say_taken(trial)
            return
        if result is not None:
            self._describe(trial, {}, result)
        with suppress(UpdateFinishedTrialError):
            write_failure(self.queue.storage, trial._trial_id, failure.outcome, failure.reason)


def _size_class(trial: FrozenTrial) -> SizeClass:
    return size_class_of(decode(Setting, trial.user_attrs[SETTING], f"trial {trial.number}: setting"))


def trial_versions() -> dict[str, str]:
    """List the versions that a trial's numbers may depend on."""
    return versions() | {"python": platform.python_version()}
