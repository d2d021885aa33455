"""What divergence is worth to a search, on tables of truth that have it: to tell, to give up, to learn.

Part `told`: of all pairs of settings, how often the first sequences of one half of the text tell which is better on the
other half, by perplexity (`measures.py` does the same for a study). Part `pruners`: forty random settings in random
order, of which the paired pruner gives up those that are behind the best by NLL (today's), by divergence, or by the
combination of both that has the least variance (generalised least squares, with divergence as a covariate whose slope
and scatter the completed settings show); its errors are linearised and averaged with those of completed settings, which
is quicker than what the product does and somewhat too sure. Part `surrogates`: presets, five points, then the greatest
expected improvement from a Gaussian process on NLL (today's), on divergence, or on both (autoregressive cokriging,
Kennedy and O'Hagan 2000, Biometrika 87). Candidates are the settings of the table, so that a proposal costs a fit and
nothing else.

    python benchmarks/divergence_search.py --model bundled-kl --replicates 200
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.measures import agreement, halves, sharpness
from benchmarks.truth import Text, Truth, tables
from hpo.search.acquisition import winsorized
from hpo.search.surrogate import expected_improvement, fit
from objectives.scoring import look_sizes

Array = NDArray[np.float64]
SPLITS, SETTINGS, ERROR = 100, 40, 0.05
FEWEST_KNOWN, MOST_KNOWN = 4, 9
STARTUP, MOST_TRIALS, SHOWN = 5, 20, (10, 20)
PRUNERS, SURROGATES = ("nll", "kl", "both"), ("nll", "kl", "both")


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Of some settings to another one on the same sequences.

    Attributes:
        mean: Nats per token, `[settings]`.
        variance: Of the mean, as an estimate over documents, `[settings]`.
        covariance: Of the means of NLL and divergence, `[settings]`.
        degrees: Of freedom.
    """

    mean: Array
    variance: Array
    covariance: Array
    degrees: int


def differences(nll: Array, kl: Array, text: Text, count: int) -> dict[str, Differences]:
    """Of either measure over the first sequences, from sums per sequence `[settings, sequences]` of differences.

    Ratio estimators over documents, linearised (Cochran, Sampling Techniques, 3rd ed., sections 6.3 and 9A.7).
    """
    tokens, clusters = text.tokens[:count], text.clusters[:count]
    _, document = np.unique(clusters, return_inverse=True)
    documents = int(document.max()) + 1
    member = np.eye(documents)[document]
    total, correction = tokens.sum(), documents / max(1, documents - 1)
    values = {"nll": nll[:, :count], "kl": kl[:, :count]}
    means = {name: part.sum(1) / total for name, part in values.items()}
    residuals = {name: (part - means[name][:, None] * tokens) @ member / total for name, part in values.items()}
    covariance = correction * (residuals["nll"] * residuals["kl"]).sum(1)
    return {
        name: Differences(
            mean=means[name],
            variance=correction * (residual**2).sum(1),
            covariance=covariance,
            degrees=max(1, documents - 1),
        )
        for name, residual in residuals.items()
    }


def is_hopeless(pruner: str, row: int, best: int, complete: list[int], text: Text, count: int) -> bool:
    """Whether a setting is behind the best completed one by more than chance, after so many sequences.

    Variances are averaged with those of the completed settings at the same look, and shrink as the text is read.
    """
    assert text.kl is not None
    others = [other for other in complete if other != best][: MOST_KNOWN - 1]
    rows = [row, *others]
    nll, kl = text.nll[rows] - text.nll[best], text.kl[rows] - text.kl[best]
    looked = differences(nll, kl, text, count)
    unread = 1 - text.tokens[:count].sum() / text.tokens.sum()
    looks = max(1, len(look_sizes(len(text.tokens))) - 1)
    measure = "kl" if pruner == "kl" else "nll"
    # One part the setting's own scatter, one part that of the others.
    own, degrees = looked[measure], looked[measure].degrees * (2 if len(others) >= FEWEST_KNOWN - 1 else 1)
    share = 0.5 if len(others) >= FEWEST_KNOWN - 1 else 1.0

    def moderated(values: Array) -> float:
        return float(share * values[0] + ((1 - share) * values[1:].mean() if share < 1 else 0))

    mean, variance = float(own.mean[0]), moderated(own.variance) * unread
    if pruner == "both" and len(others) >= FEWEST_KNOWN - 1:
        mean, variance = _combined(looked, nll[1:].sum(1), kl[1:].sum(1), moderated, unread, text)
    return mean > float(stats.t.isf(ERROR / looks, degrees)) * math.sqrt(variance)


