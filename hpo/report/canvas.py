"""An empty plotly figure, and what several figures put on it.

Responsible for legibility on light and dark paper alike: nothing has a background, grids are translucent, and text
takes the colour that the page gives it.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from hpo.report import palette
from hpo.report.axes import Axis
from hpo.report.charts import Point, Running, heights
from hpo.report.layer_map import LayerMap
from hpo.study.objective import Objective

CLEAR, GRID = "rgba(0,0,0,0)", "rgba(128,128,128,0.25)"
HEIGHT = 420


def blank(x: str, y: str, height: int = HEIGHT) -> go.Figure:
    """Make a figure without traces whose axes are called `x` and `y`."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        height=height,
        margin={"l": 12, "r": 12, "t": 36, "b": 12},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": CLEAR},
        font={"family": "system-ui, sans-serif", "size": 13},
        hovermode="closest",
        # Beside the legend, which lies above the figure.
        modebar={"orientation": "v", "bgcolor": CLEAR},
    )
    axes = {"automargin": True, "gridcolor": GRID, "zeroline": False, "linecolor": GRID}
    figure.update_xaxes(title={"text": x, "font": {"size": 13}}, **axes)
    figure.update_yaxes(title={"text": y, "font": {"size": 13}}, **axes)
    return figure


def points(
    objective: Objective, shown: Sequence[Point], ends: tuple[float, float], axis: Axis | None = None
) -> dict[str, object]:
    """Place points by trial number, or along one hyperparameter, on an axis of values of these ends.

    Trials whose setting does not read the hyperparameter have no place along it.
    """
    shown = [point for point in shown if axis is None or axis.name in point.reads]
    return {
        "x": [point.number if axis is None else point.values[axis.name] for point in shown],
        "y": heights(shown, ends),
        "mode": "markers",
        "cliponaxis": False,
        "text": texts(objective, shown),
        "hovertemplate": "%{text}<extra></extra>",
    }


def texts(objective: Objective, points: Sequence[Point]) -> list[str]:
    """Write what is shown of points under the pointer."""
    return [f"{point.name}: {objective.number(point.value)}<br>{point.text}" for point in points]


def joined(lines: Sequence[Running]) -> dict[str, object]:
    """Join many lines into one, with gaps between them: a trace each would make the page slow."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for line in lines:
        x += [*line.sequences, None]
        y += [*line.percent, None]
        text += [line.name] * (len(line.sequences) + 1)
    return {"x": x, "y": y, "text": text}


def hyperparameter_axis(axis: Axis) -> dict[str, object]:
    """Set up the axis of a hyperparameter."""
    if axis.choices:
        return {"range": list(axis.ends), "tickvals": axis.ticks, "ticktext": list(map(axis.text, axis.ticks))}
    if axis.scale == "linear":
        return {"range": list(axis.ends)}
    return {
        "type": "log",
        "range": [math.log10(end) for end in axis.ends],
        "tickvals": axis.ticks,
        "ticktext": [f"{tick:g}" for tick in axis.ticks],
    }


def heatmap(layer_map: LayerMap, unit: str, ends: tuple[float, float], digits: str) -> go.Figure:
    """Draw one cell per depth and role."""
    figure = blank("depth", "", height=150 + 34 * len(layer_map.roles))
    figure.add_heatmap(
        x=layer_map.depths,
        y=layer_map.roles,
        z=layer_map.values,
        zmin=ends[0],
        zmax=ends[1],
        colorscale=palette.SEQUENTIAL,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": unit}, "thickness": 12},
        hovertemplate=f"block %{{x}}, %{{y}}: %{{z{digits}}} {unit}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showgrid=False, dtick=max(1, len(layer_map.depths) // 10))
    return figure
