"""The figures of plans as pictures, drawn by matplotlib: bits and damage by block and role, the hypervolume.

Responsible for drawing `PlanData` on white paper. May assume that captions say which figures can be drawn.
"""

from matplotlib.figure import Figure

from hpo.report import palette
from hpo.report.charts import ChartData
from hpo.report.sheet import blank, heatmap


def stored(data: ChartData) -> Figure:
    """Draw the bits of every Linear."""
    assert data.plans is not None
    assert data.plans.bits is not None
    return heatmap(data.plans.bits, "bits", (min(data.plans.bits.numbers), max(data.plans.bits.numbers)))


def contributed(data: ChartData) -> Figure:
    """Draw the predicted damage of every site."""
    assert data.plans is not None
    assert data.plans.damages is not None
    return heatmap(data.plans.damages, "nats", (0.0, max(data.plans.damages.numbers)))


def volume(data: ChartData) -> Figure:
    """Draw the hypervolume after each trial."""
    assert data.plans is not None
    figure, axes = blank("trial", "hypervolume, nats times bits")
    numbers, volumes = zip(*data.plans.volume, strict=True)
    axes.step(numbers, volumes, where="post", color=palette.BEST, marker="o", markersize=4)
    return figure
