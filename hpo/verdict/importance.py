"""Which hyperparameters mattered, and whether there are enough trials to say so.

Responsible for giving the shares twice where the bits vary - over everything, and at equal bits, since more bits
explain most of what is lost - and for saying so where there is too little to say. May assume that every trial was drawn
from the space.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import pvariance

from hpo.space.dimension import Dimension
from hpo.space.size_class import SIZE_CLASS_FIELDS, SizeClass
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from hpo.verdict.bootstrap import Share, evaluate

# With fewer, the best tenth that PED-ANOVA looks at is a single trial and a forest fits every trial by itself.
FEWEST_TRIALS = 10
# With fewer, intervals are too narrow: over 30 synthetic studies of 12 trials fANOVA's covered what 400 trials say of
# the two parameters that matter in 47 to 73 % of the cases, the mean's in 80 to 87 %; of 18 trials in 85 and 92 %.
FEW_TRIALS = 20
# Share of the variance of all values that the error of an estimate may be. On a table of 404 settings that hardly
# differ, studies of 40 trials found the leading parameter in all cases without such trials and in 80 % with them.
LARGEST_ERROR = 0.1


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much of the outcome each hyperparameter explains, each evaluator's shares adding up to 1.

    Attributes:
        scope: Over which trials: `all trials`, `group size 64`.
        complete: How many were measured to the end.
        pruned: How many were given up, and count with their estimates.
        ped_anova: What tells the best trials from all, by name of the field of a setting.
        fanova: Share of the variance of log perplexity, or of divergence, by the same names.
        mean: The two evaluators' average, largest first.
        reason: Why there are no numbers; None where there are.
    """

    scope: str
    complete: int
    pruned: int
    ped_anova: Mapping[str, Share] = field(default_factory=dict)
    fanova: Mapping[str, Share] = field(default_factory=dict)
    mean: Mapping[str, Share] = field(default_factory=dict)
    reason: str | None = None

    @property
    def trials(self) -> int:
        """Count the trials that the shares are over."""
        return self.complete + self.pruned

    @property
    def counted(self) -> str:
        """Put the number of trials into words: `38 trials (12 of them pruned, by their estimates)`."""
        if not self.pruned:
            return f"{self.trials} complete trials"
        return f"{self.trials} trials ({self.pruned} of them pruned, by their estimates)"

    @property
    def warning(self) -> str | None:
        """Say why the numbers do not show what matters most, as a sentence; None where they do, or there are none.

        Two shares of a whole move against each other, so their difference is about as unsure as both together, and
        intervals that overlap are the right test.
        """
        if not self.mean:
            return None
        lead, *others = self.mean
        rival = next((name for name in others if self.mean[name].high >= self.mean[lead].low), None)
        if rival is not None:
            return (
                f"The intervals of {lead} and {rival} overlap: {self.trials} trials are too few to say which matters "
                "more."
            )
        if self.trials < FEW_TRIALS:
            return f"Of {self.trials} trials only the first place, {lead}, is worth believing."
        return None


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Shares over all trials, and at equal bits; the latter None where the bits are fixed."""

    overall: Shares
    equal_size: Shares | None

    @property
    def scopes(self) -> list[Shares]:
        """List those that exist."""
        return [self.overall] if self.equal_size is None else [self.overall, self.equal_size]

    @property
    def deciding(self) -> Shares:
        """Return those to go by: at equal bits, as verdicts are."""
        return self.scopes[-1]


def importances(space: Space, trials: Sequence[TrialRecord]) -> Importances:
    """Compute the shares of the hyperparameters that vary, over complete trials and pruned ones of exact estimates.

    Without the pruned ones they would tell what matters among good settings only; where settings differ by less than
    estimates err, these are noise.
    """
    varied = space.dimensions
    parameters = {dimension.parameter for dimension in varied}
    valued = [trial for trial in trials if _has_value(trial) and parameters <= set(trial.params)]
    usable = sorted(valued, key=lambda trial: (_value(trial), trial.number))
    by_size = any(dimension.name in SIZE_CLASS_FIELDS for dimension in varied)
    return Importances(
        overall=_shares("all trials", usable, varied),
        equal_size=_at_equal_size(usable, varied) if by_size else None,
    )


def most_frequent_size_class(trials: Sequence[TrialRecord]) -> SizeClass | None:
    """Find the size class that most of `trials`, given best first, have; of equally frequent ones the better."""
    counts = Counter(trial.size_class for trial in trials if trial.size_class is not None)
    return max(counts, key=lambda size_class: counts[size_class], default=None)


def _at_equal_size(trials: Sequence[TrialRecord], varied: Sequence[Dimension]) -> Shares:
    size_classes = dict.fromkeys(trial.size_class for trial in trials)
    alike = ([trial for trial in trials if trial.size_class == size_class] for size_class in size_classes)
    exact = [trial for members in alike for trial in _exact_enough(members)]
    most_frequent = most_frequent_size_class(sorted(exact, key=lambda trial: (_value(trial), trial.number)))
    others = [dimension for dimension in varied if dimension.name not in SIZE_CLASS_FIELDS]
    scope = "equal bits" if most_frequent is None else str(most_frequent)
    return _shares(scope, [trial for trial in trials if trial.size_class == most_frequent], others)


def _shares(scope: str, trials: Sequence[TrialRecord], varied: Sequence[Dimension]) -> Shares:
    trials = _exact_enough(trials)
    complete = sum(trial.state == "COMPLETE" for trial in trials)
    pruned = len(trials) - complete
    reason = _too_little(scope, trials, varied)
    if reason is not None:
        return Shares(scope=scope, complete=complete, pruned=pruned, reason=reason)
    # Sorted, so that the order in which a space was written down moves no forest.
    ordered = sorted(varied, key=lambda dimension: dimension.parameter)
    space = tuple((dimension.parameter, dimension.numerical) for dimension in ordered)
    names = {dimension.parameter: dimension.name for dimension in varied}
    shares = evaluate(
        tuple(tuple(_place(dimension, trial) for dimension in ordered) for trial in trials),
        # In nats, so that one catastrophic perplexity does not explain all the variance.
        tuple(map(_nats, trials)),
        space,
    )
    return Shares(
        scope=scope,
        complete=complete,
        pruned=pruned,
        ped_anova=_renamed(shares.ped_anova, names),
        fanova=_renamed(shares.fanova, names),
        mean=dict(sorted(_renamed(shares.mean, names).items(), key=lambda entry: -entry[1].value)),
    )


def _place(dimension: Dimension, trial: TrialRecord) -> float:
    """A trial's parameter as a number: a choice is its place among the choices."""
    value = trial.params[dimension.parameter]
    return float(dimension.choices.index(value) if dimension.choices else value)


