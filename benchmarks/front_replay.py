"""Is it valid to prune on a front? A study that measured every trial to its end, replayed in other orders.

Every replay has its own order of sequences, and of trials after the presets. A trial is given up by the product's rule:
at looks, when it is behind the best completed trial of no larger a budget by more than chance. Counted are members of
the true front, which are better on all text than everything of no larger a budget, that were given up; and tokens that
were not read.

    python cli.py optimize --front 4.2..5 --pruner none --objective kl --trials 60 --study all --storage sqlite:///all.db
    python benchmarks/front_replay.py --study all --storage sqlite:///all.db --json front_replay.json
"""

import argparse
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hpo.search.incumbent import Incumbent, make_incumbent
from hpo.search.pruners.paired import is_hopeless
from hpo.search.pruners.pruner import Rule
from hpo.study.finding import find_study
from hpo.study.objective import Objective
from hpo.study.record import TrialRecord, read_study
from hpo.study.scores import Scores
from hpo.workers.ledger import MOST_OTHERS
from objectives.scoring import Score
from storage.paths import Paths
from storage.results import ResultStore
from storage.studies.opening import open_to_read


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What one replay lost and spared: front members and their number, and the share of tokens."""

    lost: int
    members: int
    spared: float


def front_members(trials: Sequence[TrialRecord]) -> set[int]:
    """Return the numbers of the trials that are better than all others of no larger a budget."""
    return {
        trial.number
        for trial in trials
        if all(
            other is trial or not holds(trial, other) or (trial.value, trial.number) < (other.value, other.number)
            for other in trials
        )
    }


def holds(trial: TrialRecord, other: TrialRecord) -> bool:
    """Tell whether the other one takes no more than the budget of the first."""
    assert trial.size_class is not None
    assert other.size_class is not None
    return trial.size_class.holds(other.size_class)


def replay(scored: Sequence[tuple[TrialRecord, Score]], rule: Rule, objective: Objective, seed: int) -> Replayed:
    """Measure the trials in another order, presets first as a study does, and give up what the rule gives up."""
    dice = random.Random(seed)
    first = [pair for pair in scored if pair[0].origin.startswith("preset ")]
    others = [pair for pair in scored if not pair[0].origin.startswith("preset ")]
    dice.shuffle(others)
    order = sorted(first, key=lambda pair: pair[0].number) + others
    total = len(order[0][1].nll)
    places = torch.tensor(dice.sample(range(total), total))
    complete: list[tuple[TrialRecord, Score]] = []
    # Few trials change what those after them are compared with.
    incumbents: dict[tuple[int, ...], Incumbent | None] = {}
    read = 0
    lost: set[int] = set()
    for trial, unordered in order:
        score = unordered.mapped(lambda values: values[places])
        best_first = _best_first(trial, complete)
        key = tuple(other.number for other, _ in best_first)
        if key not in incumbents:
            incumbents[key] = _incumbent(best_first, objective)
        incumbent = incumbents[key]
        given_up = next(
            (
                look
                for look in score.looks(rule.first_look)
                if len(look.nll) < total and incumbent is not None and is_hopeless(look, incumbent, rule)
            ),
            None,
        )
        read += int((score if given_up is None else given_up).tokens.sum())
        if given_up is None:
            complete.append((trial, score))
        else:
            lost.add(trial.number)
    members = front_members([trial for trial, _ in order])
    whole = len(order) * int(order[0][1].tokens.sum())
    return Replayed(lost=len(members & lost), members=len(members), spared=1 - read / whole)


def _best_first(trial: TrialRecord, complete: Sequence[tuple[TrialRecord, Score]]) -> list[tuple[TrialRecord, Score]]:
    within = (pair for pair in complete if holds(trial, pair[0]))
    return sorted(within, key=lambda pair: (pair[0].value, pair[0].number))[: 1 + MOST_OTHERS]


def _incumbent(best_first: Sequence[tuple[TrialRecord, Score]], objective: Objective) -> Incumbent | None:
    if not best_first:
        return None
    (best, score), *others = best_first
    return make_incumbent(best.number, score, [other for _, other in others], objective)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", required=True)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("PRAQTUNE_HOME", "")))
    parser.add_argument("--replays", type=int, default=500)
    parser.add_argument("--errors", default="0.01,0.05")
    parser.add_argument("--first-look", type=int, default=Rule.first_look)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    paths = Paths(given.home) if given.home != Path() else Paths.default()
    record = read_study(find_study(open_to_read(given.storage), given.study))
    scored = Scores(ResultStore(paths.results)).readable(record.complete)
    rows = []
    for error in map(float, given.errors.split(",")):
        results = [
            replay(scored, Rule(error=error, first_look=given.first_look), record.objective, seed)
            for seed in range(given.replays)
        ]
        hit, count = sum(result.lost > 0 for result in results), len(results)
        rows.append(
            {
                "error": error,
                "trials": len(scored),
                "front members": results[0].members,
                "replays that lost a member": hit / count,
                "standard error": (max(hit, 1) / count * (1 - max(hit, 1) / count) / count) ** 0.5,
                "members lost": sum(result.lost for result in results) / sum(result.members for result in results),
                "tokens spared": sum(result.spared for result in results) / count,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
