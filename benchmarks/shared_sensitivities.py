"""What does a study lose by making the plans of all its recipes from the sensitivities of one?

A study under a budget measures once what each site loses, by its usual recipe (`hpo/workers/planning.py`), and
quantizes its trials by many. Here, for each recipe and budget, the plan of that recipe's own sensitivities is held
against the plan of another's: KL from full precision on held-out text, paired, with 95 % intervals.

    python benchmarks/shared_sensitivities.py --json shared.json
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.additivity import interval, measured
from hpo.study.bench import bench_plan
from hpo.study.options import BenchOptions
from objectives.budget import parse_budget, size_limits
from objectives.evaluation import lay_out
from objectives.paired import paired_difference
from objectives.progress import silent
from objectives.sensitivity import Sensitivities, measure_sensitivities
from objectives.trial import Bench
from quant.allocation import Allocator
from quant.plan import Plan
from quant.recipes import recipe_fields
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore


def plan_by(bench: Bench, rows: Sensitivities, recipe: Setting, budget: str) -> Plan:
    """Allocate bits by these sensitivities, for a recipe that may be another's."""
    allocator = Allocator(rows.options)
    smallest, _ = size_limits(bench, recipe)
    allocation = allocator.at(allocator.smallest + parse_budget(budget).spare(smallest))
    return rows.plan(allocation.choices, recipe)


def main() -> None:
    """Print a row for every recipe, budget and recipe whose sensitivities are borrowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--eval-data", default="bundled:docstrings")
    parser.add_argument("--recipes", default="gw-awq+full+range+gptq,gw-awq,gwh-praq-v2")
    parser.add_argument("--budgets", default="4.35,4.5,4.75")
    parser.add_argument("--n-calib", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--cache", type=Path, default=Path("additivity-cache"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    options = BenchOptions(model=given.model, eval_data=given.eval_data, eval_samples=given.held_out)
    paths = Paths(given.cache)
    laid_out = lay_out(bench_plan(options, given.n_calib), paths, silent)
    bench, store, (text, *_) = laid_out.bench, ResultStore(paths.results), laid_out.data
    names = given.recipes.split(",")
    recipes = {name: Setting(**recipe_fields({"method": name, "n_calib": given.n_calib})) for name in names}
    sensitivities = {name: measure_sensitivities(bench, recipe, store, silent) for name, recipe in recipes.items()}
    table = []
    for name, recipe in recipes.items():
        for budget in given.budgets.split(","):
            own = plan_by(bench, sensitivities[name], recipe, budget)
            _, best = measured(bench, own, text, store)
            for lender in names:
                if lender == name:
                    continue
                borrowed = plan_by(bench, sensitivities[lender], recipe, budget)
                _, score = measured(bench, borrowed, text, store)
                differing = sum(own.setting_for(linear) != borrowed.setting_for(linear) for linear in own.named)
                row = {
                    "recipe": name,
                    "budget": budget,
                    "sensitivities of": lender,
                    "Linears stored otherwise": f"{differing} of {len(own.named)}",
                    "KL of its own plan": round(best.mean("kl"), 4),
                    "KL difference": interval(paired_difference(score, best, measure="kl")),
                }
                table.append(row)
                print(json.dumps(row), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
