"""Parallel coordinates as numbers: one line per complete trial across the hyperparameters, and the axes' ticks.

Responsible for heights and shades that the page and its pictures share. May assume that at least two axes vary and
one trial is complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpo.report.charts import ChartData, shown_up_to

SHADES = 10


@dataclass(frozen=True, kw_only=True)
class Line:
    """One trial: a height in [0, 1] per axis, the value last, and its shade: 0 is the best."""

    text: str
    heights: tuple[float, ...]
    shade: int


def parallel_lines(data: ChartData) -> list[Line]:
    """Draw up a line for each complete trial; outliers end at the upper edge of the last axis."""
    low, high = _ends([point.value for point in data.measured])
    lines = []
    for point in data.measured:
        share = min(1.0, (point.value - low) / (high - low)) if high > low else 0.0
        lines.append(
            Line(
                text=f"{point.name}: {data.objective.number(point.value)}<br>{point.text}",
                heights=(*(axis.fraction(point.values[axis.name]) for axis in data.axes), share),
                shade=min(SHADES - 1, int(share * SHADES)),
            )
        )
    return lines


def parallel_ticks(data: ChartData) -> list[dict[str, float]]:
    """Find, for every axis, the value last, the heights of the values worth naming."""
    low, high = _ends([point.value for point in data.measured])
    beyond = max(point.value for point in data.measured) > high
    last = {data.objective.number(low): 0.0, f"{'≥ ' if beyond else ''}{data.objective.number(high)}": 1.0}
    return [*({axis.text(tick): axis.fraction(tick) for tick in axis.ticks} for axis in data.axes), last]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), shown_up_to(values)
