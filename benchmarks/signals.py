"""Cheap signals, only if true: what predicts the final ranking of settings, by rank correlation on the tables.

Asked of every table: the summed loss that the search for alpha ended with, the mean log gain over nearest rounding,
the first 8, 16 and 32 sequences (paired, in random orders), the other text; and whether settings with a coarse grid or
little calibration text tell about the others: a surrogate is fitted to these alone and ranks those with a fine grid
or much text, next to one that is fitted to half of the latter and ranks the other half.

    python benchmarks/signals.py --json signals.json
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.truth import Text, Truth, tables
from hpo.search.acquisition import winsorized
from hpo.search.surrogate import fit

ORDERS, SPLITS = 100, 10
Mask = NDArray[np.bool_]


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's."""
    return float(spearmanr(first, second).statistic)


def few_sequences(text: Text, count: int) -> float:
    """Mean NLL of a few sequences against that of all, over random orders."""
    generator = np.random.default_rng(0)
    correlations = []
    for _ in range(ORDERS):
        rows = generator.permutation(len(text.tokens))[:count]
        correlations.append(correlation(text.nll[:, rows].sum(axis=1), text.mean_nll))
    return float(np.mean(correlations))


def transferred(truth: Truth, cheap: Mask, dear: Mask) -> tuple[float, float]:
    """How well a surrogate of the cheap settings ranks the dear ones, and how well one of half of these does."""
    values = truth.texts[0].mean_nll
    generator = np.random.default_rng(0)

    def ranked(training: NDArray[np.int64], test: NDArray[np.int64]) -> float:
        surrogate = fit(truth.points[training], winsorized(values[training]), np.zeros(len(training)))
        return correlation(surrogate.predict(truth.points[test])[0], values[test])

    apart, among = [], []
    for _ in range(SPLITS):
        order = generator.permutation(np.flatnonzero(dear))
        half, test = order[: len(order) // 2], order[len(order) // 2 :]
        others = generator.permutation(np.flatnonzero(cheap))[: len(half)]
        apart.append(ranked(others, test))
        among.append(ranked(half, test))
    return float(np.mean(apart)), float(np.mean(among))


def signals(truth: Truth) -> dict[str, float]:
    """Every signal's rank correlation with the truth on the tuning text."""
    text = truth.texts[0]
    correlations = {"summed loss": correlation(truth.loss[:, 1], text.mean_nll)}
    correlations["mean log gain"] = correlation(truth.log_gain, text.mean_nll)
    correlations |= {
        f"{count} sequences": few_sequences(text, count) for count in (8, 16, 32) if count < len(text.tokens)
    }
    correlations |= {f"on {other.source}": correlation(other.mean_nll, text.mean_nll) for other in truth.texts[1:]}
    grid = np.array([setting.n_grid for setting in truth.settings])
    samples = np.array([setting.n_calib for setting in truth.settings])
    masks = {"coarse grid": (grid <= 12, grid >= 20), "little calibration": (samples <= 32, samples > 32)}
    for name, (cheap, dear) in masks.items():
        (
            correlations[f"{name} for fine" if "grid" in name else f"{name} for much"],
            correlations[f"the same, {name}'s own half"],
        ) = transferred(truth, cheap, dear)
    return correlations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    columns = {name: signals(truth) for name, truth in tables().items()}
    print("| signal | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        cells = [f"{column[name]:.2f}" if name in column else "-" for column in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.json:
        options.json.write_text(json.dumps(columns, indent=1) + "\n")


if __name__ == "__main__":
    main()
