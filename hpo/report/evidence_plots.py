"""The figures of the verdict as pictures, drawn by matplotlib: who won, bits, memory, other text.

Responsible for drawing `Evidence` on white paper. May assume that captions say which figures can be drawn.
"""

import math
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpo.report import palette
from hpo.report.charts import ChartData, forest_ends
from hpo.report.evidence import BEST_TRIAL, Forest
from hpo.report.sheet import WIDTH, blank, sheet, tidy, with_legend

MARKERS = ("s", "D", "^", "o", "*", "p")
ROW, AROUND = 0.26, 2.6
OF_KIND = {"reference": "s", "trial": "o", "recommended": "*"}


def forest(data: ChartData) -> Figure:
    """One panel for every level of bits, names at the left and numbers at the right."""
    found = data.evidence.forests
    # A panel's title and ticks take as much as some rows do.
    shares = [len(one.rows) + AROUND for one in found]
    figure = sheet(WIDTH, 0.9 + ROW * sum(shares))
    # Room for the numbers at the right.
    figure.set_layout_engine("constrained", rect=(0, 0, 0.79, 1))
    panels = figure.subplots(len(found), squeeze=False, height_ratios=shares)[:, 0]
    for axes, one in zip(panels, found, strict=True):
        _contrasts(axes, one)
    tidy(panels[-1], "percent of perplexity against the best reference; left is better", "")
    panels[-1].grid(visible=False, axis="y")
    labels = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside upper left", ncols=len(labels), frameon=False)
    return figure


def _contrasts(axes: Axes, found: Forest) -> None:
    low, high = forest_ends(found)
    for kind, marker in OF_KIND.items():
        colour = palette.KINDS[kind]
        rows = [(place, row) for place, row in enumerate(found.rows) if row.kind == kind]
        # Nothing that is drawn nowhere: an empty line counts as standing in the corner when room is given.
        if not rows:
            continue
        for place, row in rows:
            axes.plot([row.low, min(row.high, high)], [place, place], color=colour, linewidth=1.5)
        axes.plot(
            [min(row.percent, high) for _, row in rows],
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
    axes.set_title(f"{found.title}, against {found.baseline}", fontsize="medium", loc="left")
    axes.set_yticks(range(len(found.rows)), [row.name for row in found.rows], fontsize="small")
    axes.set_ylim(len(found.rows) - 0.4, -0.6)
    room = 0.04 * (high - low)
    axes.set_xlim(low - room, high + room)
    for place, row in enumerate(found.rows):
        beside = axes.get_yaxis_transform()
        axes.text(1.02, place, row.text, va="center", fontsize="small", transform=beside, in_layout=False)


def bits(data: ChartData) -> Figure:
    """Perplexity of references and best trials against what they cost."""
    figure, axes = blank("bits per weight", "perplexity")
    costs = data.evidence.costs
    colours = palette.series(dict.fromkeys(cost.series for cost in costs), {BEST_TRIAL})
    for (label, colour), marker in zip(colours.items(), cycle(MARKERS), strict=False):
        found = [cost for cost in costs if cost.series == label]
        x, y = [cost.bits for cost in found], [cost.perplexity for cost in found]
        axes.plot(x, y, marker, color=colour, markersize=8, linestyle=":", linewidth=1, label=label)
    if data.evidence.full is not None:
        axes.axhline(data.evidence.full, linestyle="--", color=palette.GREY, label="full precision")
    axes.margins(x=0.1, y=0.1)
    return with_legend(figure, axes)


def memory(data: ChartData) -> Figure:
    """Bytes of the whole model, in parts."""
    found = data.evidence.memory
    figure, axes = blank("MB", "", height=1.3 + 0.42 * len(found))
    starts = [0.0] * len(found)
    for part, label, colour in (
        ("blocks", "weights of the blocks", palette.BLUE),
        ("scales", "scales, zero points", palette.ORANGE),
        ("others", "all other weights", palette.GREY),
    ):
        sizes = [getattr(one, part) / 1e6 for one in found]
        axes.barh(range(len(found)), sizes, 0.62, left=starts, color=colour, label=label)
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    for place, end in enumerate(starts):
        axes.text(end, place, f" {end:,.1f}", va="center", fontsize="small")
    axes.set_yticks(range(len(found)), [one.name for one in found])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    return with_legend(figure, axes)


def elsewhere(data: ChartData) -> Figure:
    """One line per setting across the texts."""
    found = data.evidence.elsewhere
    assert found is not None
    figure, axes = blank("", "percent above full precision")
    colours = palette.series([name for name, _ in found.rows], {found.searched})
    for (name, values), marker in zip(found.rows, cycle(MARKERS), strict=False):
        heights = [math.nan if value is None else value for value in values]
        axes.plot(range(len(values)), heights, marker, linestyle="-", color=colours[name], markersize=7, label=name)
    axes.set_xticks(range(len(found.texts)), ["\n".join(text) for text in found.texts])
    axes.margins(x=0.15)
    return with_legend(figure, axes)
