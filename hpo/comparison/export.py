"""A comparison as data for programs: one JSON-able object, and its rows as CSV.

Responsible for the names of their fields. Differences are `{value, low, high}`, in nats per token or in percent of
perplexity; in CSV they are three columns.
"""

import io
from collections.abc import Mapping
from typing import Any

from hpo.comparison.entries import Entry
from hpo.comparison.verdict import EQUAL_BITS, Comparison
from objectives.paired import Difference

ENDS = ("value", "low", "high")
DIFFERENCES = ("delta", "delta_percent", "delta_to_first", "delta_to_first_percent")


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Collect everything that a comparison holds, as JSON has it but for numbers that are not finite."""
    return {
        "about": dict(comparison.about),
        "rows": rows(comparison),
        "pairs": [
            {
                "dataset": pair.dataset,
                "first": pair.first,
                "second": pair.second,
                "difference": _nats(pair.difference),
                "percent": _percent(pair.difference),
                "p_value": pair.difference.p_value,
                "holm": pair.corrected,
                "significant": pair.is_significant,
            }
            for pair in comparison.pairs
        ],
        "gaps": [
            {
                "method": gap.name,
                "in_distribution": comparison.datasets[0],
                "cross_dataset": gap.dataset,
                "delta_in_distribution": _nats(gap.near),
                "delta_cross_dataset": _nats(gap.far),
                "gap": {"value": gap.value, "low": gap.low, "high": gap.high},
            }
            for gap in comparison.gaps
        ],
        "recommendation": {
            "sentence": comparison.recommendation,
            "rule": EQUAL_BITS,
            "dataset": comparison.datasets[0],
            "levels": [
                {
                    "bits_per_weight": choice.bits,
                    "recommended": choice.recommended,
                    "rows": list(choice.rows),
                    "sentence": choice.sentence,
                }
                for choice in comparison.choices
            ],
        },
        "notes": list(comparison.notes),
    }


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Make one for every row and data set, data set by data set."""
    return [_row(comparison, entry, at) for at in range(len(comparison.datasets)) for entry in comparison.entries]


def rows_csv(comparison: Comparison) -> str:
    """Write `rows` as CSV, differences in three columns each; the setting is its label."""
    # Imported here: pandas takes half a second.
    import pandas as pd

    table = pd.DataFrame([_flat(row) for row in rows(comparison)]).convert_dtypes()
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _row(comparison: Comparison, entry: Entry, at: int) -> dict[str, Any]:
    score, measured, dataset = entry.scores[at], entry.measured, comparison.datasets[at]
    full, first = comparison.full, comparison.first
    above = comparison.difference(entry, full, at) if entry is not full else None
    against = comparison.difference(entry, first, at) if first is not None and entry is not full else None
    size, whole = measured.model_bytes, full.measured.model_bytes
    return {
        "method": entry.name,
        "kind": entry.kind,
        "label": measured.label,
        "setting": measured.setting.as_dict() if measured.setting else None,
        "dataset": dataset,
        "perplexity": score.perplexity,
        "mean_nll": score.mean_nll,
        "tokens": int(score.tokens.sum()),
        "rank": comparison.ranks[dataset].get(entry.name),
        "rank_at_equal_bits": comparison.equal_ranks[dataset].get(entry.name),
        "delta": _nats(above),
        "delta_percent": _percent(above),
        "delta_to_first": _nats(against),
        "delta_to_first_percent": _percent(against),
        "bits_per_weight": measured.bits_per_weight,
        "model_mb": None if size is None else size / 1e6,
        "compression_ratio": whole / size if whole and size else None,
        "quantize_seconds": measured.seconds.get("quantize"),
        "dense_tokens_per_second": entry.tokens_per_second(at),
    }


def _flat(row: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in row.items():
        if name in DIFFERENCES:
            ends = value or dict.fromkeys(ENDS)
            flat |= {name if end == "value" else f"{name}_{end}": ends[end] for end in ENDS}
        elif name != "setting":
            flat[name] = value
    return flat


def _nats(difference: Difference | None) -> dict[str, float] | None:
    if difference is None:
        return None
    return {"value": difference.value, "low": difference.low, "high": difference.high}


def _percent(difference: Difference | None) -> dict[str, float] | None:
    return None if difference is None else difference.percent_json()
