"""The attributes of a study and of its trials, as workers write them into the database and everyone else reads them.

Responsible for their names and their types. May assume that others (Optuna, the dashboard, people) write attributes of
their own beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.study.estimate import Estimate
from hpo.study.owner import Owner
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.typed_json import decode_known

CONTRACT, REFERENCES, QUEUED, CONFIRMATION = "contract", "references", "queued", "confirmation"
SEARCH, WATERFALL, REFINED = "search", "waterfall", "refined"
SITE_DAMAGES, PREDICTED_KL = "site_damages", "predicted_kl"
SETTING, ORIGIN, OUTCOME, RESULT, ESTIMATE, REASON = "setting", "origin", "outcome", "result", "estimate", "reason"
BITS, BYTES, SIZE, PEAK = "bits_per_weight", "model_bytes", "size", "peak_bytes"
SECONDS, TOKENS = "seconds", "tokens"
PERPLEXITY, KL, FLIPS, FINGERPRINT = "perplexity", "kl", "flips", "fingerprint"
OWNER, VERSIONS, BEAT, TAKEOVERS = "owner", "versions", "beat", "takeovers"
RETRY_OF = "retry_of"


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life of the process that is at a trial.

    Attributes:
        count: How many there were.
        phase: What it is at: `quantizing`, `scoring`.
        done: How far that is.
        total: How far that goes.
        at: ISO time by its machine's clock.
    """

    count: int
    phase: str
    done: int
    total: int
    at: str


@dataclass(frozen=True, kw_only=True)
class TrialAttributes:
    """What is stored of a trial beside Optuna's own; a field is an attribute of that name.

    Attributes:
        setting: What is measured.
        origin: Where that came from: `preset balanced`, `start-up`, `gp`.
        owner: The process that works or worked on it.
        beat: Its last sign of life.
        takeovers: How often its worker died.
        versions: What its numbers may depend on.
        outcome: How the measurement ended.
        reason: Why it failed.
        result: Key of its values per sequence in the result store.
        estimate: Of a pruned trial.
        bits_per_weight: Over the decoder blocks' weights.
        model_bytes: Of the whole model.
        size: What the bytes are spent on.
        peak_bytes: Most memory that was taken.
        seconds: Per phase.
        tokens: Scored tokens that were evaluated for it.
        perplexity: On all tuning text; None where only Optuna's value has it.
        kl: Divergence from full precision on all tuning text, nats per token.
        flips: Percent of targets before which full precision holds another token most likely.
        fingerprint: Of its quantized weights: trials with equal ones are equal.
        retry_of: Of a trial that repeats a failed one: that one's number; the failed one counts no more.
    """

    setting: Setting | None = None
    origin: str = "sampler"
    owner: Owner | None = None
    beat: Beat | None = None
    takeovers: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    outcome: str | None = None
    reason: str | None = None
    result: str | None = None
    estimate: Estimate | None = None
    bits_per_weight: float | None = None
    model_bytes: int | None = None
    size: ModelSize | None = None
    peak_bytes: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    perplexity: float | None = None
    kl: float | None = None
    flips: float | None = None
    fingerprint: str | None = None
    retry_of: int | None = None


def value_of(trial: FrozenTrial) -> float | None:
    """Return a trial's value; None where it has none.

    On a front Optuna has the bytes of the model before it, so that both are minimised.
    """
    return trial.values[-1] if trial.values else None


def trial_attributes(trial: FrozenTrial) -> TrialAttributes:
    """Read the attributes of one trial.

    Raises:
        StoredValueError: Naming one that is of another type.
    """
    return decode_known(TrialAttributes, trial.user_attrs, f"trial {trial.number}")


def write_failure(storage: BaseStorage, trial_id: int, outcome: str, reason: str) -> None:
    """End a trial without a value.

    Raises:
        UpdateFinishedTrialError: If it had ended already.
    """
    storage.set_trial_user_attr(trial_id, OUTCOME, outcome)
    storage.set_trial_user_attr(trial_id, REASON, reason)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
