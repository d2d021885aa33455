"""The paired pruner: is a trial behind the best of its size class, on the same sequences, by more than chance?

Responsible for what a look's part of the error is. May assume that looks of a trial come in their order.
"""

import math

from optuna.pruners import BasePruner, NopPruner
from scipy import stats

from hpo.search.incumbent import Incumbent, moderated_paired_difference
from hpo.search.pruners.pruner import Case, Rule, running_value
from hpo.study.objective import Objective
from objectives.scoring import Score


class Paired:
    """Compares with the incumbent; where there is none yet, every trial goes on."""

    def in_optuna(self, rule: Rule, sequences: int) -> BasePruner:
        """Make one that never prunes: Optuna knows no sequences to compare."""
        return NopPruner()

    def reports(self, look: Score, total: int, objective: Objective) -> dict[int, float]:
        """Report the running value, for people."""
        return running_value(look, objective)

    def should_prune(self, case: Case, rule: Rule) -> bool:
        """Decide whether the trial is hopeless beside the incumbent."""
        incumbent = case.incumbent()
        return incumbent is not None and is_hopeless(case.look, incumbent, rule)


def is_hopeless(look: Score, incumbent: Incumbent, rule: Rule) -> bool:
    """Decide whether a trial may be given up after a look.

    Either it has already lost more than the incumbent lost on all text (no NLL and no divergence is negative, so this
    is certain), or it is behind by more than chance explains at this look's part of the error, which all looks share
    equally.
    """
    measure = incumbent.objective.measure
    if float(look.of(measure).sum()) > float(incumbent.score.of(measure).sum()):
        return True
    difference = moderated_paired_difference(look, incumbent)
    if not math.isfinite(difference.standard_error):
        return False
    looks = max(1, len(rule.looks(len(incumbent.score.nll))) - 1)
    critical = float(stats.t.isf(rule.error / looks, difference.degrees))
    return difference.value > critical * difference.standard_error