def _exact_enough(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Keep the complete trials, and those pruned ones whose estimates tell more than they err."""
    values = list(map(_nats, trials))
    most = LARGEST_ERROR * (pvariance(values) if values else 0.0)
    return [trial for trial in trials if trial.estimate is None or trial.estimate.variance <= most]


def _too_little(scope: str, trials: Sequence[TrialRecord], varied: Sequence[Dimension]) -> str | None:
    where = f"{scope[:1].upper()}{scope[1:]}"
    if len(varied) < 2:
        only = f"only {varied[0].name} varies" if varied else "no hyperparameter varies"
        return f"{where}: {only}, so there are no importances to compare."
    if len(trials) < FEWEST_TRIALS:
        return (
            f"{where}: {len(trials)} trials with a value or an estimate are too few for importances; it takes "
            f"{FEWEST_TRIALS}."
        )
    if len({_value(trial) for trial in trials}) == 1:
        return f"{where}: every trial has the same value, so no hyperparameter explains a difference."
    return None


def _renamed(shares: Mapping[str, Share], names: Mapping[str, str]) -> dict[str, Share]:
    return {names[parameter]: share for parameter, share in shares.items()}


def _has_value(trial: TrialRecord) -> bool:
    return 0 < _value(trial) < math.inf


def _value(trial: TrialRecord) -> float:
    """Return what a trial scored, or would probably have; NaN where neither is known."""
    if trial.state == "PRUNED" and trial.estimate is not None:
        return trial.estimate.value
    return math.nan if trial.value is None else trial.value


def _nats(trial: TrialRecord) -> float:
    return trial.objective.to_nats(_value(trial))
