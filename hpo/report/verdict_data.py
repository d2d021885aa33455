"""What the verdict of a report rests on, as numbers: paired differences, bits, memory, and other text.

Responsible for what is drawn of a ranking and of a confirmation, without a word on how. May assume a ranked study.
Numbers that are not finite are left out here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpo.report.damage import Damage, damages
from hpo.report.tables import is_shown
from hpo.study.confirmation import RefinedConfirmation
from hpo.study.objective import Objective
from hpo.study.record import FULL_PRECISION, Measured, StudyRecord, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.snapshot import Study
from hpo.verdict.words import short_source
from objectives.scoring import Score

Kind = Literal["reference", "trial", "recommended"]
BEST_TRIAL = "best trial"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One setting against the best reference, in the unit of a change with its 95 % interval; negative is better.

    `text` is `+1.99 [+1.07, +2.91]`; of the row that all are compared with it says so.
    """

    name: str
    kind: Kind
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Forest:
    """All contrasts at equal bits, best first: a forest plot's rows."""

    title: str
    baseline: str
    rows: tuple[Contrast, ...]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one setting costs and gives: bits per weight of the blocks, and its value with a 95 % interval.

    `series` is what its line is called: the method of a reference, or that it was searched.
    """

    name: str
    series: str
    size_class: str
    bits: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where the bytes of a model go.

    Attributes:
        name: What takes them.
        blocks: Bytes of the decoder blocks' weights, as codes or not quantized.
        scales: Bytes of what codes need besides: scales and zero points.
        others: Bytes of all other weights.
    """

    name: str
    blocks: float
    scales: float
    others: float

    @property
    def total(self) -> float:
        """Add up the bytes of the whole model."""
        return self.blocks + self.scales + self.others


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How settings transfer to other text: their change from full precision on each.

    Attributes:
        texts: What each was for, and what it is called.
        rows: A name, and a value for each text; None where it was not measured.
        searched: The name of the winner.
    """

    texts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    searched: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A step of a waterfall, in nats per token above full precision: from the step before to its own place.

    `low` and `high` are the ends of the paired 95 % interval of the step, around `end`; equal where there is none.
    """

    name: str
    start: float
    end: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """Write it as `-0.0123 [-0.0150, -0.0096]`; bars without an interval as their length."""
        value, low, high = (place - self.start for place in (self.end, self.low, self.high))
        return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" if low < high else f"{value:.4f}"


@dataclass(frozen=True, kw_only=True)
class VerdictData:
    """Everything that is drawn of the verdict; what is not known is empty or None."""

    forests: tuple[Forest, ...] = ()
    costs: tuple[Cost, ...] = ()
    full: float | None = None
    memory: tuple[Memory, ...] = ()
    transfer: Transfer | None = None
    waterfall: tuple[Bar, ...] = ()
    damages: tuple[Damage, ...] = ()
    refining: RefinedConfirmation | None = None


def verdict_data(study: Study) -> VerdictData:
    """Collect what a study's rankings and confirmation show; the leading size class first."""
    record, rankings, lead = study.record, study.rankings, study.lead
    ordered = sorted(rankings, key=lambda ranking: ranking is not lead)
    full = record.full_precision
    return VerdictData(
        forests=tuple(forest for ranking in ordered if len((forest := _forest(ranking)).rows) > 1),
        costs=tuple(_costs(study)),
        full=record.objective.of_full(full),
        memory=tuple(_memory(full, rankings)) if full else (),
        transfer=_transfer(record, rankings),
        waterfall=tuple(_waterfall(study)),
        damages=damages(study),
        refining=record.refined if record.refined is not None and record.refined.looks else None,
    )


def find_row(ranking: SizeClassRanking, name: str) -> Ranked | None:
    """Find the row of that name; None where there is none."""
    return next((row for row in ranking.rows if row.measured.name == name), None)


def _forest(ranking: SizeClassRanking) -> Forest:
    baseline = ranking.best_reference
    rows = [
        _contrast(ranking, row)
        for place, row in enumerate(ranking.rows)
        if baseline is not None and is_shown(ranking, place, row)
    ]
    name = baseline.measured.name if baseline else ""
    return Forest(title=ranking.title, baseline=name, rows=tuple(row for row in rows if row is not None))


def _contrast(ranking: SizeClassRanking, row: Ranked) -> Contrast | None:
    if row.against is None:
        return None
    change = ranking.objective.change(row.against)
    if not all(map(math.isfinite, vars(change).values())):
        return None
    text = ranking.objective.numbers_text(change) if change.low < change.high else "compared with"
    return Contrast(name=row.measured.name, kind=_kind(ranking, row), **vars(change), text=text)


def _kind(ranking: SizeClassRanking, row: Ranked) -> Kind:
    if row is ranking.recommended:
        return "recommended"
    return "trial" if isinstance(row.measured, TrialRecord) else "reference"


