"""Are intervals honest, and are wins real? Documents of the tables of truth, drawn anew again and again.

The truth of two settings is their difference on all documents of a table. Each replicate draws as many documents with
replacement, compares the settings as a confirmation does, and asks whether the 95 % interval covers the truth. For
false wins one of the settings is moved by its true difference, so that both are equal, and what is counted is how
often the comparison still calls one a meaningful win.

    python benchmarks/honesty.py --replicates 4000 --json honesty.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.truth import Text, tables
from hpo.verdict.ranking import is_meaningful
from objectives.paired import Difference, paired_difference
from objectives.scoring import Score


def drawn(text: Text, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences of documents drawn with replacement, and the draw that each comes from: `[sequences]` both."""
    documents = np.unique(text.clusters)
    chosen = generator.choice(documents, len(documents))
    members = [np.flatnonzero(text.clusters == document) for document in chosen]
    return np.concatenate(members), np.repeat(np.arange(len(members)), [len(sequences) for sequences in members])


def compared(
    text: Text, pair: NDArray[np.int64], shift: float, rows: NDArray[np.int64], clusters: NDArray[np.int64]
) -> Difference:
    """The first setting of a pair against the second, moved by `shift` nats per token, on some sequences."""
    tokens = torch.from_numpy(text.tokens[rows])
    first, second = (torch.from_numpy(text.nll[index][rows]) for index in pair)
    documents = torch.from_numpy(clusters)
    return paired_difference(
        Score(nll=first - shift * tokens, tokens=tokens, clusters=documents),
        Score(nll=second, tokens=tokens, clusters=documents),
    )


def honesty(text: Text, replicates: int, seed: int = 0) -> dict[str, Any]:
    """Coverage of intervals, and the share of false wins, over random pairs of the better half of the settings."""
    generator = np.random.default_rng(seed)
    good = np.argsort(text.mean_nll)[: len(text.nll) // 2]
    covered = wins = significant = 0
    for _ in range(replicates):
        pair = generator.choice(good, 2, replace=False)
        truth = float(text.mean_nll[pair[0]] - text.mean_nll[pair[1]])
        rows, clusters = drawn(text, generator)
        interval = compared(text, pair, 0.0, rows, clusters)
        covered += interval.low <= truth <= interval.high
        equal = compared(text, pair, truth, rows, clusters)
        significant += equal.p_value < 0.05
        wins += is_meaningful(equal)
    return {
        "documents": len(np.unique(text.clusters)),
        "coverage": covered / replicates,
        "equal_but_significant": significant / replicates,
        "equal_but_a_win": wins / replicates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out: dict[str, Any] = {}
    names = ("table", "text", "documents", "coverage of 95 %", "equal, p < .05", "equal, called a win")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for name, truth in tables().items():
        for text in truth.texts:
            shares = honesty(text, options.replicates)
            out[f"{name} {text.source}"] = shares
            shown = ("coverage", "equal_but_significant", "equal_but_a_win")
            cells = " | ".join(f"{100 * shares[share]:.1f} %" for share in shown)
            print(f"| {name} | {text.source} | {shares['documents']} | {cells} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
