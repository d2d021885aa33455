"""No pruner: every trial is measured to the end.

Responsible for nothing being given up; people still see running values.
"""

from optuna.pruners import BasePruner, NopPruner

from hpo.search.pruners.pruner import Case, Rule, running_value
from hpo.study.objective import Objective
from objectives.scoring import Score


class Never:
    """Gives nothing up."""

    def in_optuna(self, rule: Rule, sequences: int) -> BasePruner:
        """Make one that never prunes."""
        return NopPruner()

    def reports(self, look: Score, total: int, objective: Objective) -> dict[int, float]:
        """Report the running value, for people."""
        return running_value(look, objective)

    def should_prune(self, case: Case, rule: Rule) -> bool:
        """Let every trial go on."""
        return False
