"""Whole studies, live: `cli.py optimize` on the bundled model with our defaults and with Optuna's samplers and pruners.

Every seed is other text and another study; within a seed all searches score the same sequences, begin with the presets
and have the same number of trials. Printed is how far the best completed trial was above the best that any search found
at that seed, when so many full trials' tokens were evaluated: replays know the table's best, live studies only this.

    python benchmarks/live_studies.py --seeds 5 --trials 20 --json FILE
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import optuna

from hpo.study.record import StudyRecord, read_study

ROOT = Path(__file__).resolve().parent.parent
SEARCHES = {
    "ours (gp, paired)": ["--sampler", "gp", "--pruner", "paired"],
    "gp, wilcoxon": ["--sampler", "gp", "--pruner", "wilcoxon"],
    "tpe, median": ["--sampler", "tpe", "--pruner", "median"],
}
SHOWN = (5, 10)


def study(name: str, seed: int, options: argparse.Namespace) -> StudyRecord:
    """Run a study, or finish it."""
    storage = f"sqlite:///{options.work}/live.db"
    title = f"{name} {seed}"
    command = [sys.executable, str(ROOT / "cli.py"), "optimize", "--study", title, "--storage", storage, "--quiet"]
    command += ["--group-size", str(options.group_size), "--n-calib", "16..128", "--eval-samples", "64"]
    command += ["--trials", str(options.trials), "--seed", str(seed), "--cache", str(options.work / "cache")]
    command += ["--out", str(options.work / "report"), *SEARCHES[name]]
    subprocess.run(command, check=True, capture_output=True)
    return read_study(optuna.load_study(study_name=title, storage=storage))


def curve(record: StudyRecord) -> list[tuple[float, float]]:
    """After every trial: tokens evaluated so far, in full trials, and the least perplexity of a complete one."""
    points, tokens, best = [], 0.0, np.inf
    for trial in record.trials:
        tokens += trial.tokens / record.full_tokens
        best = min(best, np.inf if trial.perplexity is None else trial.perplexity)
        points.append((tokens, float(best)))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "live-studies")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    regrets: dict[str, list[list[float]]] = {name: [] for name in SEARCHES}
    for seed in range(options.seeds):
        curves = {name: curve(study(name, seed, options)) for name in SEARCHES}
        least = min(points[-1][1] for points in curves.values())
        for name, points in curves.items():
            at = [min((best for tokens, best in points if tokens <= shown + 1e-9), default=np.inf) for shown in SHOWN]
            regrets[name].append([100 * (best / least - 1) for best in (*at, points[-1][1])] + [points[-1][0]])
            print(f"seed {seed}, {name}: {np.round(regrets[name][-1], 3).tolist()}", file=sys.stderr, flush=True)
    print(f"| search | {' | '.join(f'at {shown}' for shown in SHOWN)} | at the end | tokens |\n|---|---|---|---|---|")
    for name, rows in regrets.items():
        print(f"| {name} | " + " | ".join(f"{middle:.3f}" for middle in np.median(rows, axis=0)) + " |")
    if options.json:
        options.json.write_text(json.dumps(regrets, indent=1) + "\n")


if __name__ == "__main__":
    main()
