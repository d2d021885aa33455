"""The tables of a comparison, as text in rows, for the terminal and for the page alike."""

from collections.abc import Iterator

from hpo.comparison.export import printed_rows
from hpo.comparison.verdict import Comparison
from hpo.report.tables import Table
from hpo.study.confirmation import Interval
from hpo.verdict.words import NOTHING, interval_text, margin_text, number

SPEED = "tokens/s of the dense model"


def tables(comparison: Comparison) -> list[Table]:
    """Tabulate every data set, and the gaps between them where there are several."""
    return [*_data_sets(comparison), *([_gaps(comparison)] if comparison.gaps else [])]


def pair_table(comparison: Comparison) -> Table:
    """Tabulate all pairwise differences."""
    return Table(
        title="All pairs",
        columns=("data set", "first", "second", "perplexity, percent [95 %]", "p", "p after Holm"),
        rows=tuple(
            (
                pair.dataset,
                pair.first,
                pair.second,
                interval_text(*pair.difference.percent()),
                number(pair.difference.p_value, 4),
                number(pair.corrected, 4),
            )
            for pair in comparison.pairs
        ),
        words=3,
        note=f"Negative is in the first one's favour. {pair_note(comparison)}",
    )


def pair_note(comparison: Comparison) -> str:
    """Say how many pairs differ."""
    differ = sum(pair.is_significant for pair in comparison.pairs)
    return f"{differ} of {len(comparison.pairs)} pairs differ significantly after Holm's correction for all of them."


def _data_sets(comparison: Comparison) -> Iterator[Table]:
    all_rows = printed_rows(comparison)
    first = comparison.first
    for dataset in comparison.datasets:
        of_dataset = [row for row in all_rows if row.dataset == dataset]
        of_dataset.sort(key=lambda row: (row.rank is not None, row.mean_nll))
        yield Table(
            title=dataset,
            columns=(
                *("method", "rank", "at equal bits", "perplexity", "percent above full [95 %]"),
                f"percent above {first.name if first else NOTHING} [95 %]",
                *("KL, nats", "flips, %"),
                *("bits/weight", "MB", "ratio", "quantize, s", SPEED),
            ),
            rows=tuple(
                (
                    row.method,
                    _count(row.rank),
                    _count(row.rank_at_equal_bits),
                    number(row.perplexity),
                    _interval(row.delta_percent),
                    _interval(row.delta_to_first_percent),
                    margin_text(row.kl, 4),
                    margin_text(row.flips, 1),
                    number(row.bits_per_weight),
                    number(row.model_mb, 2),
                    number(row.compression_ratio, 2),
                    number(row.quantize_seconds, 1),
                    number(row.dense_tokens_per_second, 0),
                )
                for row in of_dataset
            ),
        )


def _gaps(comparison: Comparison) -> Table:
    near = comparison.datasets[0]
    return Table(
        title="Generalisation",
        columns=("method", "other data set", f"percent above full on {near}", "on the other", "gap, nats [95 %]"),
        rows=tuple(
            (
                gap.name,
                gap.dataset,
                interval_text(*gap.near.percent()),
                interval_text(*gap.far.percent()),
                f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]",
            )
            for gap in comparison.gaps
        ),
        words=2,
        note="The gap is the increase of the mean loss on the other data set minus the increase on the first.",
    )


def _count(value: int | None) -> str:
    return NOTHING if value is None else str(value)


def _interval(interval: Interval | None) -> str:
    return NOTHING if interval is None else interval_text(interval.value, interval.low, interval.high)