def _combined(
    looked: dict[str, Differences],
    nll: Array,
    kl: Array,
    moderated: Callable[[Array], float],
    unread: float,
    text: Text,
) -> tuple[float, float]:
    """Mean and variance of the least squares combination of the NLL gap and of what the divergence gap says of it.

    `nll` and `kl` are the whole gaps of completed settings, through which the slope goes.
    """
    total = float(text.tokens.sum())
    nll, kl = nll / total, kl / total
    slope = float((nll * kl).sum() / max(float((kl**2).sum()), 1e-12))
    scatter = float(((nll - slope * kl) ** 2).sum() / max(1, len(kl) - 1))
    variances = {name: moderated(part.variance) * unread for name, part in looked.items()}
    shared = slope * moderated(looked["nll"].covariance) * unread
    covariance = np.array([[variances["nll"], shared], [shared, slope**2 * variances["kl"] + scatter]])
    observed = np.array([looked["nll"].mean[0], slope * looked["kl"].mean[0]])
    weights = np.linalg.solve(covariance + 1e-12 * np.eye(2), np.ones(2))
    return float(weights @ observed / weights.sum()), float(1 / weights.sum())


def prune(pruner: str, rows: list[int], text: Text) -> tuple[float, set[int]]:
    """Tokens that the settings take, in full trials, and which of them are given up."""
    spent = np.concatenate([[0], np.cumsum(text.tokens)]) / text.tokens.sum()
    complete: list[int] = []
    lost: set[int] = set()
    tokens = 0.0
    for row in rows:
        complete.sort(key=lambda other: float(text.mean_nll[other]))
        for count in look_sizes(len(text.tokens)):
            whole = count == len(text.tokens)
            if not whole and complete and is_hopeless(pruner, row, complete[0], complete, text, count):
                lost.add(row)
                break
        tokens += float(spent[count])
        if row not in lost:
            complete.append(row)
    return tokens, lost


def pruners(truth: Truth, replicates: int) -> dict[str, dict[str, Array]]:
    """By pruner: tokens, whether the best by the text was given up, and whether the best by the other half was."""
    values_of: dict[str, dict[str, list[float]]] = {name: {} for name in PRUNERS}
    for number in range(replicates):
        generator = np.random.default_rng(number)
        rows = generator.choice(len(truth.settings), min(SETTINGS, len(truth.settings)), replace=False).tolist()
        text = truth.texts[0]
        near, far = halves(text.clusters, generator)
        whole, half, held_out = (text.ordered(part) for part in (generator.permutation(len(text.tokens)), near, far))
        best, best_held_out = (min(rows, key=lambda row: float(part.mean_nll[row])) for part in (whole, held_out))
        for name in PRUNERS:
            tokens, lost = prune(name, rows, whole)
            _, lost_by_half = prune(name, rows, half)
            values = {"tokens": tokens, "lost": best in lost, "lost by held-out": best_held_out in lost}
            values["half: lost by held-out"] = best_held_out in lost_by_half
            for key, value in values.items():
                values_of[name].setdefault(key, []).append(float(value))
    return {name: {key: np.array(values) for key, values in measured.items()} for name, measured in values_of.items()}


