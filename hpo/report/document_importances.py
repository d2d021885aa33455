"""What mattered in a study as data for programs: shares of hyperparameters, field by field.

Responsible for the names and the types of what is printed of importances; docs/study-json.md describes each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpo.verdict.importance import Importances, Shares


@dataclass(frozen=True, kw_only=True)
class PrintedShares:
    """How much of the outcome each hyperparameter explains."""

    scope: str
    trials: int
    complete: int
    pruned: int
    ped_anova: Mapping[str, float]
    fanova: Mapping[str, float]
    mean: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, ...]]]
    warning: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class PrintedImportances:
    """Shares over all trials, and at equal bits."""

    overall: PrintedShares
    equal_group_size: PrintedShares | None


def printed_importances(importances: "Importances") -> PrintedImportances:
    """Collect what mattered."""
    equal = importances.equal_size
    return PrintedImportances(
        overall=_shares(importances.overall), equal_group_size=None if equal is None else _shares(equal)
    )


def _shares(shares: "Shares") -> PrintedShares:
    by_evaluator = {"ped_anova": shares.ped_anova, "fanova": shares.fanova, "mean": shares.mean}
    values = {key: {name: share.value for name, share in by_name.items()} for key, by_name in by_evaluator.items()}
    return PrintedShares(
        scope=shares.scope,
        trials=shares.trials,
        complete=shares.complete,
        pruned=shares.pruned,
        ped_anova=values["ped_anova"],
        fanova=values["fanova"],
        mean=values["mean"],
        intervals={
            key: {name: (share.low, share.high) for name, share in by_name.items()}
            for key, by_name in by_evaluator.items()
        },
        warning=shares.warning,
        reason=shares.reason,
    )
