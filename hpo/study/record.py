"""A study as it stands: what is stored in Optuna's database and beside it, as frozen values.

Responsible for the names of the attributes that workers write and everyone else reads, and for nothing that decides.
May assume that the study was created by `hpo.workers.preparation`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.space.size_class import SizeClass, size_class_of
from hpo.study.contract import Contract, stored_contract
from quant.setting import Setting
from quant.sizes import ModelSize

CONTRACT, REFERENCES, QUEUED, CONFIRMATION = "contract", "references", "queued", "confirmation"
SEARCH = "search"
SETTING, ORIGIN, OUTCOME, RESULT, ESTIMATE, REASON = "setting", "origin", "outcome", "result", "estimate", "reason"
BITS, BYTES, SIZE, PEAK = "bits_per_weight", "model_bytes", "size", "peak_bytes"
SECONDS, TOKENS = "seconds", "tokens"
OWNER, VERSIONS, BEAT, TAKEOVERS = "owner", "versions", "beat", "takeovers"
# Of a trial that repeats a failed one: that one's number; the failed one counts no more.
RETRY_OF = "retry of"
FULL_PRECISION = "full precision"
CONFIDENCE, NORMAL_95 = 0.95, 1.96
# Of an error of which nothing is known, squared nats; and the mean NLL above which a perplexity is not a number.
VAGUE, MOST_NATS = 1.0, 700.0
ENDED = ("COMPLETE", "PRUNED", "FAIL")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a pruned trial would probably have scored on all text, by the text it did read.

    Attributes:
        mean_nll: Nats per token on all tuning text.
        standard_error: Of `mean_nll`; None where nothing is known of it.
        degrees: Of freedom of that error.
        against: Number of the trial that it was compared with.
    """

    mean_nll: float
    standard_error: float | None
    degrees: float
    against: int

    @property
    def perplexity(self) -> float:
        """`exp(mean_nll)`; infinite where that overflows."""
        return math.exp(self.mean_nll) if self.mean_nll < MOST_NATS else math.inf

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the perplexity."""
        return math.exp(min(self.mean_nll - self._reach, MOST_NATS))

    @property
    def high(self) -> float:
        """Upper end of that interval."""
        return math.exp(min(self.mean_nll + self._reach, MOST_NATS))

    @property
    def variance(self) -> float:
        """Of a normal error of `mean_nll` with the same 95 % interval, squared nats.

        Student's t of few degrees of freedom is wider than the normal distribution that models take errors for.
        """
        return VAGUE if self.standard_error is None else (self._reach / NORMAL_95) ** 2

    @property
    def _reach(self) -> float:
        """Half the 95 % interval of `mean_nll`, by Student's t."""
        # Imported here: `status` has no use for it, and scipy takes its time.
        from scipy.special import stdtrit

        if self.standard_error is None:
            return math.inf
        return float(stdtrit(self.degrees, (1 + CONFIDENCE) / 2)) * self.standard_error


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One setting as a reference or a trial measured it.

    Attributes:
        name: What tables call it: `gw-awq`, `balanced`, `trial 17`.
        setting: None is full precision.
        perplexity: On all tuning text; None where it was not measured to the end.
        result: Key of its values per sequence in the result store; None where there are none.
        bits_per_weight: Over the decoder blocks' weights.
        model_bytes: Of the whole model.
        seconds: Per phase.
        size: What the bytes are spent on; None where that is not known.
    """

    name: str
    setting: Setting | None
    perplexity: float | None
    result: str | None
    bits_per_weight: float | None
    model_bytes: int | None
    seconds: Mapping[str, float]
    size: ModelSize | None = None

    @property
    def full_name(self) -> str:
        """Its name and what its bits depend on: `gw-awq g64`, `trial 17 keep 0.2`."""
        if self.size_class is None or self.name.endswith(self.size_class.short):
            return self.name
        return f"{self.name} {self.size_class.short}"

    @property
    def label(self) -> str:
        """Its method and what that reads, without the group size: `gwh-praq-v2 beta=0.5 tau=2 n_grid=20`."""
        return "" if self.setting is None else self.setting.label()

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale; None where a scale is a row's, and for full precision."""
        return None if self.size_class is None else self.size_class.group_size

    @property
    def size_class(self) -> SizeClass | None:
        """What decides which others it may be compared with; None for full precision."""
        return None if self.setting is None else size_class_of(self.setting)