def search(surrogate: str, truth: Truth, seed: int) -> Array:
    """Regret of the best by NLL after each of `MOST_TRIALS` full trials, percent of perplexity; nothing is pruned."""
    text, generator = truth.texts[0], np.random.default_rng(seed)
    assert text.kl is not None
    nll, kl = text.mean_nll, text.kl.sum(1) / text.tokens.sum()
    others = generator.permutation(np.arange(truth.presets, len(nll)))
    rows = [*range(truth.presets), *others[:STARTUP].tolist()]
    while len(rows) < MOST_TRIALS:
        free = np.setdiff1d(np.arange(len(nll)), rows)
        mean, deviation, best = _expected(surrogate, truth.points[rows], nll[rows], kl[rows], truth.points[free])
        rows.append(int(free[expected_improvement(mean, deviation, best).argmax()]))
    return np.asarray(100 * np.expm1(np.minimum.accumulate(nll[rows]) - nll.min()))


def _expected(surrogate: str, points: Array, nll: Array, kl: Array, free: Array) -> tuple[Array, Array, float]:
    exact = np.zeros(len(nll))
    if surrogate != "both":
        values = nll if surrogate == "nll" else kl
        return (*fit(points, winsorized(values), exact).predict(free), float(values.min()))
    slope = float(np.polyfit(kl, nll, 1)[0])
    first = fit(points, winsorized(kl), exact).predict(free)
    rest = fit(points, nll - slope * kl, exact).predict(free)
    return slope * first[0] + rest[0], np.hypot(slope * first[1], rest[1]), float(nll.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="*")
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--part", choices=("told", "pruners", "surrogates"), action="append")
    options = parser.parse_args()
    parts = options.part or ("told", "pruners", "surrogates")
    for name, truth in tables(options.model).items():
        text = truth.texts[0]
        if text.kl is None:
            continue
        print(f"\n### {name}: {len(truth.settings)} settings, {len(text.tokens)} sequences")
        if "told" in parts:
            _print_told(truth)
        if "pruners" in parts:
            print(
                f"\n| pruner | tokens for {SETTINGS} | best lost | best by held-out lost | of the half |"
                "\n|---|---|---|---|---|"
            )
            for pruner, columns in pruners(truth, options.replicates).items():
                shares = " | ".join(
                    f"{100 * values.mean():.1f} %" for key, values in columns.items() if key != "tokens"
                )
                print(f"| {pruner} | {columns['tokens'].mean():.2f} | {shares} |", flush=True)
        if "surrogates" in parts:
            print("\n| surrogate | regret at 10, mean, median, against NLL | at 20 |\n|---|---|---|")
            of_nll: Array | None = None
            for surrogate in SURROGATES:
                regrets = np.array([search(surrogate, truth, seed) for seed in range(options.replicates)])
                of_nll = regrets if of_nll is None else of_nll
                cells = [_regret_text(regrets[:, at - 1], of_nll[:, at - 1]) for at in SHOWN]
                print(f"| {surrogate} | {' | '.join(cells)} |", flush=True)


def _regret_text(regrets: Array, of_nll: Array) -> str:
    """Mean, median, and the paired difference of means to searches by NLL from the same start, 95 % interval."""
    text = f"{regrets.mean():.3f}, {np.median(regrets):.3f}"
    if regrets is of_nll or np.array_equal(regrets, of_nll):
        return text
    difference = regrets - of_nll
    half_width = float(stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference))
    low, high = difference.mean() - half_width, difference.mean() + half_width
    return f"{text}, {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def _print_told(truth: Truth) -> None:
    scores = [truth.texts[0].score(row) for row in range(len(truth.settings))]
    nll, kl, correlation = sharpness(scores)
    print(f"\nmedian t {nll:.1f} by NLL, {kl:.1f} by KL; correlation of differences {correlation:.2f}")
    shares = agreement(scores, SPLITS)
    print("\n| told by | right by | sequences | pairs |\n|---|---|---|---|")
    for (measure, judge, size), share in shares.items():
        print(f"| {measure} | {judge} | {size} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
