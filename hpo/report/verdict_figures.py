"""The figures of the verdict on a report's page, in plotly: who won, bits, memory, other text.

Responsible for drawing `VerdictData`. May assume that captions say which figures can be drawn.
"""

from itertools import cycle

import plotly.graph_objects as go

from hpo.report import palette
from hpo.report.canvas import HEIGHT, blank
from hpo.report.charts import ChartData, forest_ends
from hpo.report.verdict_data import BEST_TRIAL, Forest

SYMBOLS = ("square", "diamond", "triangle-up", "circle", "star", "pentagon")
OF_KIND = {"reference": "square", "trial": "circle", "recommended": "star"}
NATS = "nats per token above full precision; left is better"
Panels = list[tuple[str, go.Figure]]


def forest(data: ChartData) -> Panels:
    """Draw one panel for every size class."""
    axis = f"{data.objective.change_column}; left is better"
    return [(f"{plot.title}, against {plot.baseline}", _forest(plot, axis)) for plot in data.verdict.forests]


def _forest(plot: Forest, axis: str) -> go.Figure:
    """Draw contrasts at equal bits, best at the top; outliers at the right edge."""
    figure = blank(axis, "", height=150 + 26 * len(plot.rows))
    low, high = forest_ends(plot)
    for kind, symbol in OF_KIND.items():
        rows = [row for row in plot.rows if row.kind == kind]
        if not rows:
            continue
        places = [min(row.value, high) for row in rows]
        figure.add_scatter(
            x=places,
            y=[row.name for row in rows],
            mode="markers",
            marker={"color": palette.KINDS[kind], "symbol": symbol, "size": 14 if kind == "recommended" else 10},
            error_x={
                "array": [max(0.0, min(row.high, high) - place) for row, place in zip(rows, places, strict=True)],
                "arrayminus": [max(0.0, place - row.low) for row, place in zip(rows, places, strict=True)],
                "thickness": 1.5,
                "width": 4,
            },
            cliponaxis=False,
            text=[f"{row.name}: {row.text}" for row in rows],
            hovertemplate="%{text}<extra></extra>",
            name=kind,
        )
    figure.add_vline(0, line={"color": palette.GREY, "width": 1.5})
    room = 0.04 * (high - low)
    figure.update_xaxes(range=[low - room, high + room])
    names = [row.name for row in plot.rows]
    figure.update_yaxes(categoryorder="array", categoryarray=names, range=[len(names) - 0.4, -0.6], showgrid=False)
    return figure


def waterfall(data: ChartData) -> Panels:
    """Draw what each ingredient takes away, from nearest rounding at the top to what is recommended."""
    bars = data.verdict.waterfall
    figure = blank(NATS, "", height=150 + 34 * len(bars))
    figure.add_bar(
        base=[bar.start for bar in bars],
        x=[bar.end - bar.start for bar in bars],
        y=list(range(len(bars))),
        orientation="h",
        marker={"color": palette.steps(bars)},
        error_x={
            "array": [bar.high - bar.end for bar in bars],
            "arrayminus": [bar.end - bar.low for bar in bars],
            "color": palette.GREY,
            "thickness": 1.5,
            "width": 4,
        },
        text=[f"{bar.name}: {bar.text}" for bar in bars],
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(bargap=0.35)
    names = [bar.name for bar in bars]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6], showgrid=False
    )
    return [("", figure)]


def bits(data: ChartData) -> Panels:
    """Draw values of references and best trials against what they cost."""
    verdict = data.verdict
    figure = blank("bits per weight", data.objective.column)
    colours = palette.series(dict.fromkeys(cost.series for cost in verdict.costs), {BEST_TRIAL})
    for (label, colour), symbol in zip(colours.items(), cycle(SYMBOLS), strict=False):
        costs = [cost for cost in verdict.costs if cost.series == label]
        figure.add_scatter(
            x=[cost.bits for cost in costs],
            y=[cost.value for cost in costs],
            mode="lines+markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"color": colour, "symbol": symbol, "size": 11},
            error_y={
                "array": [cost.high - cost.value for cost in costs],
                "arrayminus": [cost.value - cost.low for cost in costs],
                "thickness": 1,
                "width": 3,
            },
            text=[
                f"{cost.name}, {cost.size_class}: {data.objective.number(cost.value)} at {cost.bits:.3f} bits"
                for cost in costs
            ],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
            name=label,
        )
    if verdict.full is not None:
        figure.add_hline(verdict.full, line={"dash": "dash", "color": palette.GREY})
        named = {"dash": "dash", "color": palette.GREY}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=named, name="full precision")
    return [("", figure)]


