"""What a report's figures show, as numbers: axes, points, lines and surfaces, without a word on how they are drawn.

Responsible for what `figures` and `plots` have in common, so that the page and its pictures cannot differ. May assume
a ranked study. Numbers that are not finite are left out here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hpo.report.axes import Axis, varied_axes
from hpo.report.layer_map import LayerChoices, layer_choices
from hpo.report.plan_data import PlanData, plan_data
from hpo.report.verdict_data import Forest, VerdictData, verdict_data
from hpo.space.size_class import SIZE_CLASS_FIELDS, SizeClass
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import StudyRecord, TrialRecord
from hpo.verdict.importance import Importances, most_frequent_size_class
from hpo.verdict.snapshot import Study

# Of the range of values, free at either end of an axis.
MARGIN = 0.06
# A surface is a weighted mean of the trials around a point; nothing is drawn farther than MOST_DISTANCE from all.
BANDWIDTH, MOST_DISTANCE, CELLS = 0.12, 0.25, 40
FEWEST_FOR_SURFACE = 8
# Tukey's fence: in units of the distance between the quartiles, above the upper one.
FENCE = 1.5


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial with a value: measured, or estimated with an interval.

    `values` has the place of its setting on every axis, `text` names its values, `reads` are those that matter to it.
    """

    number: int
    name: str
    size_class: SizeClass | None
    value: float
    low: float
    high: float
    values: Mapping[str, float]
    text: str
    reads: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial's value in percent above the lowest of all trials after as many sequences."""

    name: str
    kind: Literal["complete", "pruned", "best"]
    sequences: tuple[int, ...]
    percent: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The value over two hyperparameters at equal bits: trials, and a smoothed mean `z[y][x]` of them.

    `x`, `y` and `z` are empty where there are too few trials; a cell far from every trial is NaN.
    """

    size_class: SizeClass | None
    points: tuple[Point, ...]
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    z: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChartData:
    """Everything that is drawn.

    Attributes:
        axes: Hyperparameters that vary.
        measured: Complete trials, by number.
        estimated: Pruned trials with an estimate, by number.
        failed: Numbers of failed trials.
        baseline: Name with size class, and value, of the best reference of the leading ranking.
        importances: Shares of the hyperparameters.
        running: Values over the first sequences.
        surface: Over beta and tau; None where one of them is fixed.
        layers: Of the best trial.
        verdict: What the figures of the verdict show.
        objective: What is a value.
        plans: What plans store and lose; None where all Linears are stored alike.
    """

    axes: tuple[Axis, ...]
    measured: tuple[Point, ...]
    estimated: tuple[Point, ...]
    failed: tuple[int, ...]
    baseline: tuple[str, float] | None
    importances: Importances
    running: tuple[Running, ...]
    surface: Surface | None
    layers: LayerChoices
    verdict: VerdictData = field(default_factory=VerdictData)
    objective: Objective = PERPLEXITY
    plans: PlanData | None = None

    @property
    def best(self) -> Point | None:
        """Find the measured point of least value."""
        return min(self.measured, key=lambda point: (point.value, point.number), default=None)

    @property
    def size_classes(self) -> list[SizeClass]:
        """List those of the measured and estimated trials, in order."""
        present = {point.size_class for point in (*self.measured, *self.estimated)}
        return sorted((size_class for size_class in present if size_class is not None), key=lambda size: size.order)

    @property
    def best_so_far(self) -> list[tuple[int, float]]:
        """Find the least measured value after each complete trial, by its number."""
        lowest = np.minimum.accumulate([point.value for point in self.measured])
        return [(point.number, float(value)) for point, value in zip(self.measured, lowest, strict=True)]


def chart_data(study: Study) -> ChartData:
    """Collect everything that the figures of a study show."""
    record, lead = study.record, study.lead
    axes = varied_axes(record.contract.space)
    measured = [point for trial in record.trials if (point := _measured(trial, axes)) is not None]
    estimated = [point for trial in record.trials if (point := _estimated(trial, axes)) is not None]
    reference = lead.best_reference if lead else None
    return ChartData(
        axes=axes,
        measured=tuple(measured),
        estimated=tuple(estimated),
        failed=tuple(trial.number for trial in record.trials if trial.state == "FAIL"),
        baseline=None if reference is None else (reference.measured.full_name, record.objective.value(reference.score)),
        importances=study.importances,
        running=tuple(_running(record)),
        surface=_surface(record, axes, measured),
        layers=layer_choices(record.best, study.store),
        verdict=verdict_data(study),
        objective=record.objective,
        plans=plan_data(study),
    )


def value_range(data: ChartData) -> tuple[float, float]:
    """Find the ends of an axis with room for every point that is no outlier, and for the baseline."""
    values = [point.value for point in (*data.measured, *data.estimated)]
    baseline = [] if data.baseline is None else [data.baseline[1]]
    low, high = min([*values, *baseline]), max([shown_up_to(values), *baseline])
    room = MARGIN * (high - low) or MARGIN * low
    return low - room, high + room


def heights(points: Sequence[Point], ends: tuple[float, float]) -> list[float]:
    """Place points on an axis of these ends, outliers at its upper edge."""
    return [min(point.value, ends[1]) for point in points]


def intervals(points: Sequence[Point], ends: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Return the half widths of the points' intervals, below and above where they stand."""
    placed = list(zip(points, heights(points, ends), strict=True))
    below = [max(0.0, height - point.low) for point, height in placed]
    return below, [max(0.0, point.high - height) for point, height in placed]


