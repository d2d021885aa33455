"""The figures of the verdict as pictures, drawn by matplotlib: who won, bits, memory, other text.

Responsible for drawing `VerdictData` on white paper. May assume that captions say which figures can be drawn.
"""

import math
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpo.report import palette
from hpo.report.charts import ChartData, forest_ends
from hpo.report.sheet import WIDTH, blank, sheet, tidy, with_legend
from hpo.report.verdict_data import BEST_TRIAL, Forest

MARKERS = ("s", "D", "^", "o", "*", "p")
ROW, AROUND = 0.26, 2.6
OF_KIND = {"reference": "s", "trial": "o", "recommended": "*"}


def forest(data: ChartData) -> Figure:
    """Draw one panel for every size class, names at the left and numbers at the right."""
    forests = data.verdict.forests
    # A panel's title and ticks take as much as some rows do.
    shares = [len(plot.rows) + AROUND for plot in forests]
    figure = sheet(WIDTH, 0.9 + ROW * sum(shares))
    # Room for the numbers at the right.
    figure.set_layout_engine("constrained", rect=(0, 0, 0.79, 1))
    panels = figure.subplots(len(forests), squeeze=False, height_ratios=shares)[:, 0]
    for axes, plot in zip(panels, forests, strict=True):
        _contrasts(axes, plot)
    tidy(panels[-1], f"{data.objective.change_column} against the best reference; left is better", "")
    panels[-1].grid(visible=False, axis="y")
    labels = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside upper left", ncols=len(labels), frameon=False)
    return figure


def _contrasts(axes: Axes, plot: Forest) -> None:
    low, high = forest_ends(plot)
    for kind, marker in OF_KIND.items():
        colour = palette.KINDS[kind]
        rows = [(place, row) for place, row in enumerate(plot.rows) if row.kind == kind]
        # Nothing that is drawn nowhere: an empty line counts as standing in the corner when room is given.
        if not rows:
            continue
        for place, row in rows:
            axes.plot([row.low, min(row.high, high)], [place, place], color=colour, linewidth=1.5)
        axes.plot(
            [min(row.value, high) for _, row in rows],
            [place for place, _ in rows],
            marker,
            color=colour,
            markersize=11 if kind == "recommended" else 6,
            clip_on=False,
            label=kind,
        )
    axes.axvline(0, color=palette.GREY, linewidth=1.2, zorder=0)
    tidy(axes, "", "")
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{plot.title}, against {plot.baseline}", fontsize="medium", loc="left")
    axes.set_yticks(range(len(plot.rows)), [row.name for row in plot.rows], fontsize="small")
    axes.set_ylim(len(plot.rows) - 0.4, -0.6)
    room = 0.04 * (high - low)
    axes.set_xlim(low - room, high + room)
    for place, row in enumerate(plot.rows):
        beside = axes.get_yaxis_transform()
        axes.text(1.02, place, row.text, va="center", fontsize="small", transform=beside, in_layout=False)


def waterfall(data: ChartData) -> Figure:
    """Draw what each ingredient takes away, names at the left and numbers at the right."""
    bars = data.verdict.waterfall
    figure, axes = blank("nats per token above full precision; left is better", "", height=1.2 + 0.36 * len(bars))
    figure.set_layout_engine("constrained", rect=(0, 0, 0.72, 1))
    places = range(len(bars))
    lengths, starts = [bar.end - bar.start for bar in bars], [bar.start for bar in bars]
    axes.barh(places, lengths, 0.62, left=starts, color=palette.steps(bars))
    for place, bar in enumerate(bars):
        axes.plot([bar.low, bar.high], [place, place], color=palette.GREY, linewidth=1.5)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, place, bar.text, va="center", fontsize="small", transform=beside, in_layout=False)
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return figure


