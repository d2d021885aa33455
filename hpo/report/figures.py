"""The figures of a report's page, interactive, in plotly.

Responsible for drawing `ChartData`. May assume that captions say which figures can be drawn.
"""

import math
from collections.abc import Callable
from itertools import cycle

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from hpo.report import palette
from hpo.report.axes import Axis
from hpo.report.canvas import HEIGHT, blank, heatmap, hyperparameter_axis, joined, points, texts
from hpo.report.caption import FigureKey
from hpo.report.charts import ChartData, intervals, shown_up_to, value_range
from hpo.report.layer_map import share_ends
from hpo.report.parallel import SHADES, parallel_lines, parallel_ticks
from hpo.report.plan_figures import additivity, contributed, stored, volume
from hpo.report.verdict_figures import bits, damage, forest, memory, refining, transfer, waterfall

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "pentagon")


def figures(key: FigureKey, data: ChartData) -> list[tuple[str, go.Figure]]:
    """Draw the panels of one figure, each with what it shows beyond the figure's caption."""
    return DRAWN[key](data)


def _history(data: ChartData) -> list[tuple[str, go.Figure]]:
    figure = blank("trial", data.objective.column)
    ends = value_range(data)
    if data.measured:
        numbers, lowest = zip(*data.best_so_far, strict=True)
        figure.add_scatter(
            x=numbers, y=lowest, mode="lines", line={"shape": "hv", "color": palette.BEST}, name="best so far"
        )
        figure.add_scatter(
            **points(data.objective, data.measured, ends),
            marker={"color": palette.MEASURED, "size": 8},
            name="complete",
        )
    if data.estimated:
        below, above = intervals(data.estimated, ends)
        figure.add_scatter(
            **points(data.objective, data.estimated, ends),
            marker={"color": palette.ESTIMATED, "size": 8, "symbol": "diamond-open"},
            error_y={
                "array": above,
                "arrayminus": below,
                "thickness": 1,
                "width": 2,
            },
            name="pruned, estimated",
        )
    if data.failed:
        figure.add_scatter(
            x=data.failed,
            y=[ends[0]] * len(data.failed),
            mode="markers",
            marker={"color": palette.FAILED, "size": 9, "symbol": "x"},
            hovertemplate="trial %{x}: failed<extra></extra>",
            name="failed",
        )
    if data.baseline is not None:
        name, value = data.baseline
        figure.add_hline(value, line={"dash": "dash", "color": palette.REFERENCE})
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"dash": "dash", "color": palette.REFERENCE},
            name=name,
        )
    figure.update_yaxes(range=ends)
    return [("", figure)]


def _importances(data: ChartData) -> list[tuple[str, go.Figure]]:
    panels = []
    for shares in data.importances.scopes:
        if shares.reason is not None:
            continue
        names = list(shares.mean)[::-1]
        figure = blank("share of the outcome", "", height=140 + 60 * len(names))
        for title, by_name, colour in (
            ("fANOVA", shares.fanova, palette.FANOVA),
            ("PED-ANOVA", shares.ped_anova, palette.PED_ANOVA),
        ):
            below, above = zip(*(by_name[name].half_widths for name in names), strict=True)
            figure.add_bar(
                x=[by_name[name].value for name in names],
                y=names,
                orientation="h",
                marker={"color": colour},
                error_x={"array": above, "arrayminus": below, "color": palette.GREY, "thickness": 1.5, "width": 4},
                text=[by_name[name].percent(0) for name in names],
                textposition="none",
                name=title,
                hovertemplate="%{y}: %{text}<extra>" + title + "</extra>",
            )
        figure.update_layout(legend={"traceorder": "reversed"}, bargap=0.35)
        figure.update_xaxes(range=[0, 1], tickformat=".0%")
        panels.append((f"{shares.scope}, {shares.counted}", figure))
    return panels