def _costs(study: Study) -> list[Cost]:
    """Collect references and the best trial of every size class, each with what full precision tells of its error."""
    record, rankings = study.record, study.rankings
    scored = study.scores.readable([] if record.full_precision is None else [record.full_precision])
    exact = scored[0][1] if scored else None
    return [
        Cost(
            name=row.measured.name,
            series=BEST_TRIAL if row is ranking.best_trial else _series(row.measured),
            size_class=str(ranking.size_class),
            bits=row.measured.bits_per_weight,
            value=ranking.objective.value(row.score),
            **_ends(row.score, exact, ranking.objective),
        )
        for ranking in rankings
        for row in ranking.rows
        if row.measured.bits_per_weight is not None
        and math.isfinite(ranking.objective.value(row.score))
        and (row is ranking.best_trial or not isinstance(row.measured, TrialRecord))
    ]


def _series(measured: Measured) -> str:
    """Name what is measured in several sizes without its size."""
    size = "" if measured.size_class is None else measured.size_class.short
    return measured.name.removesuffix(f" {size}")


def _ends(score: Score, exact: Score | None, objective: Objective) -> dict[str, float]:
    """Return the ends of a value's interval, from its paired difference to full precision; itself where unknown."""
    value = objective.value(score)
    if exact is None:
        return {"low": value, "high": value}
    difference, mean = objective.difference(score, exact), score.mean(objective.measure)
    if not math.isfinite(difference.low):
        return {"low": value, "high": value}
    around = (mean + end - difference.value for end in (difference.low, difference.high))
    return dict(zip(("low", "high"), map(objective.from_nats, around), strict=True))


def _waterfall(study: Study) -> list[Bar]:
    """Collect the steps to what is recommended, and all of them together at the end."""
    steps, chosen, objective = study.waterfall, study.recommendation, study.record.objective
    exact = objective.of_full(study.record.full_precision)
    if len(steps) < 2 or chosen is None or exact is None:
        return []
    lost = [objective.lost(step.score, exact) for step in steps]
    bars = [Bar(name=steps[0].measured.name, start=0.0, end=lost[0], low=lost[0], high=lost[0])]
    for step, start, end in zip(steps[1:], lost, lost[1:], strict=False):
        change = step.change
        assert change is not None
        low, high = start + change.low, start + change.high
        bars.append(Bar(name=step.measured.name, start=start, end=end, low=low, high=high))
    bars.append(Bar(name=chosen.measured.name, start=0.0, end=lost[-1], low=lost[-1], high=lost[-1]))
    finite = all(math.isfinite(place) for bar in bars for place in (bar.start, bar.end, bar.low, bar.high))
    return bars if finite else []


def _memory(full: Measured, rankings: Sequence[SizeClassRanking]) -> list[Memory]:
    """Collect full precision and the best of every size class, where their sizes are known."""
    best = [(str(ranking.size_class), ranking.best.measured.size) for ranking in rankings]
    sizes = [(name, size) for name, size in best if size is not None]
    if full.size is None or not sizes:
        return []
    return [
        Memory(name=name, blocks=size.codes + size.rest, scales=size.scales, others=size.outside)
        for name, size in [(FULL_PRECISION, full.size), *sizes]
    ]


def _transfer(record: StudyRecord, rankings: Sequence[SizeClassRanking]) -> Transfer | None:
    confirmation = record.confirmation
    if confirmation is None or not confirmation.rows:
        return None
    ranking = next((ranking for ranking in rankings if find_row(ranking, confirmation.winner)), None)
    datasets = confirmation.datasets
    names = [name for name in dict.fromkeys(row.name for row in confirmation.rows) if name != FULL_PRECISION]
    objective = record.objective
    tuned = {row.measured.name: objective.value(row.score) for row in ranking.rows} if ranking else {}
    columns = [_above(objective, tuned, objective.of_full(record.full_precision), names)]
    for dataset in datasets:
        of_dataset = {row.name: row for row in confirmation.rows if row.dataset == dataset}
        values = {name: objective.of(row) for name, row in of_dataset.items()}
        columns.append(_above(objective, values, objective.of_full(of_dataset.get(FULL_PRECISION)), names))
    tuning = short_source(record.contract.tuning.source)
    purposes = ("tuned on", "held out", *["second data set"] * len(datasets))
    texts = tuple(zip(purposes, (tuning, *map(short_source, datasets)), strict=False))
    rows = tuple((name, tuple(column[place] for column in columns)) for place, name in enumerate(names))
    return Transfer(texts=texts, rows=rows, searched=confirmation.winner)


def _above(
    objective: Objective, values: Mapping[str, float | None], full: float | None, names: Sequence[str]
) -> list[float | None]:
    def above(value: float | None) -> float | None:
        change = math.nan if value is None or full is None else objective.above(value, full)
        return change if math.isfinite(change) else None

    return [above(values.get(name)) for name in names]
