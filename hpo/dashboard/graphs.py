"""The project's own graphs on a study's page: who won, value against bits, what mattered, alpha by depth.

Responsible for which of the report's figures are shown there and for making them fit. Every graph has a fixed id, so
that renewing one replaces it. May assume a study with a ranking.
"""

from collections.abc import Mapping

import plotly.graph_objects as go

from hpo.report.caption import FigureKey
from hpo.report.charts import ChartData
from hpo.report.figures import figures

# Text that can be read on the dashboard's white and on its near-black.
INK = "#808080"
HEIGHT = 430

GRAPHS: Mapping[str, tuple[FigureKey, str]] = {
    "praqtune-forest": ("forest", "Who won: paired differences, 95 %"),
    "praqtune-bits": ("bits", "The value against bits per weight"),
    "praqtune-importances": ("importances", "What mattered"),
    "praqtune-alpha": ("alpha", "Alpha by depth, best trial"),
}
"""By the id in the dashboard: the report's figure, and its title."""


def graph(key: str, data: ChartData) -> go.Figure:
    """Draw one graph of `GRAPHS`; of a figure with several panels the one that decides.

    Args:
        key: Its id.
        data: What the report shows, in which the figure is not missing.
    """
    name, title = GRAPHS[key]
    panels = figures(name, data)
    # Importances at equal group size come last; of everything else the leading group size comes first.
    subtitle, figure = panels[-1] if name == "importances" else panels[0]
    figure.update_layout(
        title={"text": f"{title}<br><sub>{subtitle}</sub>" if subtitle else title, "x": 0.02, "y": 0.97},
        height=HEIGHT,
        margin={"l": 12, "r": 12, "t": 92, "b": 12},
        font={"color": INK, "size": 12},
    )
    return figure
