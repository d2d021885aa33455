"""An empty matplotlib figure, and what several pictures put on it.

Responsible for scales, ticks and heat maps on white paper. Figures are made without pyplot, so nothing outlives them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from hpo.report import palette
from hpo.report.axes import Axis
from hpo.report.layer_map import LayerMap

DPI = 120
WIDTH, HEIGHT = 8.0, 4.5


def blank(x: str, y: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Make a figure with one panel whose axes are called `x` and `y`."""
    figure = sheet(WIDTH, height)
    axes = figure.subplots()
    tidy(axes, x, y)
    return figure, axes


def sheet(width: float, height: float) -> Figure:
    """Make a figure without panels."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def tidy(axes: Axes, x: str, y: str) -> None:
    """Name the axes and draw no more lines than it takes to read them."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """Put a legend above a figure's panel, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    return figure


def scale(axes: Axes, axis: Axis, direction: str) -> None:
    """Give an axis the scale and the ticks of a hyperparameter."""
    if axis.scale != "linear":
        set_scale = axes.set_xscale if direction == "x" else axes.set_yscale
        set_scale("log")
    if axis.choices or axis.scale != "linear":
        ticks(axes, axis.ticks, direction, axis.text)
    set_limits = axes.set_xlim if direction == "x" else axes.set_ylim
    set_limits(*axis.ends)


def ticks(axes: Axes, values: Sequence[float], direction: str, text: Callable[[float], str] = "{:g}".format) -> None:
    """Name these values on an axis and no others."""
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def heatmap(layer_map: LayerMap, unit: str, ends: tuple[float, float], norm: type[Normalize] = Normalize) -> Figure:
    """Draw one cell per depth and role."""
    figure, axes = blank("depth", "", height=1.4 + 0.34 * len(layer_map.roles))
    draw_map(figure, axes, layer_map, unit, norm(*ends, clip=True))
    return figure


def draw_map(figure: Figure, axes: Axes, layer_map: LayerMap, unit: str, norm: Normalize) -> None:
    """Draw one cell per depth and role, on a panel of `figure`."""
    values = np.ma.masked_invalid([[np.nan if cell is None else cell for cell in row] for row in layer_map.values])
    image = axes.imshow(values, cmap=palette.SEQUENTIAL, norm=norm, aspect="auto")
    axes.set_yticks(range(len(layer_map.roles)), layer_map.roles)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: str(layer_map.depths[int(place)]) if 0 <= place < len(layer_map.depths) else "")
    )
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=unit)
