"""A whole study against the same settings through the pipeline people use today.

Takes the study as `show --json` or `optimize --json` wrote it and the record of `benchmarks/trial_cost.py` on the same
machine, model and sequence length. Per setting the opponent keeps inputs and passes over them (time in proportion to
n_calib), searches (in proportion to the n_grid + 1 values of alpha that it tries) and scores every sequence (in
proportion to their number); nothing is pruned or shared.
Its times are extrapolated from the measured trials, and labelled so. Ours is the sum over the study's first trials.

    python benchmarks/trial_cost.py --model DIR --eval-text C4 --calib-text WIKITEXT2 --json cost.json
    python benchmarks/study_speed.py --study study.json --cost cost.json --trials 16
"""

import argparse
import json
from pathlib import Path
from typing import Any

MEASURED_GRID = 20


def opponent_seconds(cost: dict[str, Any], setting: dict[str, int], sequences: int) -> float:
    """What the opponent would need for one setting, by the measured trial of the largest n_calib."""
    largest = max(cost["opponent"], key=int)
    phases = cost["opponent"][largest]
    calibrating = (phases["keep inputs"] + phases["importances"]) * setting["n_calib"] / int(largest)
    searching = phases["search"] * (setting["n_grid"] + 1) / (MEASURED_GRID + 1)
    return float(calibrating + searching + phases["score"] * sequences / cost["scored"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--cost", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=16)
    options = parser.parse_args()
    study, cost = json.loads(options.study.read_text()), json.loads(options.cost.read_text())
    sequences = study["contract"]["tuning"]["sequences"]
    trials = [trial for trial in study["trials"] if trial["state"] in ("COMPLETE", "PRUNED")][: options.trials]
    opponent = sum(opponent_seconds(cost, trial["params"], sequences) for trial in trials)
    own = sum(sum(trial["seconds"].values()) for trial in trials)
    pruned = sum(trial["state"] == "PRUNED" for trial in trials)
    print(f"{len(trials)} settings ({pruned} pruned), {sequences} sequences each")
    print(f"opponent {opponent:,.0f} s (extrapolated from its measured trials), ours {own:,.0f} s (measured)")
    print(f"ours is {opponent / own:.1f} times faster")


if __name__ == "__main__":
    main()
