"""What is written about one figure of a report.

Responsible for its parts and for how an absent figure is excused. Knows no figure.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is written about one figure.

    Attributes:
        key: Its file name without the ending, and its anchor in the page.
        title: Its heading.
        reading: How to read it, in one sentence.
        alt: What it shows, for those who cannot see it.
        missing: Why it is left out, as a sentence; None where it is drawn.
    """

    key: str
    title: str
    reading: str
    alt: str = ""
    missing: str | None = None


def caption(key: str, title: str, reading: str, alt: str, why_not: str | None) -> Caption:
    """Write one; of a figure that cannot be drawn, why not."""
    if why_not is None:
        return Caption(key=key, title=title, reading=reading, alt=f"{title}: {alt}")
    return Caption(key=key, title=title, reading=reading, missing=f"Left out: {why_not}.")
