"""Which measure tells sooner which of two settings is better: perplexity, or divergence from full precision.

Of every pair of settings of equal bits of a finished study: how often the first sequences of one half of its text tell,
by either measure, which is better on the other half, by either measure; halves share no document and are drawn many
times. Beside it how many times larger paired t values are by divergence, and the correlation of the two differences.
Nothing is measured: it reads a study's values per sequence.

    python cli.py optimize --trials 24 --group-size 64,128 --study demo --pruner none
    python benchmarks/measures.py --study demo
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from hpo.notebook import load
from objectives.paired import paired_difference
from objectives.scoring import Measure, Score

MEASURES: tuple[Measure, ...] = ("nll", "kl")
SIZES = (4, 8, 16, 32)
SPLITS = 200


def halves(clusters: NDArray[np.int64], generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two lists of sequences in random order that share no document, about as many in each."""
    documents = generator.permutation(np.unique(clusters))
    first = np.isin(clusters, documents[: len(documents) // 2])
    return tuple(generator.permutation(np.flatnonzero(part)) for part in (first, ~first))  # type: ignore[return-value]


def agreement(scores: Sequence[Score], splits: int, seed: int = 0) -> dict[tuple[Measure, Measure, int], float]:
    """The share of pairs that so many sequences of one half order by one measure as the other half does by another.

    Args:
        scores: Of the same sequences and of equal bits, divergence measured.
        splits: How often the text is halved.
        seed: Of the halves.

    Returns:
        By the measure that tells, the measure that is right, and the number of sequences.
    """
    generator = np.random.default_rng(seed)
    sums = {measure: np.array([score.of(measure).numpy() for score in scores]) for measure in MEASURES}
    tokens, clusters = scores[0].tokens.numpy(), scores[0].clusters.numpy()
    right: dict[tuple[Measure, Measure, int], list[float]] = {}
    first, second = np.array(list(combinations(range(len(scores)), 2))).T
    for _ in range(splits):
        near, far = halves(clusters, generator)
        for judge in MEASURES:
            judged = sums[judge][:, far].sum(1) / tokens[far].sum()
            for measure in MEASURES:
                for size in (size for size in SIZES if size <= len(near)):
                    part = near[:size]
                    seen = sums[measure][:, part].sum(1) / tokens[part].sum()
                    same = np.sign(seen[first] - seen[second]) == np.sign(judged[first] - judged[second])
                    right.setdefault((measure, judge, size), []).append(float(same.mean()))
    return {key: float(np.mean(shares)) for key, shares in right.items()}


def sharpness(scores: Sequence[Score]) -> tuple[float, float, float]:
    """Median |t| of all pairs by either measure, and the correlation of their differences."""
    pairs = list(combinations(scores, 2))
    differences = {measure: [paired_difference(*pair, measure=measure) for pair in pairs] for measure in MEASURES}
    nll, kl = (
        float(np.median([abs(difference.value) / difference.standard_error for difference in differences[measure]]))
        for measure in MEASURES
    )
    values = np.array([[difference.value for difference in differences[measure]] for measure in MEASURES])
    return nll, kl, float(np.corrcoef(values)[0, 1])


def main() -> None:
    """Print a table for every size class of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study")
    parser.add_argument("--storage")
    parser.add_argument("--home")
    parser.add_argument("--splits", type=int, default=SPLITS)
    given = parser.parse_args()
    for ranking in load(given.study, given.storage, given.home).rankings:
        scores = [row.score for row in ranking.rows if row.score.kl is not None]
        if len(scores) < 3:
            print(f"{ranking.title}: {len(scores)} settings with a divergence are too few")
            continue
        nll, kl, correlation = sharpness(scores)
        print(f"{ranking.title}: {len(scores)} settings, {len(scores[0].nll)} sequences")
        print(f"  median |t| of a pair: {nll:.1f} by NLL, {kl:.1f} by KL; correlation of differences {correlation:.3f}")
        shares = agreement(scores, given.splits)
        for judge in MEASURES:
            for measure in MEASURES:
                sizes = [size for size in SIZES if (measure, judge, size) in shares]
                cells = [f"{size}: {100 * shares[measure, judge, size]:.1f} %" for size in sizes]
                print(f"  better by {judge.upper()} on the other half, told by {measure.upper()}: {', '.join(cells)}")


if __name__ == "__main__":
    main()
