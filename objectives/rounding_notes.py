"""What a person is told of Linears whose codes or statistics are not what was asked for.

Responsible for these notes alone. May assume the results of one quantization.
"""

from collections.abc import Sequence

from objectives.quantized_blocks import LayerResult

MOST_NAMED = 8
"""Linears that a note names."""
HALF = 0.5


def rounding_notes(layers: Sequence[LayerResult]) -> list[str]:
    """Name what is not as it was asked for.

    Linears that GPTQ had to damp more, those that kept nearest rounding, and those of experts that read few tokens.
    """
    damped = [f"{layer.name} ({layer.damping:g})" for layer in layers if layer.damping is not None]
    kept = [layer.name for layer in layers if layer.fell_back]
    notes = []
    if damped:
        notes.append(f"more damping was needed than was asked for, by {len(damped)} Linears: {_shortened(damped)}")
    if kept:
        notes.append(
            f"{len(kept)} Linears kept nearest rounding, because the ranges and codes that were asked for lose more: "
            f"{_shortened(kept)}"
        )
    shares = [layer for layer in layers if layer.own_share is not None]
    leaning = [f"{layer.name} ({layer.tokens} tokens)" for layer in shares if (layer.own_share or 0) < HALF]
    if leaning:
        notes.append(
            f"{len(leaning)} of {len(shares)} matrices of experts count for less in their statistics than what all "
            f"experts read, because few tokens reach them: {_shortened(leaning)}; calibrate on more or on "
            "other text, or with --route-all"
        )
    return notes


def _shortened(names: Sequence[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