def shown_up_to(values: Sequence[float]) -> float:
    """Find the end of a scale that outliers must not stretch: the largest value within Tukey's fence."""
    lower, upper = np.percentile(values, [25, 75])
    fence = upper + FENCE * (upper - lower)
    return float(max((value for value in values if value <= fence), default=max(values)))


def forest_ends(forest: Forest) -> tuple[float, float]:
    """Find the ends of an axis with zero, every interval that is no outlier, and some width."""
    low = min(0.0, *(row.low for row in forest.rows))
    high = max(0.0, shown_up_to([row.high for row in forest.rows]))
    return low, max(high, low + MARGIN)


def _measured(trial: TrialRecord, axes: Sequence[Axis]) -> Point | None:
    if trial.state != "COMPLETE" or trial.value is None:
        return None
    return _point(trial, axes, trial.value, trial.value, trial.value)


def _estimated(trial: TrialRecord, axes: Sequence[Axis]) -> Point | None:
    if trial.state != "PRUNED" or trial.estimate is None:
        return None
    return _point(trial, axes, trial.estimate.value, trial.estimate.low, trial.estimate.high)


def _point(trial: TrialRecord, axes: Sequence[Axis], value: float, low: float, high: float) -> Point | None:
    if trial.setting is None or not 0 < value < math.inf:
        return None
    return Point(
        number=trial.number,
        name=trial.name,
        size_class=trial.size_class,
        value=value,
        low=low if 0 <= low <= value and high < math.inf else value,
        high=high if value <= high < math.inf else value,
        values={axis.name: axis.number(getattr(trial.setting, axis.name)) for axis in axes},
        text=", ".join(f"{axis.name} {axis.text(axis.number(getattr(trial.setting, axis.name)))}" for axis in axes),
        reads=trial.setting.reads,
    )


def _running(record: StudyRecord) -> list[Running]:
    values_by_trial = {
        trial.number: {step: value for step, value in sorted(trial.running.items()) if 0 < value < math.inf}
        for trial in record.trials
        if trial.state in ("COMPLETE", "PRUNED")
    }
    lowest: dict[int, float] = {}
    for step, value in (entry for values in values_by_trial.values() for entry in values.items()):
        lowest[step] = min(value, lowest.get(step, math.inf))
    best = record.best.number if record.best else None
    return [
        Running(
            name=trial.name,
            kind="best" if trial.number == best else "complete" if trial.state == "COMPLETE" else "pruned",
            sequences=tuple(values_by_trial[trial.number]),
            percent=tuple(100 * (value / lowest[step] - 1) for step, value in values_by_trial[trial.number].items()),
        )
        for trial in record.trials
        if values_by_trial.get(trial.number)
    ]


def _surface(record: StudyRecord, axes: Sequence[Axis], measured: Sequence[Point]) -> Surface | None:
    by_name = {axis.name: axis for axis in axes}
    if not {"beta", "tau"} <= set(by_name):
        return None
    beta, tau = by_name["beta"], by_name["tau"]
    most_frequent = most_frequent_size_class(record.complete)
    points = tuple(
        point for point in measured if by_name.keys().isdisjoint(SIZE_CLASS_FIELDS) or point.size_class == most_frequent
    )
    if len(points) < FEWEST_FOR_SURFACE:
        return Surface(size_class=most_frequent, points=points)
    positions = np.array([[beta.fraction(point.values["beta"]), tau.fraction(point.values["tau"])] for point in points])
    cells = np.linspace(0, 1, CELLS)
    x, y = np.meshgrid(cells, cells)
    squared = (x[..., None] - positions[:, 0]) ** 2 + (y[..., None] - positions[:, 1]) ** 2
    weights = np.exp(-squared / (2 * BANDWIDTH**2))
    values, objective = [point.value for point in points], record.objective
    nats = [objective.to_nats(min(value, shown_up_to(values))) for value in values]
    mean = np.vectorize(objective.from_nats, otypes=[float])(weights @ nats / weights.sum(-1))
    z = np.where(squared.min(-1) <= MOST_DISTANCE**2, mean, np.nan)
    return Surface(
        size_class=most_frequent,
        points=points,
        x=tuple(map(beta.at, cells)),
        y=tuple(map(tau.at, cells)),
        z=tuple(map(tuple, z.tolist())),
    )
