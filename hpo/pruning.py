"""Is a trial worth its next sequences?

Responsible for the paired pruner, for handing looks to Optuna's pruners, and for what a pruned trial would probably
have scored. May assume that all trials are scored on the same sequences in the same order.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from scipy import stats

from hpo.record import Estimate
from objectives.paired import paired_difference
from objectives.scoring import FIRST_LOOK, Score, look_sizes

PrunerName = Literal["paired", "wilcoxon", "median", "hyperband", "none"]
PRUNERS: tuple[PrunerName, ...] = ("paired", "wilcoxon", "median", "hyperband", "none")
# Chance, over all looks of a trial together, of giving up one that is as good as the incumbent.
PAIRED_ERROR = 0.02
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best completed trial that a running one may be compared with: the same footprint, hence equal bits."""

    number: int
    score: Score


@dataclass(frozen=True, kw_only=True)
class Lag:
    """How far a partly measured trial is behind the incumbent on the same sequences, in nats per token.

    Attributes:
        value: Mean difference; negative when the trial is ahead.
        standard_error: Of `value` as an estimate of the difference on all sequences.
        degrees: Of freedom of that error.
    """

    value: float
    standard_error: float
    degrees: int


def lag(look: Score, incumbent: Score, clusters: Sequence[int]) -> Lag:
    """Compare the sequences that both have.

    The sequences are a sample without replacement of a finite set, the tuning text, and it is the difference on that
    set that decides which trial is best: its error shrinks to zero as the set is read (finite-population correction,
    Cochran, Sampling Techniques, 3rd ed., section 2.6). Nowhere else is that correction right.

    Args:
        look: The trial's first sequences.
        incumbent: All of the incumbent's.
        clusters: For each sequence the document it comes from.
    """
    count = len(look.nll)
    difference = paired_difference(look, incumbent.first(count), clusters[:count])
    read = float(look.tokens.sum() / incumbent.tokens.sum())
    return Lag(
        value=difference.value,
        standard_error=difference.standard_error * math.sqrt(max(0.0, 1 - read)),
        degrees=max(1, difference.clusters - 1),
    )


def is_hopeless(look: Score, incumbent: Score, clusters: Sequence[int], error: float = PAIRED_ERROR) -> bool:
    """Whether a trial may be given up after a look.

    Either it has already lost more than the incumbent lost on all text (no NLL is negative, so this is certain), or it
    is behind by more than chance explains at this look's part of the error, which all looks share equally.
    """
    if float(look.nll.sum()) > float(incumbent.nll.sum()):
        return True
    behind = lag(look, incumbent, clusters)
    if not math.isfinite(behind.standard_error):
        return False
    looks = max(1, len(look_sizes(len(incumbent.nll))) - 1)
    return behind.value > float(stats.t.isf(error / looks, behind.degrees)) * behind.standard_error


def estimate(look: Score, incumbent: Incumbent, clusters: Sequence[int]) -> Estimate:
    """The perplexity that a pruned trial would have on all text: the incumbent's, moved by the lag.

    Far more exact than the trial's own running mean, because text that is hard for one setting is hard for all.
    """
    behind = lag(look, incumbent.score, clusters)
    middle = incumbent.score.mean_nll + behind.value
    reach = 0.0
    if behind.standard_error > 0:
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, behind.degrees)) * behind.standard_error
    return Estimate(
        perplexity=math.exp(middle),
        low=math.exp(middle - reach),
        high=math.exp(min(middle + reach, 700.0)),
        against=incumbent.number,
    )


def optuna_pruner(name: PrunerName, sequences: int) -> BasePruner:
    """Optuna's pruner of that name for trials of so many sequences; for `paired` one that never prunes."""
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=FIRST_LOOK)
    if name == "hyperband":
        return HyperbandPruner(min_resource=FIRST_LOOK, max_resource=max(sequences, FIRST_LOOK + 1))
    if name == "wilcoxon":
        with warnings.catch_warnings():
            # It was asked for by name: that Optuna may still change it is no news.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=0.1)
    return NopPruner()


def reports(name: PrunerName, look: Score) -> dict[int, float]:
    """What Optuna is told of a look: the running perplexity by the number of sequences.

    Its Wilcoxon pruner compares trials sequence by sequence; for it every sequence is reported on its own.
    """
    if name != "wilcoxon":
        return {len(look.nll): look.perplexity}
    return {index: math.exp(min(float(value), 700.0)) for index, value in enumerate(look.nll / look.tokens)}
