"""The figures of plans as pictures, drawn by matplotlib: bits and damage by block and role, the hypervolume.

Responsible for drawing `PlanData` on white paper. May assume that captions say which figures can be drawn.
"""

from matplotlib.figure import Figure

from hpo.report import palette
from hpo.report.charts import ChartData
from hpo.report.palette import ROUNDINGS
from hpo.report.sheet import blank, heatmap, with_legend


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


def additivity(data: ChartData) -> Figure:
    """Draw measured against predicted divergence of every plan, with intervals."""
    assert data.plans is not None
    figure, axes = blank("KL, predicted, nats per token", "KL, measured, nats per token")
    for alike, (name, colour, symbol) in ROUNDINGS.items():
        members = [plan for plan in data.plans.predictions if plan.alike == alike]
        if members:
            axes.errorbar(
                [plan.predicted for plan in members],
                [plan.measured.value for plan in members],
                yerr=[plan.measured.high - plan.measured.value for plan in members],
                fmt=symbol[1],
                color=colour,
                elinewidth=0.8,
                markersize=5,
                label=name,
            )
    predicted = data.plans.predictions[0].predicted
    axes.axline((predicted, predicted), slope=1, linestyle="--", color=palette.GREY, linewidth=1, label="equal")
    axes.margins(0.1)
    return with_legend(figure, axes)


def volume(data: ChartData) -> Figure:
    """Draw the hypervolume after each trial."""
    assert data.plans is not None
    figure, axes = blank("trial", "hypervolume, nats times bits")
    numbers, volumes = zip(*data.plans.volume, strict=True)
    axes.step(numbers, volumes, where="post", color=palette.BEST, marker="o", markersize=4)
    return figure
