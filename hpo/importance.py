"""Which hyperparameters mattered: PED-ANOVA and fANOVA over the complete trials.

Responsible for giving the shares twice where the bits vary - over everything, and at equal bits, since more bits
explain most of a perplexity - and for saying so where there is too little to say. May assume that every trial was drawn
from `distributions`.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState, create_trial

from hpo.footprint import FOOTPRINT_FIELDS, Footprint
from hpo.record import StudyRecord, TrialRecord

# With fewer, the best tenth that PED-ANOVA looks at is a single trial and a forest fits every trial by itself.
FEWEST_TRIALS = 10
# PED-ANOVA asks what the best trials have in common. A tenth of few trials is chance: over 40 synthetic studies of 20
# trials with one parameter that matters out of four, it came first in 62 % with 2 best trials and in all with 6.
BEST_SHARE, FEWEST_BEST, MOST_BEST_SHARE = 0.1, 6, 0.5
SEED = 0
EXPONENT = "log2_"


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much of the outcome each hyperparameter explains, each evaluator's shares adding up to 1.

    Attributes:
        scope: Over which trials: `all trials`, `group size 64`.
        trials: How many complete ones.
        ped_anova: What tells the best trials from all, by name of the field of a setting.
        fanova: Share of the variance of log perplexity, by the same names.
        reason: Why there are no numbers; None where there are.
    """

    scope: str
    trials: int
    ped_anova: Mapping[str, float] = field(default_factory=dict)
    fanova: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    @property
    def mean(self) -> dict[str, float]:
        """The two evaluators' average, largest first."""
        average = {name: (share + self.fanova[name]) / 2 for name, share in self.ped_anova.items()}
        return dict(sorted(average.items(), key=lambda entry: -entry[1]))

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return {
            "scope": self.scope,
            "trials": self.trials,
            "ped_anova": dict(self.ped_anova),
            "fanova": dict(self.fanova),
            "mean": self.mean,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Shares over all trials, and at equal bits; the latter None where the bits are fixed."""

    overall: Shares
    equal_size: Shares | None

    @property
    def scopes(self) -> list[Shares]:
        """Those that exist."""
        return [self.overall] if self.equal_size is None else [self.overall, self.equal_size]

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        equal = None if self.equal_size is None else self.equal_size.as_dict()
        return {"overall": self.overall.as_dict(), "equal_group_size": equal}


def importances(record: StudyRecord, distributions: Mapping[str, BaseDistribution]) -> Importances:
    """Shares of the hyperparameters that vary, over the study's complete trials.

    Args:
        record: The study.
        distributions: Of Optuna's parameters, by their names.
    """
    varied = {name: one for name, one in distributions.items() if not one.single()}
    usable = [trial for trial in record.complete if _finite(trial) and set(varied) <= set(trial.params)]
    by_size = any(decoded_name(name) in FOOTPRINT_FIELDS for name in varied)
    return Importances(
        overall=_shares("all trials", usable, varied),
        equal_size=_at_equal_size(usable, varied) if by_size else None,
    )


def decoded_name(parameter: str) -> str:
    """The field of a setting that one of Optuna's parameters stands for."""
    return parameter.removeprefix(EXPONENT)


def usual_footprint(trials: Sequence[TrialRecord]) -> Footprint | None:
    """The footprint that most of `trials`, given best first, have; of equally frequent ones the better."""
    found = Counter(trial.footprint for trial in trials if trial.footprint is not None)
    return max(found, key=lambda one: found[one], default=None)


def _at_equal_size(trials: Sequence[TrialRecord], varied: Mapping[str, BaseDistribution]) -> Shares:
    usual = usual_footprint(trials)
    others = {name: one for name, one in varied.items() if decoded_name(name) not in FOOTPRINT_FIELDS}
    scope = "equal bits" if usual is None else str(usual)
    return _shares(scope, [trial for trial in trials if trial.footprint == usual], others)


def _shares(scope: str, trials: Sequence[TrialRecord], varied: Mapping[str, BaseDistribution]) -> Shares:
    reason = _too_little(scope, trials, varied)
    if reason is not None:
        return Shares(scope=scope, trials=len(trials), reason=reason)
    best = min(MOST_BEST_SHARE, max(BEST_SHARE, FEWEST_BEST / len(trials)))
    with _quiet_optuna():
        study = _study(trials, varied)
        return Shares(
            scope=scope,
            trials=len(trials),
            ped_anova=_evaluated(study, PedAnovaImportanceEvaluator(target_quantile=best), varied),
            fanova=_evaluated(study, FanovaImportanceEvaluator(seed=SEED), varied),
        )


def _too_little(scope: str, trials: Sequence[TrialRecord], varied: Mapping[str, BaseDistribution]) -> str | None:
    where = f"{scope[:1].upper()}{scope[1:]}"
    if len(varied) < 2:
        only = f"only {decoded_name(*varied)} varies" if varied else "no hyperparameter varies"
        return f"{where}: {only}, so there are no importances to compare."
    if len(trials) < FEWEST_TRIALS:
        return f"{where}: {len(trials)} complete trials are too few for importances; it takes {FEWEST_TRIALS}."
    if len({trial.perplexity for trial in trials}) == 1:
        return f"{where}: every complete trial has the same perplexity, so no hyperparameter explains a difference."
    return None


def _study(trials: Sequence[TrialRecord], varied: Mapping[str, BaseDistribution]) -> optuna.Study:
    """The trials with log perplexity as value, so that one catastrophic setting does not explain all the variance."""
    study = optuna.create_study(direction="minimize")
    for trial in trials:
        assert trial.perplexity is not None
        params = {name: trial.params[name] for name in varied}
        value = math.log(trial.perplexity)
        study.add_trial(create_trial(state=TrialState.COMPLETE, params=params, distributions=dict(varied), value=value))
    return study


def _evaluated(
    study: optuna.Study, evaluator: BaseImportanceEvaluator, varied: Mapping[str, BaseDistribution]
) -> dict[str, float]:
    found = get_param_importances(study, evaluator=evaluator, params=list(varied))
    return {decoded_name(name): float(found[name]) for name in varied}


def _finite(trial: TrialRecord) -> bool:
    return trial.perplexity is not None and 0 < trial.perplexity < math.inf


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """No notice of the study in memory, and none of experimental evaluators; afterwards everything as it was."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Target and region quantiles", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
