"""What the scale search chose in each layer of the best trial, by depth and role.

Responsible for laying out the values of a stored result. May assume that a Linear's result says which block it
belongs to and what that uses it for.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo.study.record import TrialRecord
from objectives.model.layouts import WHOLE
from objectives.quantized_blocks import LayerResult
from objectives.results import load_result
from storage.errors import DamagedEntryError
from storage.results import ResultStore

log = logging.getLogger(__name__)

ROLES = list(dict.fromkeys(WHOLE.values()))


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """One number per role and depth; None where a block has no such Linear or the number says nothing."""

    roles: tuple[str, ...]
    depths: tuple[int, ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def numbers(self) -> list[float]:
        """List every number."""
        return [value for row in self.values for value in row if value is not None]


@dataclass(frozen=True, kw_only=True)
class LayerChoices:
    """The best trial's layers.

    Attributes:
        alpha: The exponents that were chosen.
        reduction: Percent of nearest rounding's loss that the choice avoids.
        remaining: Percent of the loss that remains in all Linears together.
        reason: Why there are none; None where there are.
    """

    alpha: LayerMap | None = None
    reduction: LayerMap | None = None
    remaining: LayerMap | None = None
    reason: str | None = None


def layer_choices(best: TrialRecord | None, store: ResultStore) -> LayerChoices:
    """Read what the search of the best trial chose from its kept result."""
    if best is None:
        return LayerChoices(reason="no trial is complete")
    if best.setting is not None and best.setting.definition.salience is None:
        return LayerChoices(reason=f"{best.setting.method} searches no exponent")
    try:
        layers = load_result(store, best.result).layers if best.result is not None else []
    except DamagedEntryError as error:
        log.warning("the report has no layers of %s: %s", best.name, error)
        return LayerChoices(reason=f"the kept result of {best.name} is damaged or missing")
    if not layers:
        return LayerChoices(reason=f"the layers of {best.name} were not kept")
    total = sum(layer.final_loss for layer in layers)
    return LayerChoices(
        alpha=map_layers(layers, lambda layer: layer.alpha),
        reduction=map_layers(layers, _reduction),
        remaining=map_layers(layers, lambda layer: 100 * layer.final_loss / total) if 0 < total < math.inf else None,
    )


def share_ends(layer_map: LayerMap) -> tuple[float, float]:
    """Find the ends of a logarithmic scale for shares: what is a thousandth of the largest no longer matters."""
    return max(layer_map.numbers) / 1000, max(layer_map.numbers)


def _reduction(layer: LayerResult) -> float | None:
    return 100 * (1 - layer.final_loss / layer.nearest_loss) if layer.nearest_loss > 0 else None


def map_layers(layers: Sequence[LayerResult], value: Callable[[LayerResult], float | None]) -> LayerMap:
    """Lay out one number of every Linear by depth and role."""
    cells = {(layer.depth, layer.role): value(layer) for layer in layers}
    depths = tuple(sorted({depth for depth, _ in cells}))
    present = dict.fromkeys(role for _, role in cells)
    roles = tuple(sorted(present, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES)))
    values = tuple(tuple(cells.get((depth, role)) for depth in depths) for role in roles)
    return LayerMap(roles=roles, depths=depths, values=values)
