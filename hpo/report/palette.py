"""The colours of all figures: Okabe and Ito's, which colour-blind readers can tell apart.

Responsible for which colour means what. All of them have enough contrast on white and on near-black; yellow and black
have not, and are not used. Where colours tell groups apart, symbols do so as well.
"""

from collections.abc import Container, Iterable, Sequence
from itertools import cycle

from hpo.report.verdict_data import Bar

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8A8A8A",
)
MEASURED, ESTIMATED, FAILED, BEST, REFERENCE = BLUE, ORANGE, VERMILLION, GREEN, PURPLE
KINDS = {"reference": REFERENCE, "trial": MEASURED, "recommended": BEST}
SERIES = {"rtn": ORANGE, "gw-awq": PURPLE, "gwh-praq-v1": SKY}
"""Of methods; other references take the rest, and what was searched is `MEASURED`."""
GROUPS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY)
"""In the order of group sizes."""
PED_ANOVA, FANOVA = BLUE, ORANGE
SEQUENTIAL = "cividis"
"""Dark to light, in plotly's and matplotlib's spelling alike."""

ROUNDINGS = {True: ("plans", BLUE, ("circle", "o")), False: ("rounded otherwise", ORANGE, ("square", "s"))}
"""Whether a plan rounds as the recipe by which sites were measured: name, colour, marks of plotly and matplotlib."""

BEST_TO_WORST = (BLUE, ORANGE)
"""Ends of a scale for lines: thin ones must be seen on near-black, where the dark end of `SEQUENTIAL` is not."""


def steps(bars: Sequence[Bar]) -> list[str]:
    """Choose the colours of a waterfall: where it begins, what gains, what loses, and where it ends."""
    between = [GREEN if bar.end <= bar.start else VERMILLION for bar in bars[1:-1]]
    return [REFERENCE, *between, MEASURED]


def series(names: Iterable[str], searched: Container[str]) -> dict[str, str]:
    """Choose a colour for each name, the same in every figure: of a method its own, of what was searched one."""
    others = cycle((VERMILLION, GREEN, GREY))
    return {name: MEASURED if name in searched else SERIES.get(name) or next(others) for name in names}
