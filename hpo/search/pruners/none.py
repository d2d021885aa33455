"""No pruner: every trial is measured to the end.

Responsible for nothing being given up; people still see running values.
"""

from optuna.pruners import BasePruner, NopPruner

from hpo.search.pruners.pruner import Case, Rule, running_perplexity
from objectives.scoring import Score


class Never:
    """Gives nothing up."""

    def in_optuna(self, rule: Rule, sequences: int) -> BasePruner:
        """Make one that never prunes."""
        return NopPruner()

    def reports(self, look: Score, total: int) -> dict[int, float]:
        """Report the running perplexity, for people."""
        return running_perplexity(look)

    def should_prune(self, case: Case, rule: Rule) -> bool:
        """Let every trial go on."""
        return False
