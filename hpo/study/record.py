"""A study as it stands: what is stored in Optuna's database and beside it, as frozen values.

Responsible for what is known of a study and its trials, and for nothing that decides. May assume that the study was
created by `hpo.workers.preparation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial

from hpo.space.dimension import Value
from hpo.space.size_class import SizeClass, size_class_of
from hpo.study.attributes import (
    CONFIRMATION,
    CONTRACT,
    PREDICTED_KL,
    REFERENCES,
    REFINED,
    RETRY_OF,
    SEARCH,
    SITE_DAMAGES,
    WATERFALL,
    Beat,
    trial_attributes,
    value_of,
)
from hpo.study.confirmation import Confirmation, RefinedConfirmation
from hpo.study.contract import Contract, stored_contract
from hpo.study.estimate import Estimate
from hpo.study.objective import OBJECTIVES, PERPLEXITY, Objective
from hpo.study.owner import Owner
from hpo.study.searching import SearchMode
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.typed_json import decode, decode_known

V = TypeVar("V")
FULL_PRECISION = "full precision"
ENDED = ("COMPLETE", "PRUNED", "FAIL")


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
        kl: Divergence from full precision on all tuning text, nats per token; None where it was not measured.
        flips: Percent of targets before which full precision holds another token most likely; None where `kl` is.
        fingerprint: Of the quantized weights; None for full precision, and where it was not taken.
    """

    name: str
    setting: Setting | None
    perplexity: float | None
    result: str | None
    bits_per_weight: float | None
    model_bytes: int | None
    seconds: Mapping[str, float]
    size: ModelSize | None = None
    kl: float | None = None
    flips: float | None = None
    fingerprint: str | None = None

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
        running: Value of the first sequences, by their number.
        tokens: Scored tokens that were evaluated for it.
        started: ISO time; None while it waits.
        finished: ISO time; None while it runs.
        owner: The process that works or worked on it.
        beat: Its last sign of life.
        takeovers: How often its worker died.
        versions: What its numbers may depend on.
        objective: Of the study.
    """

    number: int
    state: str
    params: Mapping[str, Value]
    origin: str
    outcome: str | None
    estimate: Estimate | None
    reason: str | None
    running: Mapping[int, float]
    tokens: int
    started: str | None
    finished: str | None
    owner: Owner | None = None
    beat: Beat | None = None
    takeovers: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    objective: Objective = PERPLEXITY

    @property
    def value(self) -> float | None:
        """What the study minimises; None where it was not measured to the end."""
        return self.objective.of(self)


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study: its contract, what is measured beside it, and its trials in order of their numbers.

    `retried` are the numbers of failed trials whose settings were queued again. `search` is how it was begun, beyond
    its contract; as usual before that is written. `waterfall` are the settings from nearest rounding to what was
    recommended when it was measured; `refined` is what tuning its scales, norms and biases gained, where that was done.
    `site_damages` are, of the plan of the best trial, the nats per token that each site is predicted to lose, by its
    Linears; empty where all are stored alike. `predicted_kl` is, by number, what the plan of each completed trial was
    predicted to diverge, nats per token; empty likewise.
    """

    name: str
    contract: Contract
    references: tuple[Measured, ...]
    trials: tuple[TrialRecord, ...]
    confirmation: Confirmation | None = None
    refined: RefinedConfirmation | None = None
    retried: frozenset[int] = frozenset()
    search: SearchMode = field(default_factory=SearchMode)
    waterfall: tuple[Measured, ...] = ()
    site_damages: Mapping[str, float] = field(default_factory=dict)
    predicted_kl: Mapping[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> Objective:
        """What the study minimises."""
        return OBJECTIVES[self.contract.objective]

    @property
    def full_precision(self) -> Measured | None:
        """Full precision on the tuning text; None before it is measured."""
        return next((reference for reference in self.references if reference.setting is None), None)

    @property
    def counted(self) -> list[TrialRecord]:
        """The trials that the budget counts: all but the failed ones that were queued again."""
        return [trial for trial in self.trials if trial.number not in self.retried]

    @property
    def complete(self) -> list[TrialRecord]:
        """Trials that were measured to the end, best first."""
        complete = [trial for trial in self.trials if trial.state == "COMPLETE"]
        return sorted(complete, key=lambda trial: (trial.value, trial.number))

    @property
    def pruned(self) -> list[TrialRecord]:
        """Trials that were given up."""
        return [trial for trial in self.trials if trial.state == "PRUNED"]

    @property
    def best(self) -> TrialRecord | None:
        """The trial of least value, whatever its bits; None before one is complete."""
        return next(iter(self.complete), None)

    def twin_of(self, trial: TrialRecord) -> Measured | None:
        """Find what was measured before with the same weights, to the end; None where nothing was."""
        before = [*self.references, *(other for other in self.trials[: trial.number] if other.state == "COMPLETE")]
        equal = (other for other in before if other.fingerprint == trial.fingerprint)
        return None if trial.fingerprint is None else next(equal, None)

    @property
    def full_tokens(self) -> int:
        """Scored tokens of a trial that was measured to the end; 0 before one was."""
        return max((trial.tokens for trial in self.complete), default=0)

    @property
    def tokens_saved(self) -> float:
        """The share of tokens that pruning spared, of the trials that ended with a value; 0 before one is complete."""
        ended, full = [*self.complete, *self.pruned], self.full_tokens
        return 1 - sum(trial.tokens for trial in ended) / (full * len(ended)) if full else 0.0


def read_study(study: optuna.Study) -> StudyRecord:
    """What the storage knows of a study of ours now.

    Raises:
        InputError: If it is of another format.
    """
    attributes = study.user_attrs
    trials = study.get_trials(deepcopy=False)
    contract = stored_contract(attributes[CONTRACT], study.study_name)
    return StudyRecord(
        name=study.study_name,
        contract=contract,
        references=_measured(study, REFERENCES),
        trials=tuple(trial_record(trial, OBJECTIVES[contract.objective]) for trial in trials),
        confirmation=_stored(study, CONFIRMATION, Confirmation),
        refined=_stored(study, REFINED, RefinedConfirmation),
        retried=frozenset(trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs),
        search=decode_known(SearchMode, attributes.get(SEARCH, {}), f"how study {study.study_name!r} searches"),
        waterfall=_measured(study, WATERFALL),
        site_damages=_stored(study, SITE_DAMAGES, dict[str, float]) or {},
        predicted_kl=_stored(study, PREDICTED_KL, dict[str, float]) or {},
    )


def _stored(study: optuna.Study, name: str, kind: type[V]) -> V | None:
    stored = study.user_attrs.get(name)
    return None if stored is None else decode(kind, stored, f"the {name} of study {study.study_name!r}")


def read_references(study: optuna.Study) -> tuple[Measured, ...]:
    """What was measured beside the trials, as the storage knows it now."""
    return _measured(study, REFERENCES)


def _measured(study: optuna.Study, name: str) -> tuple[Measured, ...]:
    return _stored(study, name, tuple[Measured, ...]) or ()


def trial_record(trial: FrozenTrial, objective: Objective = PERPLEXITY) -> TrialRecord:
    """One trial of Optuna's, of a study that minimises `objective`, as a value.

    Raises:
        StoredValueError: If it is damaged.
    """
    stored = trial_attributes(trial)
    preset = stored.origin.startswith("preset ")
    value = value_of(trial) if trial.state.name == "COMPLETE" else None
    values = {"perplexity": stored.perplexity, "kl": stored.kl, objective.name: value}
    return TrialRecord(
        name=stored.origin.removeprefix("preset ") if preset else f"trial {trial.number}",
        setting=stored.setting,
        perplexity=values["perplexity"],
        result=stored.result,
        bits_per_weight=stored.bits_per_weight,
        model_bytes=stored.model_bytes,
        seconds=stored.seconds,
        size=stored.size,
        kl=values["kl"],
        flips=stored.flips,
        fingerprint=stored.fingerprint,
        number=trial.number,
        state=trial.state.name,
        params=trial.params,
        origin=stored.origin,
        outcome=stored.outcome,
        estimate=stored.estimate,
        reason=stored.reason,
        running=trial.intermediate_values,
        tokens=stored.tokens,
        started=trial.datetime_start.isoformat() if trial.datetime_start else None,
        finished=trial.datetime_complete.isoformat() if trial.datetime_complete else None,
        owner=stored.owner,
        beat=stored.beat,
        takeovers=stored.takeovers,
        versions=stored.versions,
        objective=objective,
    )