def memory(data: ChartData) -> Panels:
    """Draw bytes of the whole model, in parts."""
    sizes = data.verdict.memory
    figure = blank("MB", "", height=150 + 44 * len(sizes))
    parts = (("blocks", palette.BLUE), ("scales", palette.ORANGE), ("others", palette.GREY))
    names = {"blocks": "weights of the blocks", "scales": "scales, zero points", "others": "all other weights"}
    for part, colour in parts:
        figure.add_bar(
            x=[getattr(size, part) / 1e6 for size in sizes],
            y=[size.name for size in sizes],
            orientation="h",
            marker={"color": colour},
            name=names[part],
            hovertemplate="%{y}: %{x:.2f} MB<extra>" + names[part] + "</extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.35, legend={"traceorder": "normal"})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return [("", figure)]


def transfer(data: ChartData) -> Panels:
    """Draw one line per setting across the texts."""
    transferred = data.verdict.transfer
    assert transferred is not None
    figure = blank("", f"{data.objective.change_column} above full precision", height=HEIGHT)
    colours = palette.series([name for name, _ in transferred.rows], {transferred.searched})
    for (name, values), symbol in zip(transferred.rows, cycle(SYMBOLS), strict=False):
        colour = colours[name]
        figure.add_scatter(
            x=[purpose for purpose, _ in transferred.texts],
            y=list(values),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 10},
            hovertemplate=f"{name}: %{{y:+.{data.objective.change_digits}f}} {data.objective.unit}<extra></extra>",
            cliponaxis=False,
            name=name,
        )
    figure.update_xaxes(range=[-0.3, len(transferred.texts) - 0.7])
    return [("", figure)]


def refining(data: ChartData) -> Panels:
    """Draw the divergence on what is held back, step by step."""
    refined = data.verdict.refining
    assert refined is not None
    figure = blank("steps", "KL from full precision, nats per token")
    steps, divergences = [look.step for look in refined.looks], [look.kl for look in refined.looks]
    kept = [divergence for step, divergence in zip(steps, divergences, strict=True) if step == refined.kept_step]
    figure.add_scatter(
        x=steps,
        y=divergences,
        mode="lines+markers",
        line={"color": palette.BLUE, "width": 2},
        marker={"size": 8},
        hovertemplate="%{y:.4f} nats after %{x} steps<extra></extra>",
        name="held back",
    )
    figure.add_scatter(
        x=[refined.kept_step] * len(kept),
        y=kept,
        mode="markers",
        marker={"color": palette.ORANGE, "symbol": "circle-open", "size": 16, "line": {"width": 3}},
        hoverinfo="skip",
        name="kept",
    )
    figure.add_hline(divergences[0], line={"dash": "dash", "color": palette.GREY})
    return [("", figure)]


def damage(data: ChartData) -> Panels:
    """Draw mean NLL above full precision against divergence from it, with both intervals."""
    figure = blank("KL from full precision, nats per token", "NLL above full precision, nats per token")
    damages = data.verdict.damages
    size_classes = dict.fromkeys(member.size_class for member in damages)
    for size_class, colour in zip(size_classes, cycle(palette.GROUPS), strict=False):
        for kind, symbol in (("reference", "square"), ("trial", "circle")):
            members = [member for member in damages if (member.size_class, member.kind) == (size_class, kind)]
            if not members:
                continue
            figure.add_scatter(
                x=[member.kl.value for member in members],
                y=[member.nll.value for member in members],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 9},
                error_x={"array": [member.kl.high - member.kl.value for member in members], "thickness": 1, "width": 2},
                error_y={
                    "array": [member.nll.high - member.nll.value for member in members],
                    "thickness": 1,
                    "width": 2,
                },
                text=[member.text for member in members],
                hovertemplate="%{text}<extra></extra>",
                name=f"{kind}s {size_class.short}",
            )
    ends = [min(member.kl.value for member in damages), max(member.kl.value for member in damages)]
    dashed = {"dash": "dash", "color": palette.GREY, "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=dashed, name="equal", hoverinfo="skip")
    return [("", figure)]
