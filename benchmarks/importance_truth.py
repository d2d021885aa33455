"""What importances of a study say, next to what a whole table of truth says.

The truth of a table is what PED-ANOVA and fANOVA make of all its settings, which fill the space evenly. Studies are
replayed on it, and their shares are computed with pruned trials by their estimates, as the product does, and over
complete trials alone, as Optuna does: mean absolute error of the shares, how often the leading hyperparameter is the
true one, how often a 90 % interval of the mean covers the truth, how often the product warns.

    python benchmarks/importance_truth.py --replicates 20 --trials 40
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.replay import Ours, field, proposer, replay
from benchmarks.truth import Truth, tables
from hpo.search.pruners.registry import Pruning
from hpo.study.record import TrialRecord
from hpo.verdict.importance import Shares, importances

Judgement = tuple[float, bool, float, bool]
"""Error of the shares, whether the leader is right, coverage, whether there is a warning."""


def shares(truth: Truth, trials: list[TrialRecord]) -> Shares:
    """The product's, over these trials."""
    return importances(truth.space, trials).overall


def whole(truth: Truth) -> Shares:
    """Over all settings of a table, as if each were a complete trial."""
    where = field(truth, 0)
    study = Ours(where, 0, proposer("random"), Pruning(name="none"))
    replay(study, where, float("inf"), len(truth.settings))
    return shares(truth, study.trials)


def judged(estimated: Shares, true: Shares) -> Judgement:
    """Mean absolute error of the mean shares, whether the leader is right, coverage, and whether there is a warning."""
    names = list(true.mean)
    errors = [abs(estimated.mean[name].value - true.mean[name].value) for name in names]
    covered = [estimated.mean[name].low <= true.mean[name].value <= estimated.mean[name].high for name in names]
    return (
        float(np.mean(errors)),
        next(iter(estimated.mean)) == names[0],
        float(np.mean(covered)),
        bool(estimated.warning),
    )


def summary(judgements: list[Judgement], studies: int, trials: int) -> str:
    """Say what the judgements come to; studies without shares have none."""
    if not judgements:
        return f"none of {studies} studies has shares: {trials} trials are too few; give more --trials"
    error, right, covered, warned = np.mean(np.array(judgements, dtype=float), axis=0)
    return (
        f"{len(judgements)} studies, error {error:.3f}, leader right {right:.0%}, 90 % intervals cover {covered:.0%}, "
        f"warned {warned:.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    options = parser.parse_args()
    for name, truth in tables("bundled").items():
        true = whole(truth)
        named = ", ".join(f"{name} {share.percent(0)}" for name, share in true.mean.items())
        print(f"\n{name}, all {true.trials} settings: {named}; {true.warning or 'no warning'}", flush=True)
        rows: dict[str, list[Judgement]] = {"with pruned trials": [], "complete trials alone": []}
        for seed in range(options.replicates):
            where = field(truth, seed)
            study = Ours(where, seed, proposer("gp"), Pruning())
            replay(study, where, float("inf"), options.trials)
            alone = [trial if trial.state == "COMPLETE" else replace(trial, estimate=None) for trial in study.trials]
            for kind, trials in zip(rows, (study.trials, alone), strict=True):
                estimated = shares(truth, trials)
                if estimated.reason is None:
                    rows[kind].append(judged(estimated, true))
        for kind, judgements in rows.items():
            print(f"  {kind}: {summary(judgements, options.replicates, options.trials)}", flush=True)


if __name__ == "__main__":
    main()
