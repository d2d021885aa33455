"""The files beside a trial: what it did to each sequence and what it chose in each layer.

Responsible for one picture and one table. May assume results of the same sequences in the same order.
"""

import csv
import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from hpo.report import palette
from hpo.report.layer_map import map_layers
from hpo.report.plots import png
from hpo.report.sheet import draw_map, sheet, tidy
from hpo.study.objective import Objective
from objectives.scoring import Score
from objectives.trial import TrialResult

PICTURE, TABLE = "nll-change-and-alpha.png", "layers.csv"


def trial_picture(result: TrialResult, full: Score, objective: Objective) -> bytes:
    """Draw what a trial lost, sequence by sequence, and alpha by depth and role, as a PNG file.

    Args:
        result: With a score of the first sequences.
        full: Full precision's, of all of them.
        objective: What is drawn of them, above full precision.
    """
    assert result.score is not None
    layer_map = map_layers(result.layers, lambda layer: layer.alpha)
    searched = bool(layer_map.numbers) and result.setting is not None and result.setting.definition.salience is not None
    figure = sheet(9.6 if searched else 4.8, 3.2)
    panels = figure.subplots(1, 2 if searched else 1, squeeze=False)[0]
    _change(panels[0], result.score, full.first(len(result.score.nll)), objective)
    if searched:
        draw_map(figure, panels[1], layer_map, "α", Normalize(0, 1))
        panels[1].set_title("α by depth and role", fontsize="medium", loc="left")
        panels[1].set_xlabel("depth")
    return png(figure)


def layer_table(result: TrialResult) -> bytes:
    """Write one row per Linear, as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["layer", "depth", "role", "alpha", "nearest_loss", "loss"])
    for layer in result.layers:
        losses = (f"{layer.nearest_loss:.6g}", f"{layer.final_loss:.6g}")
        writer.writerow([layer.name, layer.depth, layer.role, layer.alpha, *losses])
    return buffer.getvalue().encode()


def _change(axes: Axes, score: Score, full: Score, objective: Objective) -> None:
    measure = objective.measure
    change = np.sort(((score.of(measure) - full.of(measure)) / score.tokens).numpy())[::-1]
    colours = [palette.FAILED if value > 0 else palette.BEST for value in change]
    axes.bar(range(len(change)), change, 1.0, color=colours)
    mean = score.mean(measure) - full.mean(measure)
    axes.axhline(mean, linestyle="--", color=palette.MEASURED, label=f"mean {mean:+.4f}")
    axes.legend(frameon=False)
    axes.set_title(f"{measure.upper()} above full precision, nats per token", fontsize="medium", loc="left")
    tidy(axes, "sequences, worst first", "")
