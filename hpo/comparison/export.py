"""A comparison as data for programs: one object as JSON, and its rows as CSV.

Responsible for the names of their fields. Differences are `{value, low, high}`, in nats per token or in percent of
perplexity; in CSV they are three columns.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields

from hpo.comparison.entries import Entry
from hpo.comparison.verdict import EQUAL_BITS, Comparison
from hpo.study.confirmation import Interval
from hpo.verdict.words import flips_interval, kl_interval, nats_interval, percent_interval
from objectives.paired import Difference, distance
from quant.setting import Setting

ENDS = tuple(field.name for field in fields(Interval))


@dataclass(frozen=True, kw_only=True)
class PrintedRow:
    """One row on one data set; differences are to full precision and to the first method, flips in percent."""

    method: str
    kind: str
    label: str
    setting: Setting | None
    dataset: str
    perplexity: float
    mean_nll: float
    tokens: int
    rank: int | None
    rank_at_equal_bits: int | None
    delta: Interval | None
    delta_percent: Interval | None
    delta_to_first: Interval | None
    delta_to_first_percent: Interval | None
    kl: Interval | None
    flips: Interval | None
    bits_per_weight: float | None
    model_mb: float | None
    compression_ratio: float | None
    quantize_seconds: float | None
    dense_tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class PrintedPair:
    """Two rows on one data set; negative is in favour of the first."""

    dataset: str
    first: str
    second: str
    difference: Interval
    percent: Interval
    p_value: float
    holm: float
    significant: bool


@dataclass(frozen=True, kw_only=True)
class PrintedGap:
    """How much more a row loses on another data set than on the first one."""

    method: str
    in_distribution: str
    cross_dataset: str
    delta_in_distribution: Interval
    delta_cross_dataset: Interval
    gap: Interval


@dataclass(frozen=True, kw_only=True)
class PrintedLevel:
    """What is recommended among the rows of about equal bits."""

    bits_per_weight: float | None
    recommended: str
    rows: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class PrintedRecommendation:
    """What is recommended at every size, by which rule, on which data set."""

    sentence: str
    rule: str
    dataset: str
    levels: tuple[PrintedLevel, ...]


@dataclass(frozen=True, kw_only=True)
class PrintedComparison:
    """Everything that a comparison holds."""

    about: Mapping[str, object]
    rows: tuple[PrintedRow, ...]
    pairs: tuple[PrintedPair, ...]
    gaps: tuple[PrintedGap, ...]
    recommendation: PrintedRecommendation
    notes: tuple[str, ...]


def printed_comparison(comparison: Comparison) -> PrintedComparison:
    """Collect what programs are told of a comparison."""
    return PrintedComparison(
        about=comparison.about,
        rows=printed_rows(comparison),
        pairs=tuple(
            PrintedPair(
                dataset=pair.dataset,
                first=pair.first,
                second=pair.second,
                difference=nats_interval(pair.difference),
                percent=percent_interval(pair.difference),
                p_value=pair.difference.p_value,
                holm=pair.corrected,
                significant=pair.is_significant,
            )
            for pair in comparison.pairs
        ),
        gaps=tuple(
            PrintedGap(
                method=gap.name,
                in_distribution=comparison.datasets[0],
                cross_dataset=gap.dataset,
                delta_in_distribution=nats_interval(gap.near),
                delta_cross_dataset=nats_interval(gap.far),
                gap=Interval(value=gap.value, low=gap.low, high=gap.high),
            )
            for gap in comparison.gaps
        ),
        recommendation=PrintedRecommendation(
            sentence=comparison.recommendation,
            rule=EQUAL_BITS,
            dataset=comparison.datasets[0],
            levels=tuple(
                PrintedLevel(
                    bits_per_weight=choice.bits,
                    recommended=choice.recommended,
                    rows=tuple(choice.rows),
                    sentence=choice.sentence,
                )
                for choice in comparison.choices
            ),
        ),
        notes=tuple(comparison.notes),
    )


def printed_rows(comparison: Comparison) -> tuple[PrintedRow, ...]:
    """Make one for every row and data set, data set by data set."""
    return tuple(_row(comparison, entry, at) for at in range(len(comparison.datasets)) for entry in comparison.entries)


def rows_csv(comparison: Comparison) -> str:
    """Write `printed_rows` as CSV, differences in three columns each; the setting is its label."""
    # Imported here: pandas takes half a second.
    import pandas as pd

    table = pd.DataFrame([_flat(row) for row in printed_rows(comparison)]).convert_dtypes()
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _row(comparison: Comparison, entry: Entry, at: int) -> PrintedRow:
    score, measured, dataset = entry.scores[at], entry.measured, comparison.datasets[at]
    full, first = comparison.full, comparison.first
    above = comparison.difference(entry, full, at) if entry is not full else None
    against = comparison.difference(entry, first, at) if first is not None and entry is not full else None
    divergence, flips = (None if entry is full else distance(score, name) for name in ("kl", "flips"))
    size, whole = measured.model_bytes, full.measured.model_bytes
    return PrintedRow(
        method=entry.name,
        kind=entry.kind,
        label=measured.label,
        setting=measured.setting,
        dataset=dataset,
        perplexity=score.perplexity,
        mean_nll=score.mean_nll,
        tokens=int(score.tokens.sum()),
        rank=comparison.ranks[dataset].get(entry.name),
        rank_at_equal_bits=comparison.equal_ranks[dataset].get(entry.name),
        delta=_nats(above),
        delta_percent=_percent(above),
        delta_to_first=_nats(against),
        delta_to_first_percent=_percent(against),
        kl=kl_interval(divergence),
        flips=flips_interval(flips),
        bits_per_weight=measured.bits_per_weight,
        model_mb=None if size is None else size / 1e6,
        compression_ratio=whole / size if whole and size else None,
        quantize_seconds=measured.seconds.get("quantize"),
        dense_tokens_per_second=entry.tokens_per_second(at),
    )


def _flat(row: PrintedRow) -> dict[str, object]:
    flat: dict[str, object] = {}
    for field in fields(row):
        name, value = field.name, getattr(row, field.name)
        if name.startswith("delta") or name in ("kl", "flips"):
            flat |= {name if end == "value" else f"{name}_{end}": value and getattr(value, end) for end in ENDS}
        elif name != "setting":
            flat[name] = value
    return flat


def _nats(difference: Difference | None) -> Interval | None:
    return None if difference is None else nats_interval(difference)


def _percent(difference: Difference | None) -> Interval | None:
    return None if difference is None else percent_interval(difference)