def _surface(data: ChartData) -> list[tuple[str, go.Figure]]:
    surface = data.surface
    assert surface is not None
    beta, tau = (next(axis for axis in data.axes if axis.name == name) for name in ("beta", "tau"))
    figure = blank(beta.label, tau.label, height=HEIGHT + 60)
    values = [point.value for point in surface.points]
    colours = {"colorscale": palette.SEQUENTIAL, "cmin": min(values), "cmax": shown_up_to(values)}
    if surface.z:
        figure.add_contour(
            x=surface.x,
            y=surface.y,
            z=surface.z,
            colorscale=palette.SEQUENTIAL,
            zmin=colours["cmin"],
            zmax=colours["cmax"],
            contours={"showlines": False},
            ncontours=16,
            showscale=False,
            hoverinfo="skip",
            opacity=0.85,
        )
    figure.add_scatter(
        x=[point.values["beta"] for point in surface.points],
        y=[point.values["tau"] for point in surface.points],
        mode="markers",
        marker={
            "size": 10,
            "color": values,
            **colours,
            "colorbar": {"title": {"text": data.objective.column, "side": "right"}, "thickness": 12},
            "line": {"color": "white", "width": 1.5},
        },
        text=texts(data.objective, surface.points),
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(**hyperparameter_axis(beta))
    figure.update_yaxes(**hyperparameter_axis(tau))
    return [("", figure)]


def _slices(data: ChartData) -> list[tuple[str, go.Figure]]:
    return [(axis.name, _slice(data, axis)) for axis in data.axes]


def _slice(data: ChartData, axis: Axis) -> go.Figure:
    figure, ends = blank(axis.label, data.objective.column, height=340), value_range(data)
    figure.add_scatter(
        **points(data.objective, data.estimated, ends, axis),
        marker={"color": palette.GREY, "size": 6, "symbol": "circle-open"},
        name="pruned",
    )
    for size_class, colour, symbol in zip(data.size_classes, cycle(palette.GROUPS), cycle(SYMBOLS), strict=False):
        members = [point for point in data.measured if point.size_class == size_class]
        figure.add_scatter(
            **points(data.objective, members, ends, axis),
            marker={"color": colour, "size": 8, "symbol": symbol},
            name=str(size_class),
        )
    figure.update_xaxes(**hyperparameter_axis(axis))
    figure.update_yaxes(range=ends)
    return figure


def _running(data: ChartData) -> list[tuple[str, go.Figure]]:
    figure = blank("sequences read", "percent above the lowest")
    steps = sorted({step for line in data.running for step in line.sequences})
    for kind, colour, dash, width in (
        ("pruned", palette.ESTIMATED, "dash", 1),
        ("complete", palette.MEASURED, "solid", 1),
        ("best", palette.BEST, "solid", 3),
    ):
        lines = [line for line in data.running if line.kind == kind]
        if lines:
            figure.add_scatter(
                **joined(lines),
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": width},
                marker={"size": 4},
                opacity=1 if kind == "best" else 0.6,
                hovertemplate="%{text}: %{y:.2f} % after %{x}<extra></extra>",
                name=lines[0].name if kind == "best" else kind,
            )
    figure.update_xaxes(type="log", tickvals=steps, ticktext=[str(step) for step in steps])
    highest = shown_up_to([percent for line in data.running for percent in line.percent])
    figure.update_yaxes(range=[-0.03 * highest, 1.05 * highest] if highest > 0 else None)
    return [("", figure)]


def _parallel(data: ChartData) -> list[tuple[str, go.Figure]]:
    """Draw lines of equal colour as one trace, as lines because plotly's own kind of figure needs WebGL."""
    figure = blank("", "", height=HEIGHT)
    lines = parallel_lines(data)
    for place, colour in enumerate(sample_colorscale(list(palette.BEST_TO_WORST), SHADES)[::-1]):
        members = [line for line in lines if line.shade == SHADES - 1 - place]
        if members:
            figure.add_scatter(
                x=[at for line in members for at in (*range(len(line.heights)), None)],
                y=[at for line in members for at in (*line.heights, None)],
                text=[line.text for line in members for _ in range(len(line.heights) + 1)],
                mode="lines",
                line={"color": colour, "width": 1.5},
                hovertemplate="%{text}<extra></extra>",
                showlegend=False,
            )
    for place, ticks in enumerate(parallel_ticks(data)):
        last = place == len(data.axes)
        figure.add_vline(place, line={"color": palette.GREY, "width": 1})
        figure.add_scatter(
            x=[place + 0.03 if last else place - 0.03] * len(ticks),
            y=list(ticks.values()),
            text=list(ticks),
            mode="text",
            textposition="middle right" if last else "middle left",
            hoverinfo="skip",
            showlegend=False,
        )
    names = [*(axis.symbol for axis in data.axes), data.objective.short]
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.3, len(names) - 0.55])
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    return [("", figure)]


def _alpha(data: ChartData) -> list[tuple[str, go.Figure]]:
    assert data.layers.alpha is not None
    return [("", heatmap(data.layers.alpha, "α", (0.0, 1.0), ":.2f"))]


def _remaining(data: ChartData) -> list[tuple[str, go.Figure]]:
    layer_map = data.layers.remaining
    assert layer_map is not None
    low, high = share_ends(layer_map)
    logs = [[None if cell is None else math.log10(max(cell, low)) for cell in row] for row in layer_map.values]
    figure = heatmap(layer_map, "%", (math.log10(low), math.log10(high)), ":.3g")
    ticks = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    figure.update_traces(
        z=logs,
        customdata=layer_map.values,
        hovertemplate="block %{x}, %{y}: %{customdata:.3g} %<extra></extra>",
        colorbar={"tickvals": list(ticks), "ticktext": [f"{10.0**tick:g}" for tick in ticks]},
    )
    return [("", figure)]


def _reduction(data: ChartData) -> list[tuple[str, go.Figure]]:
    layer_map = data.layers.reduction
    assert layer_map is not None
    return [("", heatmap(layer_map, "%", (min(0.0, *layer_map.numbers), max(layer_map.numbers)), ":.1f"))]


DRAWN: dict[FigureKey, Callable[[ChartData], list[tuple[str, go.Figure]]]] = {
    "forest": forest,
    "waterfall": waterfall,
    "bits": bits,
    "elsewhere": transfer,
    "refining": refining,
    "memory": memory,
    "damage": damage,
    "history": _history,
    "importances": _importances,
    "beta-tau": _surface,
    "slices": _slices,
    "running": _running,
    "parallel": _parallel,
    "alpha": _alpha,
    "remaining": _remaining,
    "loss": _reduction,
    "stored": stored,
    "contributed": contributed,
    "additivity": additivity,
    "volume": volume,
}
