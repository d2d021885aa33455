"""The damage of settings by two measures, as numbers: mean NLL above full precision's, and divergence from it.

Responsible for what is drawn of where perplexity and divergence disagree. May assume a ranked study; settings of which
no divergence was measured are left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hpo.space.size_class import SizeClass
from hpo.study.record import TrialRecord
from hpo.verdict.ranking import Ranked
from hpo.verdict.snapshot import Study
from objectives.paired import Difference, paired_difference
from objectives.scoring import Score


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What one setting costs, in nats per token with 95 % intervals.

    Attributes:
        name: Of the trial or the reference.
        kind: Which of the two it is.
        size_class: What it costs as much as.
        kl: Divergence from full precision.
        nll: Mean NLL above full precision's.
    """

    name: str
    kind: Literal["reference", "trial"]
    size_class: SizeClass
    kl: Difference
    nll: Difference

    @property
    def text(self) -> str:
        """Write both, as `gw-awq, group size 64: KL 0.1565 ±0.0065, NLL +0.1334 ±0.0104`."""
        kl, nll = (f"±{difference.high - difference.value:.4f}" for difference in (self.kl, self.nll))
        return f"{self.name}, {self.size_class}: KL {self.kl.value:.4f} {kl}, NLL {self.nll.value:+.4f} {nll}"


def damages(study: Study) -> tuple[Damage, ...]:
    """Collect the damage of everything that was measured to the end, size class by size class."""
    full = next((reference for reference in study.record.references if reference.setting is None), None)
    scores = study.scores.readable([] if full is None else [full])
    if not scores:
        return ()
    ((_, exact),) = scores
    rows = ((ranking.size_class, row) for ranking in study.rankings for row in ranking.rows)
    return tuple(damage for size_class, row in rows for damage in _damage(size_class, row, exact))


def disagreements(all_damages: tuple[Damage, ...]) -> tuple[int, int]:
    """Count the pairs of equal bits that the two measures order differently, and all of those pairs."""
    pairs = [
        (first, second)
        for place, first in enumerate(all_damages)
        for second in all_damages[:place]
        if first.size_class == second.size_class
    ]
    apart = sum(
        (first.kl.value - second.kl.value) * (first.nll.value - second.nll.value) < 0 for first, second in pairs
    )
    return apart, len(pairs)


def _damage(size_class: SizeClass, row: Ranked, exact: Score) -> Iterator[Damage]:
    kl, nll = row.kl, paired_difference(row.score, exact)
    if kl is not None and all(map(math.isfinite, (kl.value, kl.high, nll.value, nll.high))):
        kind: Literal["reference", "trial"] = "trial" if isinstance(row.measured, TrialRecord) else "reference"
        yield Damage(name=row.measured.name, kind=kind, size_class=size_class, kl=kl, nll=nll)
