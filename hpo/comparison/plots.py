"""The figures of a comparison as pictures, drawn by matplotlib on white paper.

Responsible for bars of perplexity, of the increase over full precision, of the generalisation, and for perplexity
against bits. Colours tell bits apart: only bars of one colour compete. Keeps no state of matplotlib's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hpo.comparison.entries import Entry
from hpo.comparison.verdict import Comparison
from hpo.report import palette
from hpo.report.charts import shown_up_to
from hpo.report.plots import png
from hpo.report.sheet import sheet, tidy

MARKERS = ("o", "D", "s", "^", "*", "p")
PANEL_WIDTH, ROW_HEIGHT, ROOM = 5.2, 0.34, 1.5
BEYOND = 1.12
"""Bars beyond the end of the scale are cut here, and their number says how far they go."""


def pictures(comparison: Comparison) -> dict[str, bytes]:
    """Draw PNG files by the name of the figure."""
    return {name: png(draw(comparison)) for name, draw in drawn(comparison).items()}


def drawn(comparison: Comparison) -> Mapping[str, Callable[[Comparison], Figure]]:
    """Name the figures that this comparison has, and who draws them."""
    figures = {"perplexity": _perplexity, "increase": _increase, "bits": _bits}
    return {**figures, "generalisation": _generalisation} if comparison.gaps else figures


def _perplexity(comparison: Comparison) -> Figure:
    figure, panels = _panels(comparison, len(comparison.entries) - 1)
    entries = _quantized(comparison)
    for at, axes in enumerate(panels):
        _bars(axes, entries, [entry.scores[at].perplexity for entry in entries], _colours(comparison), "{:.3f}")
        axes.axvline(comparison.full.scores[at].perplexity, linestyle="--", color=palette.GREY)
        axes.set_title(comparison.datasets[at], fontsize="medium", loc="left")
        tidy(axes, "perplexity", "")
    return _with_bits(figure, comparison, Line2D([], [], linestyle="--", color=palette.GREY, label="full precision"))


def _increase(comparison: Comparison) -> Figure:
    figure, panels = _panels(comparison, len(comparison.entries) - 1)
    entries = _quantized(comparison)
    for at, axes in enumerate(panels):
        differences = [comparison.difference(entry, comparison.full, at).percent() for entry in entries]
        _bars(axes, entries, [value for value, _, _ in differences], _colours(comparison), "{:+.2f} %", differences)
        axes.set_title(comparison.datasets[at], fontsize="medium", loc="left")
        tidy(axes, "perplexity above full precision, % (line: 95 %)", "")
    return _with_bits(figure, comparison)


def _bits(comparison: Comparison) -> Figure:
    """Draw perplexity against bits, names beside the panels: rows of equal bits lie too close together for them."""
    figure, panels = _panels(comparison, 10)
    packed = {entry.name: entry for entry in comparison.entries if entry.is_quantized and entry.packed}
    marked = [mark for choice in comparison.choices for mark in zip(choice.rows, cycle(MARKERS), strict=False)]
    for at, axes in enumerate(panels):
        values = [entry.scores[at].perplexity for entry in packed.values()]
        end = shown_up_to(values) if values else math.inf
        for name, marker in marked:
            bits, perplexity = packed[name].measured.bits_per_weight, packed[name].scores[at].perplexity
            colour = _colours(comparison)[name]
            axes.plot([float(bits or 0)], [min(perplexity, end)], marker, color=colour, clip_on=False, label=name)
        axes.axhline(comparison.full.scores[at].perplexity, linestyle="--", color=palette.GREY, label="full precision")
        axes.margins(x=0.25)
        axes.set_title(comparison.datasets[at], fontsize="medium", loc="left")
        tidy(axes, "bits per weight", "perplexity")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _generalisation(comparison: Comparison) -> Figure:
    """Draw the increase over full precision on every data set, side by side."""
    entries = _quantized(comparison)[::-1]
    count = len(comparison.datasets)
    figure = sheet(1.6 * PANEL_WIDTH, ROOM + ROW_HEIGHT * (0.5 + 0.5 * count) * len(entries))
    axes = figure.subplots()
    thickness = 0.8 / count
    values = [
        [comparison.difference(entry, comparison.full, at).percent()[0] for entry in entries] for at in range(count)
    ]
    end = shown_up_to([value for column in values for value in column])
    for at, colour in zip(range(count), cycle(palette.GROUPS), strict=False):
        places = [place + 0.4 - (at + 0.5) * thickness for place in range(len(entries))]
        where = "in distribution" if at == 0 else "cross-dataset"
        label = f"{comparison.datasets[at]} ({where})"
        axes.barh(places, _cut(values[at], end), thickness, color=colour, label=label)
        for place, value in zip(places, values[at], strict=True):
            axes.text(max(0.0, min(value, BEYOND * end)), place, f" {value:+.2f} %", va="center", fontsize="x-small")
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
    axes.margins(x=0.15)
    tidy(axes, "perplexity above full precision, %", "")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    return figure


def _quantized(comparison: Comparison) -> list[Entry]:
    return [entry for entry in comparison.entries if entry.is_quantized]


def _colours(comparison: Comparison) -> Mapping[str, str]:
    """Choose one colour per number of bits, by the name of the row; grey for rows that are not packed."""
    colours = {entry.name: palette.GREY for entry in comparison.entries}
    for choice, colour in zip(comparison.choices, cycle(palette.GROUPS), strict=False):
        colours |= dict.fromkeys(choice.rows, colour)
    return colours


def _panels(comparison: Comparison, rows: int) -> tuple[Figure, Sequence[Axes]]:
    """Make one panel for each data set."""
    count = len(comparison.datasets)
    figure = sheet(PANEL_WIDTH * count + 1.0, ROOM + ROW_HEIGHT * max(2, rows))
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _bars(
    axes: Axes,
    entries: Sequence[Entry],
    values: Sequence[float],
    colours: Mapping[str, str],
    form: str,
    intervals: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Draw horizontal bars, the first row at the top; a line through each shows its interval."""
    ends = [high if math.isfinite(high) else value for value, _, high in intervals] or values
    end = shown_up_to(ends) if entries else 1.0
    cut = _cut(values, end)
    for place, entry in enumerate(entries):
        axes.barh(place, cut[place], 0.7, color=colours[entry.name])
        label_at = max(0.0, cut[place])
        if intervals and math.isfinite(intervals[place][1]) and values[place] <= end:
            low, high = intervals[place][1], _cut(ends, end)[place]
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            label_at = max(label_at, high)
        axes.text(label_at, place, f" {form.format(values[place])}", va="center", fontsize="small")
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
    axes.invert_yaxis()
    axes.margins(x=0.2)


def _cut(values: Sequence[float], end: float) -> list[float]:
    return [min(value, BEYOND * end) if end > 0 else value for value in values]


def _with_bits(figure: Figure, comparison: Comparison, *more: Line2D) -> Figure:
    """Put a legend on a figure that says which colour has how many bits."""
    colours = _colours(comparison)
    bits = [
        Patch(color=colours[choice.rows[0]], label=f"{choice.bits:.3f} bits per weight")
        for choice in comparison.choices
    ]
    if bits or more:
        figure.legend(handles=[*bits, *more], loc="outside upper left", ncols=len(bits) + len(more), frameon=False)
    return figure
