"""How low regret could be: a search that is told how the table's values covary, and never has to learn it.

It reads sequences of settings, as any search may. But it knows how hard each piece of text is on average, the
covariances of settings and of text were fitted to the whole table beforehand, its posterior is exact under them, and
quantizing costs it nothing. After every look it goes on with the setting, or turns to the one of greatest expected
improvement; whatever it left it may take up again. Who has to learn the table can hardly do better: where this
one misses a goal, the text that was read does not hold the information.

    python benchmarks/clairvoyant.py --replicates 40
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import joblib
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from benchmarks.replay import Ended, Field, field, regret_curve
from benchmarks.search import AT, MOST_TOKENS, SHOWN, quantiles
from benchmarks.truth import Truth, tables
from hpo.search.surrogate import expected_improvement
from objectives.scoring import look_sizes

Array = NDArray[np.float64]
# Values are in millinats per token.
MILLI = 1000.0
JITTER = 1e-4
STARTUP, LEAST_CHANCE = 4, 0.1


@dataclass(frozen=True, kw_only=True)
class Covariances:
    """Covariances `[settings, settings]`: of the means over all text, and of one sequence's deviations from them."""

    means: Array
    deviations: Array


def fitted_covariances(truth: Truth) -> Covariances:
    """Fitted to a table by likelihood; smooth in the settings plus what is each setting's own."""
    text = truth.texts[0]
    values = MILLI * text.nll / text.tokens
    values -= values.mean(axis=0)
    means = values.mean(axis=1, keepdims=True)
    count = values.shape[1]
    # An orthonormal basis of what is left of the sequences without their mean: independent draws.
    basis = np.linalg.svd(np.eye(count) - 1 / count)[0][:, : count - 1]
    return Covariances(means=_fitted(truth.points, means), deviations=_fitted(truth.points, (values - means) @ basis))


def _fitted(points: Array, draws: Array) -> Array:
    """The covariance of greatest likelihood of draws `[settings, draws]`: a Matern kernel (nu 5/2) plus a diagonal."""
    dimensions, variance = points.shape[1], float(np.log(draws.var()))

    def covariance(logs: Array) -> Array:
        difference = (points[:, None] - points) / np.exp(logs[:dimensions])
        distance = np.sqrt(5 * (difference**2).sum(axis=-1))
        smooth = (1 + distance + distance**2 / 3) * np.exp(-distance)
        return np.asarray(np.exp(logs[-2]) * smooth + (np.exp(logs[-1]) + JITTER) * np.eye(len(points)))

    def misfit(logs: Array) -> float:
        root = np.linalg.cholesky(covariance(logs))
        whitened = np.linalg.solve(root, draws)
        return float(np.log(np.diag(root)).sum() + 0.5 * (whitened**2).sum() / draws.shape[1])

    start = np.array([-0.7] * dimensions + [variance - 0.5, variance - 1])
    bounds = [(-3.0, 3.0)] * dimensions + [(variance - 6, variance + 2)] * 2
    return covariance(optimize.minimize(misfit, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 20}).x)


def search(where: Field, covariances: Covariances, seed: int) -> list[Ended]:
    """One study of so many tokens."""
    text, generator = where.text, np.random.default_rng(seed)
    ends = np.array(look_sizes(where.sequences))
    starts = np.concatenate([[0], ends[:-1]])
    pieces = np.array([text.nll[:, a:b].sum(1) / text.tokens[a:b].sum() for a, b in zip(starts, ends, strict=True)])
    pieces = MILLI * (pieces - pieces.mean(axis=1, keepdims=True)).T
    means = MILLI * text.mean_nll - MILLI * text.mean_nll.mean()
    looks = np.zeros(len(means), dtype=int)
    observed: list[tuple[int, int]] = []
    ended: list[Ended] = []
    startup, row, tokens = list(generator.permutation(len(means))[:STARTUP]), None, 0.0
    while tokens < MOST_TOKENS:
        done = looks == len(ends)
        best = float(means[done].min()) if done.any() else np.inf
        if observed:
            mean, deviation = posterior(covariances, observed, pieces, ends - starts, where.sequences)
            if row is not None and stats.norm.cdf((best - mean[row]) / deviation[row]) < LEAST_CHANCE:
                row = None
        if row is None and startup:
            row = int(startup.pop())
        elif row is None:
            row = int(np.where(done, -1.0, expected_improvement(mean, deviation, best)).argmax())
        look = int(looks[row])
        observed.append((row, look))
        looks[row] += 1
        tokens += (ends[look] - starts[look]) / where.sequences
        if looks[row] == len(ends):
            ended.append(Ended(row=row, read=where.sequences, complete=True, tokens=tokens))
            row = None
    return ended


def posterior(
    covariances: Covariances, observed: list[tuple[int, int]], pieces: Array, sizes: Array, total: int
) -> tuple[Array, Array]:
    """Mean and deviation of every setting's mean over all text, both `[settings]`, after pieces of text were read."""
    rows, looks = np.array(observed).T
    shared = (looks[:, None] == looks) / sizes[looks][:, None] - 1 / total
    pair = np.ix_(rows, rows)
    covariance = covariances.means[pair] + covariances.deviations[pair] * shared + JITTER * np.eye(len(rows))
    across = covariances.means[:, rows]
    solved = np.linalg.solve(covariance, np.column_stack([pieces[rows, looks], np.ones(len(rows)), across.T]))
    level = solved[:, 0].sum() / solved[:, 1].sum()
    mean = level + across @ (solved[:, 0] - level * solved[:, 1])
    variance = np.diag(covariances.means) - np.einsum("ij,ji->i", across, solved[:, 2:])
    return mean, np.sqrt(np.maximum(variance, JITTER))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=40)
    parser.add_argument("--model", default="*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    shown = ", ".join(map(str, SHOWN))
    print(f"| table | regret at {shown} full trials' tokens, %: median [5 %, 95 %] |\n|---|---|")
    for name, truth in tables(options.model).items():
        covariances = fitted_covariances(truth)
        fields = [field(truth, seed) for seed in range(options.replicates)]
        studies = joblib.Parallel(n_jobs=options.jobs)(
            joblib.delayed(search)(where, covariances, seed) for seed, where in enumerate(fields)
        )
        curves = np.array([regret_curve(study, where, AT) for study, where in zip(studies, fields, strict=True)])
        cells = [quantiles(list(curves[:, int(np.searchsorted(AT, at))])) for at in SHOWN]
        print(f"| {name} | " + ", ".join(f"{q[1]:.3f} [{q[0]:.3f}, {q[2]:.3f}]" for q in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
