"""The figures of plans on a report's page, in plotly: bits and damage by block and role, the hypervolume.

Responsible for drawing `PlanData`. May assume that captions say which figures can be drawn.
"""

import plotly.graph_objects as go

from hpo.report import palette
from hpo.report.canvas import blank, heatmap
from hpo.report.charts import ChartData
from hpo.report.palette import ROUNDINGS

Panels = list[tuple[str, go.Figure]]


def stored(data: ChartData) -> Panels:
    """Draw the bits of every Linear."""
    assert data.plans is not None
    assert data.plans.bits is not None
    bits = data.plans.bits
    return [("", heatmap(bits, "bits", (min(bits.numbers), max(bits.numbers)), ":.3f"))]


def contributed(data: ChartData) -> Panels:
    """Draw the predicted damage of every site."""
    assert data.plans is not None
    assert data.plans.damages is not None
    damages = data.plans.damages
    return [("", heatmap(damages, "nats", (0.0, max(damages.numbers)), ":.2g"))]


def additivity(data: ChartData) -> Panels:
    """Draw measured against predicted divergence of every plan, with intervals."""
    assert data.plans is not None
    figure = blank("KL, predicted, nats per token", "KL, measured, nats per token")
    for alike, (name, colour, symbol) in ROUNDINGS.items():
        members = [plan for plan in data.plans.predictions if plan.alike == alike]
        if members:
            figure.add_scatter(
                x=[plan.predicted for plan in members],
                y=[plan.measured.value for plan in members],
                mode="markers",
                marker={"color": colour, "symbol": symbol[0], "size": 9},
                error_y={
                    "array": [plan.measured.high - plan.measured.value for plan in members],
                    "thickness": 1,
                    "width": 2,
                },
                text=[plan.text for plan in members],
                hovertemplate="%{text}<extra></extra>",
                name=name,
            )
    predicted = [plan.predicted for plan in data.plans.predictions]
    ends = [min(predicted), max(predicted)]
    dashed = {"dash": "dash", "color": palette.GREY, "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=dashed, name="equal", hoverinfo="skip")
    return [("", figure)]


def volume(data: ChartData) -> Panels:
    """Draw the hypervolume after each trial."""
    assert data.plans is not None
    numbers, volumes = zip(*data.plans.volume, strict=True)
    figure = blank("trial", "hypervolume, nats times bits")
    figure.add_scatter(
        x=numbers, y=volumes, mode="lines+markers", line={"shape": "hv", "color": palette.BEST}, name="hypervolume"
    )
    return [("", figure)]
