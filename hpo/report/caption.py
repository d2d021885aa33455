"""What is written about one figure of a report.

Responsible for which figures there are, for the parts of a caption, and for how an absent figure is excused. Knows
nothing of what a figure shows.
"""

from dataclasses import dataclass
from typing import Literal

FigureKey = Literal[
    "forest",
    "waterfall",
    "bits",
    "elsewhere",
    "refining",
    "damage",
    "importances",
    "beta-tau",
    "slices",
    "parallel",
    "stored",
    "contributed",
    "additivity",
    "volume",
    "history",
    "running",
    "remaining",
    "loss",
    "alpha",
    "memory",
]
"""Every figure, in the order of the page; captions, `figures` and `plots` have the same ones."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is written about one figure.

    Attributes:
        key: Which figure: its file name without the ending, and its anchor in the page.
        title: Its heading.
        reading: How to read it, in one sentence.
        alt: What it shows, for those who cannot see it.
        missing: Why it is left out, as a sentence; None where it is drawn.
    """

    key: FigureKey
    title: str
    reading: str
    alt: str = ""
    missing: str | None = None


def caption(key: FigureKey, title: str, reading: str, alt: str, why_not: str | None) -> Caption:
    """Write one; of a figure that cannot be drawn, why not."""
    if why_not is None:
        return Caption(key=key, title=title, reading=reading, alt=f"{title}: {alt}")
    return Caption(key=key, title=title, reading=reading, missing=f"Left out: {why_not}.")
