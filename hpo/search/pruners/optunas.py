"""Optuna's pruners: what they are told of a look, and how they are made.

Responsible for handing them what they can compare. They know no size classes and no sequences but those they are told.
"""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, WilcoxonPruner

from hpo.search.pruners.pruner import Case, Rule, running_value
from hpo.study.objective import Objective
from objectives.scoring import Score

# Of a trial, in the storage: dashboards read all of them every few seconds.
MOST_POINTS = 32


@dataclass(frozen=True, kw_only=True)
class FromOptuna:
    """One of Optuna's pruners.

    Attributes:
        make: By the rule and the number of sequences of a whole trial.
        values: What it is told of a look, of so many sequences in all, for an objective.
    """

    make: Callable[[Rule, int], BasePruner]
    values: Callable[[Score, int, Objective], dict[int, float]] = lambda look, total, objective: running_value(
        look, objective
    )

    def in_optuna(self, rule: Rule, sequences: int) -> BasePruner:
        """Make the pruner itself."""
        return self.make(rule, sequences)

    def reports(self, look: Score, total: int, objective: Objective) -> dict[int, float]:
        """Report what it compares."""
        return self.values(look, total, objective)

    def should_prune(self, case: Case, rule: Rule) -> bool:
        """Ask Optuna."""
        return case.optuna_prunes()


def pieces(look: Score, total: int, objective: Objective) -> dict[int, float]:
    """Compute values of the sequences in their order, for a pruner that compares trials piece by piece.

    Each is on its own, or several together where there are more than a dashboard can bear, under the number of
    sequences that were read then.

    Args:
        look: The first sequences.
        total: Sequences of a whole trial.
        objective: What is a value.
    """
    size = math.ceil(total / MOST_POINTS)
    starts = [start for start in range(0, total, size) if min(start + size, total) <= len(look.nll)]
    parts = [look.part(start, start + size) for start in starts]
    ends = [min(start + size, total) for start in starts]
    return {end: min(objective.value(part), sys.float_info.max) for end, part in zip(ends, parts, strict=True)}


def _median(rule: Rule, sequences: int) -> BasePruner:
    return MedianPruner(n_startup_trials=5, n_warmup_steps=rule.first_look)


def _hyperband(rule: Rule, sequences: int) -> BasePruner:
    return HyperbandPruner(min_resource=rule.first_look, max_resource=max(sequences, rule.first_look + 1))


def _wilcoxon(rule: Rule, sequences: int) -> BasePruner:
    with warnings.catch_warnings():
        # It was asked for by name: that Optuna may still change it is no news.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return WilcoxonPruner(p_threshold=0.1)


MEDIAN, HYPERBAND = FromOptuna(make=_median), FromOptuna(make=_hyperband)
WILCOXON = FromOptuna(make=_wilcoxon, values=pieces)
