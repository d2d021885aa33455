"""The door for whoever can give trials up: when it is asked, what it may ask, and what it must answer.

Responsible for the words that pruners and the worker share. May assume that all trials are scored on the same sequences
in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from optuna.pruners import BasePruner

from hpo.search.incumbent import Incumbent
from hpo.study.objective import Objective
from hpo.study.options import SearchOptions
from objectives.errors import InputError
from objectives.scoring import Score, look_sizes


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When trials are judged, and how often wrongly they may be.

    Attributes:
        error: Of `paired`: the chance, over all looks of a trial together, of giving up one that is as good as the
            incumbent.
        first_look: Sequences after which a trial is judged first; from there on their number doubles.
    """

    error: float = SearchOptions.prune_error
    first_look: int = SearchOptions.first_look

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise InputError("; ".join(problems))

    def problems(self) -> list[str]:
        """List what makes it impossible, each in a few words."""
        problems = []
        if not 0 < self.error < 0.5:
            problems.append(f"--prune-error {self.error:g} is not between 0 and 0.5")
        if self.first_look < 2:
            problems.append(f"--first-look {self.first_look} is not at least 2")
        return problems

    def looks(self, read: int) -> list[int]:
        """List after how many sequences a trial that read so many was, or is, judged."""
        return look_sizes(read, self.first_look)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trial at a look.

    Attributes:
        look: Its first sequences.
        incumbent: Finds the best completed trial that it may be compared with; costs time in large studies.
        optuna_prunes: Asks the pruner that Optuna was given, which has heard what `reports` gives of this look.
    """

    look: Score
    incumbent: Callable[[], Incumbent | None]
    optuna_prunes: Callable[[], bool]


class Pruner(Protocol):
    """Gives trials up."""

    def in_optuna(self, rule: Rule, sequences: int) -> BasePruner:
        """Make the pruner that Optuna's study is given.

        Args:
            rule: When trials are judged.
            sequences: Of a whole trial.
        """
        ...

    def reports(self, look: Score, total: int, objective: Objective) -> dict[int, float]:
        """Say what Optuna, and whoever watches, is told of a look: values by the number of sequences that were read.

        Args:
            look: The first sequences.
            total: Sequences of a whole trial.
            objective: What is a value.
        """
        ...

    def should_prune(self, case: Case, rule: Rule) -> bool:
        """Decide whether a trial ends here."""
        ...


def running_value(look: Score, objective: Objective) -> dict[int, float]:
    """Return the value so far, by the number of sequences."""
    return {len(look.nll): objective.value(look)}
