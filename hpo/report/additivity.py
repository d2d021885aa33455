"""Whether predicted damages add up, as numbers: what plans were predicted to diverge, and what was measured.

Responsible for what is drawn and said of it. May assume a ranked study; trials that were given up are left out, because
they read a part of the text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from scipy.stats import norm, spearmanr

from hpo.study.record import TrialRecord
from hpo.verdict.ranking import Ranked
from hpo.verdict.snapshot import Study
from hpo.workers.planning import probe
from objectives.paired import Difference

FEWEST = 10
"""Plans below which a rank correlation is not told."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One plan that was measured to the end, in nats per token of divergence.

    Attributes:
        name: Of its trial.
        predicted: Sum over its sites.
        measured: On the tuning text, with a 95 % interval.
        alike: Whether its recipe rounds as the one does by which sites were measured.
    """

    name: str
    predicted: float
    measured: Difference
    alike: bool

    @property
    def text(self) -> str:
        """Write it as `trial 7: predicted 0.0172, measured 0.0204 ±0.0011`."""
        reach = self.measured.high - self.measured.value
        return f"{self.name}: predicted {self.predicted:.4f}, measured {self.measured.value:.4f} ±{reach:.4f}"


def predictions(study: Study) -> tuple[Prediction, ...]:
    """Collect the plans of a study whose divergence was predicted and measured, those of few bits first."""
    rows = (row for ranking in study.rankings for row in ranking.rows)
    return tuple(prediction for row in rows for prediction in _prediction(study, row))


def agreement(plans: Sequence[Prediction]) -> str:
    """Say in one or two sentences how far predictions can be believed.

    The interval of Spearman's rank correlation is that of Bonett and Wright (2000, Psychometrika 65): Fisher's
    transformation with the variance `(1 + r^2 / 2) / (n - 3)`.
    """
    if not plans:
        return "No plan rounds as the recipe that sites were measured by."
    ratios = sorted(plan.measured.value / plan.predicted for plan in plans if plan.predicted > 0)
    level = (
        f"Measured is {median(ratios):.2f} times predicted in the middle, {ratios[0]:.2f} to {ratios[-1]:.2f} in all."
        if ratios
        else "Nothing was predicted to be lost."
    )
    correlation = rank_correlation(plans)
    if correlation is None:
        return f"{level} {len(plans)} plans are too few, or too much alike, to tell whether the ranks agree."
    value, low, high = correlation
    return f"{level} The rank correlation over {len(plans)} plans is {value:.3f} [{low:.3f}, {high:.3f}]."


def rank_correlation(plans: Sequence[Prediction]) -> tuple[float, float, float] | None:
    """Return Spearman's coefficient with its 95 % interval; None of fewer than `FEWEST`, or where nothing differs."""
    predicted = [plan.predicted for plan in plans]
    if len(plans) < FEWEST or len(set(predicted)) < 2:
        return None
    value = float(spearmanr(predicted, [plan.measured.value for plan in plans]).statistic)
    if not math.isfinite(value):
        return None
    if abs(value) == 1:
        return value, value, value
    reach = float(norm.ppf(0.975)) * math.sqrt((1 + value**2 / 2) / (len(plans) - 3))
    return value, math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)


def _prediction(study: Study, row: Ranked) -> Iterator[Prediction]:
    trial, divergence, record = row.measured, row.kl, study.record
    if not isinstance(trial, TrialRecord) or trial.setting is None or divergence is None:
        return
    predicted = record.predicted_kl.get(str(trial.number))
    if predicted is None or not math.isfinite(divergence.high):
        return
    measured_recipe = probe(record.contract.space, trial.setting.symmetric)
    alike = trial.setting.rounding == measured_recipe.rounding
    yield Prediction(name=trial.name, predicted=predicted, measured=divergence, alike=alike)
