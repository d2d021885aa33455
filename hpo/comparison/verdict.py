"""A whole comparison, and what it recommends.

Responsible for the decision guide among rows of equal bits per weight, on the first data set: a row that takes more
memory is not a better method. May assume that rows of equal bits were measured on the same sequences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.comparison.entries import Entry, equal_bits
from hpo.comparison.statistics import Gap, Pair, all_pairs, gaps, ranked
from hpo.study.objective import PERPLEXITY
from hpo.verdict.ranking import SIGNIFICANT, recommend, simplicity
from hpo.verdict.words import percent_text
from objectives.paired import Difference, paired_difference

EQUAL_BITS = "Only rows of equal bits per weight are weighed against each other."
NOTHING = "Nothing is recommended: no row is quantized to known bits."


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to use at one size.

    Attributes:
        bits: Per weight; equal for all rows.
        rows: Their names, least perplexity on the first data set first.
        recommended: One of them.
        sentence: Why.
    """

    bits: float
    rows: tuple[str, ...]
    recommended: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that was measured, and what it says.

    Attributes:
        about: What the numbers mean: model, calibration, text.
        datasets: The data sets.
        entries: Full precision, then the rows in the order in which they were asked for.
        pairs: All of them on every data set.
        ranks: By data set and name; full precision has none.
        equal_ranks: The same among rows of equal bits.
        gaps: Of every row on every data set but the first.
        choices: One for each number of bits, that of most rows first.
        notes: What a person should know besides.
    """

    about: Mapping[str, Any]
    datasets: tuple[str, ...]
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    ranks: Mapping[str, Mapping[str, int]]
    equal_ranks: Mapping[str, Mapping[str, int]]
    gaps: tuple[Gap, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]

    @property
    def full(self) -> Entry:
        """Return the model as it is."""
        return self.entries[0]

    @property
    def first(self) -> Entry | None:
        """Return the row that others are compared with besides: the first one that is not full precision."""
        return next((entry for entry in self.entries if entry.is_quantized), None)

    @property
    def recommendation(self) -> str:
        """Put the choice among most rows into sentences."""
        return f"{self.choices[0].sentence} {EQUAL_BITS}" if self.choices else NOTHING

    def difference(self, entry: Entry, other: Entry, at: int) -> Difference:
        """Compute the mean NLL of one row minus another's on the `at`-th data set."""
        return paired_difference(entry.scores[at], other.scores[at])


def judge(
    about: Mapping[str, Any], datasets: Sequence[str], entries: Sequence[Entry], notes: Sequence[str]
) -> Comparison:
    """Compare what was measured; the first entry is full precision."""
    pairs = all_pairs(entries, datasets)
    quantized = [entry for entry in entries if entry.is_quantized]
    by_bits = equal_bits(quantized)
    return Comparison(
        about=about,
        datasets=tuple(datasets),
        entries=tuple(entries),
        pairs=pairs,
        ranks={dataset: ranked(quantized, at, dataset, pairs) for at, dataset in enumerate(datasets)},
        equal_ranks={
            dataset: {
                name: rank for group in by_bits.values() for name, rank in ranked(group, at, dataset, pairs).items()
            }
            for at, dataset in enumerate(datasets)
        },
        gaps=tuple(gaps(entries, datasets)),
        choices=tuple(_choice(bits, group, datasets, pairs) for bits, group in by_bits.items()),
        notes=tuple(notes),
    )


def _choice(bits: float, entries: Sequence[Entry], datasets: Sequence[str], pairs: Sequence[Pair]) -> Choice:
    ordered = sorted(entries, key=lambda entry: (entry.scores[0].mean_nll, simplicity(entry.measured)))
    best = ordered[0].scores[0]
    rows = [(entry.measured, entry.scores[0]) for entry in ordered]
    picked = ordered[recommend(rows, lambda index: paired_difference(rows[index][1], best))]
    others = [entry for entry in ordered if entry is not picked]
    lead = (
        f"At {bits:.3f} bits per weight: {picked.name} (perplexity {picked.scores[0].perplexity:.3f} on "
        f"{datasets[0]}), "
    )
    if not others:
        parts = [f"{lead}the only row of that size"]
    else:
        parts = [
            f"{lead}the simplest of {len(ordered)} rows within {PERPLEXITY.indifferent} % and within noise of the best",
            _margin(picked, others[0], datasets[0], pairs),
            *_better_on_other_text(picked, entries, datasets, pairs),
        ]
    return Choice(
        bits=bits,
        rows=tuple(entry.name for entry in ordered),
        recommended=picked.name,
        sentence=f"{'; '.join(parts)}.",
    )


def _margin(picked: Entry, other: Entry, dataset: str, pairs: Sequence[Pair]) -> str:
    """Say how far the recommended row is from the best of the others, and whether that means anything."""
    difference = paired_difference(picked.scores[0], other.scores[0])
    corrected = _pair(pairs, dataset, picked, other).corrected
    real = difference.percent()[0] < -PERPLEXITY.meaningful and corrected < SIGNIFICANT
    judgement = (
        "a meaningful win"
        if real
        else f"not a meaningful win (it takes {PERPLEXITY.meaningful} % and significance after Holm)"
    )
    return f"{percent_text(difference)} perplexity against {other.name}, {judgement}"


def _better_on_other_text(
    picked: Entry, entries: Sequence[Entry], datasets: Sequence[str], pairs: Sequence[Pair]
) -> list[str]:
    """Name other data sets on which another row of equal bits is better beyond noise."""
    texts = []
    for at, dataset in enumerate(datasets[1:], 1):
        best = min(entries, key=lambda entry: entry.scores[at].mean_nll)
        if best is not picked and _pair(pairs, dataset, picked, best).is_significant:
            difference = paired_difference(best.scores[at], picked.scores[at])
            texts.append(f"on {dataset} {best.name} is better ({percent_text(difference)})")
    return texts


def _pair(pairs: Sequence[Pair], dataset: str, first: Entry, second: Entry) -> Pair:
    names = {first.name, second.name}
    return next(pair for pair in pairs if pair.dataset == dataset and {pair.first, pair.second} == names)