@dataclass(frozen=True, kw_only=True)
class TrialRecord(Measured):
    """One trial.

    Attributes:
        number: Optuna's.
        state: Optuna's name: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        params: Optuna's parameters.
        origin: Where its setting came from: `preset balanced`, `start-up`, `sampler`.
        outcome: How the measurement ended; None while it runs.
        estimate: Of a pruned trial.
        reason: Why it failed.
        running: Perplexity of the first sequences, by their number.
        tokens: Scored tokens that were evaluated for it.
        started: ISO time; None while it waits.
        finished: ISO time; None while it runs.
        owner: The process that works or worked on it (`hpo.workers.owner.Owner`).
        beat: Its last sign of life: a count, the phase, how far, and when by its machine's clock.
        takeovers: How often its worker died.
        versions: What its numbers may depend on.
    """

    number: int
    state: str
    params: Mapping[str, float]
    origin: str
    outcome: str | None
    estimate: Estimate | None
    reason: str | None
    running: Mapping[int, float]
    tokens: int
    started: str | None
    finished: str | None
    owner: Mapping[str, Any] = field(default_factory=dict)
    beat: Mapping[str, Any] = field(default_factory=dict)
    takeovers: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study: its contract, what is measured beside it, and its trials in order of their numbers.

    `retried` are the numbers of failed trials whose settings were queued again. `search` is how it was begun, beyond
    its contract: sampler, pruner, and what was allowed; empty before that is written.
    """

    name: str
    contract: Contract
    references: tuple[Measured, ...]
    trials: tuple[TrialRecord, ...]
    confirmation: Mapping[str, Any] | None = None
    retried: frozenset[int] = frozenset()
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> list[TrialRecord]:
        """The trials that the budget counts: all but the failed ones that were queued again."""
        return [trial for trial in self.trials if trial.number not in self.retried]

    @property
    def complete(self) -> list[TrialRecord]:
        """Trials that were measured to the end, best first."""
        found = [trial for trial in self.trials if trial.state == "COMPLETE"]
        return sorted(found, key=lambda trial: (trial.perplexity, trial.number))

    @property
    def pruned(self) -> list[TrialRecord]:
        """Trials that were given up."""
        return [trial for trial in self.trials if trial.state == "PRUNED"]

    @property
    def best(self) -> TrialRecord | None:
        """The trial of least perplexity, whatever its bits; None before one is complete."""
        return next(iter(self.complete), None)

    @property
    def full_tokens(self) -> int:
        """Scored tokens of a trial that was measured to the end; 0 before one was."""
        return max((trial.tokens for trial in self.complete), default=0)

    def tokens_saved(self, full: int) -> float:
        """The share of tokens that pruning spared: of the trials that ended with a value, `full` tokens each.

        0 where that number is not known.
        """
        ended = [*self.complete, *self.pruned]
        return 1 - sum(trial.tokens for trial in ended) / (full * len(ended)) if ended and full else 0.0


def write_failure(storage: BaseStorage, trial_id: int, outcome: str, reason: str) -> None:
    """End a trial without a value.

    Raises:
        UpdateFinishedTrialError: If it had ended already.
    """
    storage.set_trial_user_attr(trial_id, OUTCOME, outcome)
    storage.set_trial_user_attr(trial_id, REASON, reason)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)


def read_study(study: optuna.Study) -> StudyRecord:
    """What the storage knows of a study of ours now.

    Raises:
        InputError: If it is of another format.
    """
    attributes = study.user_attrs
    trials = study.get_trials(deepcopy=False)
    return StudyRecord(
        name=study.study_name,
        contract=stored_contract(attributes[CONTRACT], study.study_name),
        references=read_references(study),
        trials=tuple(map(trial_record, trials)),
        confirmation=attributes.get(CONFIRMATION),
        retried=frozenset(trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs),
        search=attributes.get(SEARCH, {}),
    )


def read_references(study: optuna.Study) -> tuple[Measured, ...]:
    """What was measured beside the trials, as the storage knows it now."""
    return tuple(_reference(entry) for entry in study.user_attrs.get(REFERENCES, []))


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """One trial of Optuna's as a value."""
    attributes = trial.user_attrs
    setting = attributes.get(SETTING)
    estimate = attributes.get(ESTIMATE)
    origin = str(attributes.get(ORIGIN, "sampler"))
    return TrialRecord(
        name=origin.removeprefix("preset ") if origin.startswith("preset ") else f"trial {trial.number}",
        setting=None if setting is None else Setting(**setting),
        perplexity=trial.value if trial.state.name == "COMPLETE" else None,
        result=attributes.get(RESULT),
        bits_per_weight=attributes.get(BITS),
        model_bytes=attributes.get(BYTES),
        seconds=attributes.get(SECONDS, {}),
        size=_size(attributes.get(SIZE)),
        number=trial.number,
        state=trial.state.name,
        params=trial.params,
        origin=origin,
        outcome=attributes.get(OUTCOME),
        estimate=None if estimate is None else Estimate(**estimate),
        reason=attributes.get(REASON),
        running=trial.intermediate_values,
        tokens=attributes.get(TOKENS, 0),
        started=trial.datetime_start.isoformat() if trial.datetime_start else None,
        finished=trial.datetime_complete.isoformat() if trial.datetime_complete else None,
        owner=attributes.get(OWNER, {}),
        beat=attributes.get(BEAT) or {},
        takeovers=attributes.get(TAKEOVERS, 0),
        versions=attributes.get(VERSIONS, {}),
    )


def _reference(entry: Mapping[str, Any]) -> Measured:
    setting = entry["setting"]
    known = {"setting": None if setting is None else Setting(**setting), "size": _size(entry.get(SIZE))}
    return Measured(**{**entry, **known})


def _size(stored: Mapping[str, Any] | None) -> ModelSize | None:
    return None if stored is None else ModelSize(**stored)