def bits(data: ChartData) -> Figure:
    """Draw values of references and best trials against what they cost."""
    figure, axes = blank("bits per weight", data.objective.column)
    costs = data.verdict.costs
    colours = palette.series(dict.fromkeys(cost.series for cost in costs), {BEST_TRIAL})
    for (label, colour), marker in zip(colours.items(), cycle(MARKERS), strict=False):
        members = [cost for cost in costs if cost.series == label]
        x, y = [cost.bits for cost in members], [cost.value for cost in members]
        axes.plot(x, y, marker, color=colour, markersize=8, linestyle=":", linewidth=1, label=label)
        for cost in members:
            axes.plot([cost.bits, cost.bits], [cost.low, cost.high], color=colour, linewidth=1)
    if data.verdict.full is not None:
        axes.axhline(data.verdict.full, linestyle="--", color=palette.GREY, label="full precision")
    axes.margins(x=0.1, y=0.1)
    return with_legend(figure, axes)


def memory(data: ChartData) -> Figure:
    """Draw bytes of the whole model, in parts."""
    models = data.verdict.memory
    figure, axes = blank("MB", "", height=1.3 + 0.42 * len(models))
    starts = [0.0] * len(models)
    for part, label, colour in (
        ("blocks", "weights of the blocks", palette.BLUE),
        ("scales", "scales, zero points", palette.ORANGE),
        ("others", "all other weights", palette.GREY),
    ):
        sizes = [getattr(model, part) / 1e6 for model in models]
        axes.barh(range(len(models)), sizes, 0.62, left=starts, color=colour, label=label)
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    for place, end in enumerate(starts):
        axes.text(end, place, f" {end:,.1f}", va="center", fontsize="small")
    axes.set_yticks(range(len(models)), [model.name for model in models])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    return with_legend(figure, axes)


def transfer(data: ChartData) -> Figure:
    """Draw one line per setting across the texts."""
    transferred = data.verdict.transfer
    assert transferred is not None
    figure, axes = blank("", f"{data.objective.change_column} above full precision")
    colours = palette.series([name for name, _ in transferred.rows], {transferred.searched})
    for (name, values), marker in zip(transferred.rows, cycle(MARKERS), strict=False):
        heights = [math.nan if value is None else value for value in values]
        axes.plot(range(len(values)), heights, marker, linestyle="-", color=colours[name], markersize=7, label=name)
    axes.set_xticks(range(len(transferred.texts)), ["\n".join(text) for text in transferred.texts])
    axes.margins(x=0.15)
    return with_legend(figure, axes)


def refining(data: ChartData) -> Figure:
    """Draw the divergence on what is held back, step by step."""
    refined = data.verdict.refining
    assert refined is not None
    figure, axes = blank("steps", "KL from full precision, nats per token")
    steps, divergences = [look.step for look in refined.looks], [look.kl for look in refined.looks]
    kept = [divergence for step, divergence in zip(steps, divergences, strict=True) if step == refined.kept_step]
    axes.axhline(divergences[0], linestyle="--", color=palette.GREY, linewidth=1)
    axes.plot(steps, divergences, "o-", color=palette.BLUE, markersize=6, label="held back")
    rings = axes.plot([refined.kept_step] * len(kept), kept, "o", color=palette.ORANGE, markersize=13, label="kept")
    rings[0].set(markerfacecolor="none", markeredgewidth=2)
    axes.margins(x=0.1, y=0.1)
    return with_legend(figure, axes)


def damage(data: ChartData) -> Figure:
    """Draw mean NLL above full precision against divergence from it, with both intervals."""
    figure, axes = blank("KL from full precision, nats per token", "NLL above full precision, nats per token")
    damages = data.verdict.damages
    size_classes = dict.fromkeys(member.size_class for member in damages)
    for size_class, colour in zip(size_classes, cycle(palette.GROUPS), strict=False):
        for kind, marker in (("reference", "s"), ("trial", "o")):
            members = [member for member in damages if (member.size_class, member.kind) == (size_class, kind)]
            if not members:
                continue
            axes.errorbar(
                [member.kl.value for member in members],
                [member.nll.value for member in members],
                xerr=[member.kl.high - member.kl.value for member in members],
                yerr=[member.nll.high - member.nll.value for member in members],
                fmt=marker,
                color=colour,
                elinewidth=0.8,
                markersize=5,
                label=None if size_class.short in axes.get_legend_handles_labels()[1] else size_class.short,
            )
    axes.axline((0, 0), slope=1, linestyle="--", color=palette.GREY, linewidth=1, label="equal")
    axes.margins(0.1)
    return with_legend(figure, axes)
