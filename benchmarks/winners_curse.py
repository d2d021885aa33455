"""How often a win on tuning text is one: words by tuning text alone, and words by held-out text.

Studies are replayed on tables of truth: so many settings drawn at random, the best of them against the best reference.
In the first table tuning and held-out text are documents drawn with replacement, so the truth is known: the difference
on all documents. It is asked once of the settings as they are, and once with all of them, references too, moved to the
same mean, so that every win is a false one. In the second table the text is halved by documents: what one half calls a
meaningful win is looked up on the other. Held-out text is of the tuning text's kind alone, the product reads a second
text besides.

    python benchmarks/winners_curse.py --studies 1000 --trials 24
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.honesty import drawn
from benchmarks.truth import Text, tables
from hpo.study.confirmation import ConfirmedComparison
from hpo.study.objective import PERPLEXITY
from hpo.verdict.ranking import is_meaningful
from hpo.verdict.recommendation import judge
from hpo.verdict.words import percent_interval
from objectives.paired import Difference, holm, paired_difference
from objectives.scoring import Score

# Percent: settings that were moved to the same mean differ by what floating-point numbers leave.
ROUNDING = 1e-6

Part = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Studied:
    """One replayed study.

    Attributes:
        called: Whether tuning text alone calls the best trial a meaningful win over the best reference.
        confirmed: Whether held-out text confirms it.
        tuning: Percent of perplexity against that reference, on the tuning text.
        held_out: On the held-out text.
        true: On all documents.
    """

    called: bool
    confirmed: bool
    tuning: float
    held_out: Difference
    true: float


def study(text: Text, rows: Sequence[int], tuning: Part, held_out: Part) -> Studied:
    """Choose the best of `rows` and the best reference on one part, and confirm them on the other.

    Args:
        text: The table.
        rows: Of the settings that are tried.
        tuning: Sequences and the documents that they count as, `[sequences]` both.
        held_out: The same.
    """
    trial = min(rows, key=lambda row: _mean(text.nll[row], text, tuning))
    references = text.references[1:]
    best = min(range(len(references)), key=lambda row: _mean(references[row], text, tuning))
    difference = _compared(text, text.nll[trial], references[best], tuning)
    confirmed = [_compared(text, text.nll[trial], reference, held_out) for reference in references]
    everything = (np.arange(len(text.tokens)), text.clusters)
    return Studied(
        called=is_meaningful(difference),
        confirmed=_judged(confirmed, best) == "confirmed",
        tuning=difference.percent()[0],
        held_out=confirmed[best],
        true=_compared(text, text.nll[trial], references[best], everything).percent()[0],
    )


def equal(text: Text) -> Text:
    """The same table with every setting and reference moved to the mean of the best reference: nothing is better."""
    goal = (text.references[1:].sum(axis=1) / text.tokens.sum()).min()

    def moved(nll: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(nll - (nll.sum(axis=1, keepdims=True) / text.tokens.sum() - goal) * text.tokens)

    return replace(text, nll=moved(text.nll), references=moved(text.references))


def halves(text: Text, generator: np.random.Generator) -> tuple[Part, Part]:
    """The text in two parts that share no document."""
    documents = generator.permutation(np.unique(text.clusters))
    first = np.isin(text.clusters, documents[: len(documents) // 2])
    rows = np.flatnonzero(first), np.flatnonzero(~first)
    return (rows[0], text.clusters[rows[0]]), (rows[1], text.clusters[rows[1]])


def redrawn(text: Text, generator: np.random.Generator) -> tuple[Part, Part]:
    """Two draws of as many documents, with replacement."""
    return drawn(text, generator), drawn(text, generator)


def studies(
    text: Text, count: int, trials: int, parts: Callable[[Text, np.random.Generator], tuple[Part, Part]], seed: int = 0
) -> list[Studied]:
    """So many studies of random settings, each with parts of its own."""
    generator = np.random.default_rng(seed)
    chosen = min(trials, len(text.nll))
    return [
        study(text, generator.choice(len(text.nll), chosen, replace=False).tolist(), *parts(text, generator))
        for _ in range(count)
    ]


def shares(outcomes: Sequence[Studied], by: Callable[[Studied], bool]) -> list[str]:
    """How many are called a win, and of those how many are truly better, and truly by what is called meaningful."""
    wins = [outcome for outcome in outcomes if by(outcome)]
    return [_share(len(wins), len(outcomes))] + [
        _share(sum(win.true < -bound for win in wins), len(wins)) for bound in (ROUNDING, PERPLEXITY.meaningful)
    ]


def _mean(nll: NDArray[np.float64], text: Text, part: Part) -> float:
    return float(nll[part[0]].sum() / text.tokens[part[0]].sum())


def _compared(text: Text, nll: NDArray[np.float64], other: NDArray[np.float64], part: Part) -> Difference:
    rows, clusters = part
    tokens, documents = torch.from_numpy(text.tokens[rows]), torch.from_numpy(clusters)
    first, second = (
        Score(nll=torch.from_numpy(values[rows]), tokens=tokens, clusters=documents) for values in (nll, other)
    )
    return paired_difference(first, second)


def _judged(differences: Sequence[Difference], against: int) -> str:
    corrected = holm([difference.p_value for difference in differences])
    difference = differences[against]
    return judge(
        [
            ConfirmedComparison(
                dataset="held out",
                name="trial",
                against="reference",
                percent=percent_interval(difference),
                p_value=difference.p_value,
                holm=corrected[against],
            )
        ]
    )


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=24)
    options = parser.parse_args()
    texts = {name: truth.texts[0] for name, truth in tables().items()}
    rows = []
    for name, text in texts.items():
        for world, table in (("as measured", text), ("nothing is better", equal(text))):
            outcomes = studies(table, options.studies, options.trials, redrawn)
            called, confirmed = (
                shares(outcomes, lambda outcome: outcome.called),
                shares(outcomes, lambda outcome: outcome.confirmed),
            )
            wins = [outcome for outcome in outcomes if outcome.called]
            gap = f"{np.mean([win.true - win.tuning for win in wins]):.2f} %" if wins else "-"
            rows.append([name, world, *called, gap, *confirmed])
    before, after = "win by tuning text", "confirmed by held-out text"
    truly = ("of those better", "of those by .1 %")
    _print_table(["table", "settings", before, *truly, "overstated by", after, *truly], rows)
    rows = []
    for name, text in texts.items():
        outcomes = studies(text, options.studies, options.trials, halves)
        wins = [outcome for outcome in outcomes if outcome.called]
        again = [sum(win.held_out.value < 0 for win in wins), sum(win.confirmed for win in wins)]
        rows.append([name, _share(len(wins), len(outcomes)), *(_share(count, len(wins)) for count in again)])
    _print_table(["table", "win on one half", "better on the other", "confirmed by the other"], rows)


if __name__ == "__main__":
    main()
