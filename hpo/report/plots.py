"""The figures of a report as pictures, drawn by matplotlib.

Responsible for drawing `ChartData` on white paper, for documents and mails. Keeps no state of matplotlib's: every
figure has its own canvas. May assume that captions say which figures can be drawn.
"""

import io
from collections.abc import Callable
from itertools import cycle

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpo.report import palette
from hpo.report.caption import FigureKey
from hpo.report.charts import ChartData, heights, intervals, shown_up_to, value_range
from hpo.report.layer_map import share_ends
from hpo.report.parallel import SHADES, parallel_lines, parallel_ticks
from hpo.report.plan_plots import additivity, contributed, stored, volume
from hpo.report.sheet import WIDTH, blank, heatmap, scale, sheet, ticks, tidy, with_legend
from hpo.report.verdict_plots import bits, damage, forest, memory, refining, transfer, waterfall

MARKERS = ("o", "D", "s", "^", "*", "p")
UNDER_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}


def pictures(key: FigureKey, data: ChartData) -> dict[str, bytes]:
    """Draw one figure as a PNG and an SVG file, by the ending; equal data give equal bytes."""
    figure = DRAWN[key](data)
    return {"png": png(figure), "svg": _svg(figure)}


def png(figure: Figure) -> bytes:
    """Write a figure as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    # It is laid out as its PNG was: that is most of the work.
    figure.set_layout_engine("none")
    with rc_context({"svg.hashsalt": "praqtune", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _history(data: ChartData) -> Figure:
    figure, axes = blank("trial", data.objective.column)
    ends = value_range(data)
    if data.measured:
        numbers, lowest = zip(*data.best_so_far, strict=True)
        axes.step(numbers, lowest, where="post", color=palette.BEST, label="best so far")
        axes.plot(
            numbers,
            heights(data.measured, ends),
            "o",
            clip_on=False,
            color=palette.MEASURED,
            markersize=5,
            label="complete",
        )
    if data.estimated:
        axes.errorbar(
            [point.number for point in data.estimated],
            heights(data.estimated, ends),
            yerr=intervals(data.estimated, ends),
            fmt="D",
            markersize=5,
            markerfacecolor="white",
            elinewidth=0.8,
            color=palette.ESTIMATED,
            label="pruned, estimated",
        )
    if data.failed:
        axes.plot(
            data.failed,
            [ends[0]] * len(data.failed),
            "x",
            color=palette.FAILED,
            clip_on=False,
            zorder=4,
            label="failed",
        )
    if data.baseline is not None:
        name, value = data.baseline
        axes.axhline(value, linestyle="--", color=palette.REFERENCE, label=name)
    axes.set_ylim(*ends)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return with_legend(figure, axes)


def _importances(data: ChartData) -> Figure:
    scopes = [shares for shares in data.importances.scopes if shares.reason is None]
    rows = sum(len(shares.mean) for shares in scopes)
    figure = sheet(WIDTH, 1.2 * len(scopes) + 0.55 * rows)
    panels = figure.subplots(len(scopes), squeeze=False, height_ratios=[len(shares.mean) for shares in scopes])[:, 0]
    for axes, shares in zip(panels, scopes, strict=True):
        names = list(shares.mean)[::-1]
        places = np.arange(len(names))
        for offset, title, by_name, colour in (
            (0.18, "PED-ANOVA", shares.ped_anova, palette.PED_ANOVA),
            (-0.18, "fANOVA", shares.fanova, palette.FANOVA),
        ):
            drawn = [by_name[name] for name in names]
            axes.barh(
                places + offset,
                [100 * share.value for share in drawn],
                0.34,
                xerr=100 * np.array([share.half_widths for share in drawn]).T,
                error_kw={"ecolor": "0.3", "elinewidth": 1.2, "capsize": 2},
                color=colour,
                label=title,
            )
        axes.set_yticks(places, names)
        axes.set_xlim(0, 100)
        axes.set_title(f"{shares.scope}, {shares.counted}", fontsize="medium", loc="left")
        tidy(axes, "share of the outcome, %", "")
    return with_legend(figure, panels[0])


def _surface(data: ChartData) -> Figure:
    surface = data.surface
    assert surface is not None
    beta, tau = (next(axis for axis in data.axes if axis.name == name) for name in ("beta", "tau"))
    figure, axes = blank(beta.label, tau.label, height=5.5)
    values = [point.value for point in surface.points]
    ends = (min(values), shown_up_to(values))
    if surface.z and ends[1] > ends[0]:
        z = np.ma.masked_invalid(surface.z)
        axes.contourf(
            surface.x, surface.y, z, np.linspace(*ends, 17), cmap=palette.SEQUENTIAL, extend="both", alpha=0.85
        )
    scatter = axes.scatter(
        [point.values["beta"] for point in surface.points],
        [point.values["tau"] for point in surface.points],
        c=values,
        cmap=palette.SEQUENTIAL,
        vmin=ends[0],
        vmax=ends[1],
        edgecolors="white",
        linewidths=1.2,
        s=55,
        zorder=3,
    )
    figure.colorbar(scatter, ax=axes, label=data.objective.column)
    scale(axes, beta, "x")
    scale(axes, tau, "y")
    return figure


def _slices(data: ChartData) -> Figure:
    columns, ends = min(3, len(data.axes)), value_range(data)
    rows = -(-len(data.axes) // columns)
    figure = sheet(max(4.5, 3.4 * columns), 3.1 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, axis in zip(panels, data.axes, strict=False):
        estimated = [point for point in data.estimated if axis.name in point.reads]
        x, y = [point.values[axis.name] for point in estimated], heights(estimated, ends)
        axes.plot(x, y, "o", color=palette.GREY, markersize=4, markerfacecolor="none", label="pruned")
        for size_class, colour, marker in zip(data.size_classes, cycle(palette.GROUPS), cycle(MARKERS), strict=False):
            points = [point for point in data.measured if point.size_class == size_class and axis.name in point.reads]
            # An empty line that is not clipped counts as standing in the corner when room is given.
            if not points:
                continue
            x, y = [point.values[axis.name] for point in points], heights(points, ends)
            axes.plot(x, y, marker, color=colour, markersize=5, clip_on=False, label=str(size_class))
        tidy(axes, axis.label, data.objective.column if axis in data.axes[::columns] else "")
        scale(axes, axis, "x")
        axes.set_ylim(*ends)
    for axes in panels[len(data.axes) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    return figure


def _running(data: ChartData) -> Figure:
    figure, axes = blank("sequences read", "percent above the lowest")
    for kind, colour, style, width in (
        ("pruned", palette.ESTIMATED, "--", 0.9),
        ("complete", palette.MEASURED, "-", 0.9),
        ("best", palette.BEST, "-", 2.5),
    ):
        for number, line in enumerate(line for line in data.running if line.kind == kind):
            axes.plot(
                line.sequences,
                line.percent,
                style,
                color=colour,
                linewidth=width,
                alpha=1.0 if kind == "best" else 0.6,
                marker=".",
                label=None if number else line.name if kind == "best" else kind,
            )
    steps = sorted({step for line in data.running for step in line.sequences})
    axes.set_xscale("log")
    ticks(axes, steps, "x")
    highest = shown_up_to([percent for line in data.running for percent in line.percent])
    if highest > 0:
        axes.set_ylim(-0.03 * highest, 1.05 * highest)
    return with_legend(figure, axes)


def _parallel(data: ChartData) -> Figure:
    figure, axes = blank("", "")
    lines = sorted(parallel_lines(data), key=lambda line: -line.shade)
    drawn = [np.column_stack([range(len(line.heights)), line.heights]) for line in lines]
    colours = LinearSegmentedColormap.from_list("best to worst", palette.BEST_TO_WORST)
    collection = LineCollection(drawn, cmap=colours, alpha=0.8, linewidths=1.2)
    collection.set_array(np.array([line.shade / (SHADES - 1) for line in lines]))
    collection.set_clim(0, 1)
    axes.add_collection(collection)
    for place, named in enumerate(parallel_ticks(data)):
        axes.axvline(place, color=palette.GREY, linewidth=0.8)
        last = place == len(data.axes)
        for text, height in named.items():
            at, side = (place + 0.04, "left") if last else (place - 0.05, "right")
            axes.text(at, height, text, ha=side, va="center", fontsize="small", bbox=UNDER_TEXT, zorder=4)
    axes.set_xticks(range(len(data.axes) + 1), [*(axis.symbol for axis in data.axes), data.objective.short])
    axes.set_xlim(-0.35, len(data.axes) + 0.5)
    axes.set_ylim(-0.05, 1.05)
    axes.yaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _alpha(data: ChartData) -> Figure:
    assert data.layers.alpha is not None
    return heatmap(data.layers.alpha, "α", (0.0, 1.0))


def _remaining(data: ChartData) -> Figure:
    layer_map = data.layers.remaining
    assert layer_map is not None
    return heatmap(layer_map, "share of the loss, %", share_ends(layer_map), LogNorm)


def _reduction(data: ChartData) -> Figure:
    layer_map = data.layers.reduction
    assert layer_map is not None
    return heatmap(layer_map, "loss avoided, %", (min(0.0, *layer_map.numbers), max(layer_map.numbers)))


DRAWN: dict[FigureKey, Callable[[ChartData], Figure]] = {
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
