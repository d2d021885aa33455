"""One worker with all cores against several that divide them: trials per second on the bundled model, in one run.

Studies of equal trials (random settings of one seed, nothing pruned), each with results of its own and calibration in
common, taken in turn so that a machine that grows slower is unfair to nobody. Timed from the start of the first trial
to the end of the last: loading and references are not a trial's cost.

    python benchmarks/throughput.py --workers 2 --trials 16 --rounds 2 --json throughput.json
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import optuna  # noqa: E402

from storage.studies.opening import open_storage  # noqa: E402

FLAGS = ["--sampler", "random", "--pruner", "none", "--group-size", "64,128", "--n-calib", "32", "--quiet"]


def pace(directory: Path, home: Path, workers: int, trials: int) -> float:
    """Trials per second."""
    own = directory / "home"
    own.mkdir(parents=True)
    if (home / "calibration").exists():
        shutil.copytree(home / "calibration", own / "calibration")
    url = f"sqlite:///{directory}/study.db"
    command = [sys.executable, str(ROOT / "cli.py"), "optimize", *FLAGS, "--trials", str(trials), "--study", "s"]
    command += ["--workers", str(workers), "--devices", "cpu", "--storage", url, "--cache", str(own)]
    subprocess.run([*command, "--out", str(directory / "report")], check=True, capture_output=True)
    if not (home / "calibration").exists():
        shutil.copytree(own / "calibration", home / "calibration")
    finished = optuna.load_study(storage=open_storage(url), study_name="s").trials
    started = min(trial.datetime_start for trial in finished if trial.datetime_start)
    ended = max(trial.datetime_complete for trial in finished if trial.datetime_complete)
    return len(finished) / (ended - started).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    paces: dict[int, list[float]] = {1: [], options.workers: []}
    with tempfile.TemporaryDirectory(prefix="praqtune-throughput-") as name:
        home = Path(name) / "shared"
        home.mkdir()
        for number in range(options.rounds):
            for workers, rates in paces.items():
                rates.append(pace(Path(name) / f"{number}-{workers}", home, workers, options.trials))
                print(f"round {number + 1}, {workers} workers: {rates[-1]:.3f} trials per second", flush=True)
    ratio = statistics.mean(paces[options.workers]) / statistics.mean(paces[1])
    print(f"{options.workers} workers reach {ratio:.2f} times the throughput of one with all threads")
    if options.json:
        options.json.write_text(json.dumps({"trials_per_second": paces, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
