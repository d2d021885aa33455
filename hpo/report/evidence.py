"""What the verdict of a report rests on, as numbers: paired differences, bits, memory, and other text.

Responsible for what is drawn of a ranking and of a confirmation, without a word on how. May assume a ranked study.
Numbers that are not finite are left out here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hpo.report.tables import is_shown
from hpo.study.record import FULL_PRECISION, Measured, StudyRecord, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.snapshot import Study
from hpo.verdict.words import short_source

Kind = Literal["reference", "trial", "recommended"]
BEST_TRIAL = "best trial"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One setting against the best reference, in percent of perplexity with its 95 % interval; negative is better."""

    name: str
    kind: Kind
    percent: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """`+1.99 [+1.07, +2.91]`; nothing for what all are compared with."""
        interval = f"{self.percent:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return interval if self.low < self.high else "compared with"


@dataclass(frozen=True, kw_only=True)
class Forest:
    """All contrasts at equal bits, best first."""

    title: str
    baseline: str
    rows: tuple[Contrast, ...]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one setting costs and gives: bits per weight of the blocks, and perplexity.

    `series` is what its line is called: the method of a reference, or that it was searched.
    """

    name: str
    series: str
    level: str
    bits: float
    perplexity: float


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
        """Bytes of the whole model."""
        return self.blocks + self.scales + self.others


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Percent of perplexity above full precision on each text: what was tuned on, and what was not.

    Attributes:
        texts: What each was for, and what it is called.
        rows: A name, and a value for each text; None where it was not measured.
        searched: The name of the winner.
    """

    texts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    searched: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that is drawn of the verdict; what is not known is empty or None."""

    forests: tuple[Forest, ...] = ()
    costs: tuple[Cost, ...] = ()
    full: float | None = None
    memory: tuple[Memory, ...] = ()
    elsewhere: Elsewhere | None = None


def evidence(study: Study) -> Evidence:
    """What a study's ranking and confirmation show; the leading group size first."""
    record, levels, lead = study.record, study.ranking, study.lead
    ordered = sorted(levels, key=lambda level: level is not lead)
    full = next((one for one in record.references if one.setting is None), None)
    return Evidence(
        forests=tuple(forest for level in ordered if len((forest := _forest(level)).rows) > 1),
        costs=tuple(_costs(levels)),
        full=full.perplexity if full else None,
        memory=tuple(_memory(full, levels)) if full else (),
        elsewhere=_elsewhere(record, levels),
    )


def find_row(level: SizeClassRanking, name: str) -> Ranked | None:
    """The row of that name."""
    return next((row for row in level.rows if row.measured.name == name), None)


def _forest(level: SizeClassRanking) -> Forest:
    baseline = level.best_reference
    rows = [
        _contrast(level, row)
        for place, row in enumerate(level.rows)
        if baseline is not None and is_shown(level, place, row)
    ]
    known = baseline.measured.name if baseline else ""
    return Forest(title=level.title, baseline=known, rows=tuple(row for row in rows if row is not None))


def _contrast(level: SizeClassRanking, row: Ranked) -> Contrast | None:
    if row.against is None:
        return None
    value, low, high = row.against.percent()
    if not all(map(math.isfinite, (value, low, high))):
        return None
    return Contrast(name=row.measured.name, kind=_kind(level, row), percent=value, low=low, high=high)


def _kind(level: SizeClassRanking, row: Ranked) -> Kind:
    if row is level.recommended:
        return "recommended"
    return "trial" if isinstance(row.measured, TrialRecord) else "reference"


def _costs(levels: Sequence[SizeClassRanking]) -> list[Cost]:
    """References and the best trial of every group size."""
    return [
        Cost(
            name=row.measured.name,
            series=BEST_TRIAL if row is level.best_trial else row.measured.name,
            level=str(level.size_class),
            bits=row.measured.bits_per_weight,
            perplexity=row.score.perplexity,
        )
        for level in levels
        for row in level.rows
        if row.measured.bits_per_weight is not None
        and math.isfinite(row.score.perplexity)
        and (row is level.best_trial or not isinstance(row.measured, TrialRecord))
    ]


def _memory(full: Measured, levels: Sequence[SizeClassRanking]) -> list[Memory]:
    """Full precision and the best of every size class, where their sizes are known."""
    best = [(str(level.size_class), level.best.measured.size) for level in levels]
    sizes = [(name, size) for name, size in best if size is not None]
    if full.size is None or not sizes:
        return []
    return [
        Memory(name=name, blocks=size.codes + size.rest, scales=size.scales, others=size.outside)
        for name, size in [(FULL_PRECISION, full.size), *sizes]
    ]


def _elsewhere(record: StudyRecord, levels: Sequence[SizeClassRanking]) -> Elsewhere | None:
    found = record.confirmation
    if found is None or not found["rows"]:
        return None
    level = next((level for level in levels if find_row(level, str(found["winner"]))), None)
    datasets = list(dict.fromkeys(row["dataset"] for row in found["rows"]))
    names = [name for name in dict.fromkeys(row["name"] for row in found["rows"]) if name != FULL_PRECISION]
    tuned = {row.measured.name: row.score.perplexity for row in level.rows} if level else {}
    columns = [_above(tuned, _tuning_perplexity(record), names)]
    for dataset in datasets:
        on = {row["name"]: row["perplexity"] for row in found["rows"] if row["dataset"] == dataset}
        columns.append(_above(on, on.get(FULL_PRECISION), names))
    tuning = short_source(record.contract.tuning.source)
    purposes = ("tuned on", "held out", *["second data set"] * len(datasets))
    texts = tuple(zip(purposes, (tuning, *map(short_source, datasets)), strict=False))
    rows = tuple((name, tuple(column[place] for column in columns)) for place, name in enumerate(names))
    return Elsewhere(texts=texts, rows=rows, searched=str(found["winner"]))


def _tuning_perplexity(record: StudyRecord) -> float | None:
    return next((one.perplexity for one in record.references if one.setting is None), None)


def _above(values: Mapping[str, Any], full: float | None, names: Sequence[str]) -> list[float | None]:
    def percent(value: float | None) -> float | None:
        known = value is not None and full is not None and math.isfinite(value) and full > 0
        return 100 * (value / full - 1) if known else None  # type: ignore[operator]

    return [percent(values.get(name)) for name in names]
