"""The table of pruners, and what a study says of its own.

Responsible for the names that a person can choose. Adding a pruner is a module beside `paired` and its line in
`PRUNERS`.
"""

from dataclasses import dataclass

from hpo.search.pruners.none import Never
from hpo.search.pruners.optunas import HYPERBAND, MEDIAN, WILCOXON
from hpo.search.pruners.paired import Paired
from hpo.search.pruners.pruner import Pruner, Rule
from hpo.study.options import SearchOptions

PRUNERS: dict[str, Pruner] = {
    "paired": Paired(),
    "wilcoxon": WILCOXON,
    "median": MEDIAN,
    "hyperband": HYPERBAND,
    "none": Never(),
}
"""The pruners by name."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Rule):
    """Who gives trials up, and when it may.

    Attributes:
        name: `paired` compares with the incumbent on the same sequences; `wilcoxon`, `median` and `hyperband` are
            Optuna's; `none` gives nothing up.
    """

    name: str = SearchOptions.pruner

    def problems(self) -> list[str]:
        """List what makes it impossible, each in a few words."""
        unknown = [f"pruner {self.name!r} is unknown; choose one of {', '.join(PRUNERS)}"]
        return [*([] if self.name in PRUNERS else unknown), *super().problems()]

    @property
    def pruner(self) -> Pruner:
        """Return the pruner of that name."""
        return PRUNERS[self.name]
