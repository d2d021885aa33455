"""Measure what each ingredient costs and gives: recipes side by side, paired, on held-out text.

Every recipe is quantized from the same statistics and scored on the same sequences. The increase of the mean NLL over
full precision and the divergence from it are given with their standard errors, and each recipe is compared with the
first of `--recipes`, or with `gw-awq`, of the same grid and group size, clusters being documents. The text is the first
part of each data set that is not calibrated on.

    python benchmarks/recipes.py --group-size 64 --json rows.json
    python benchmarks/recipes.py --model DIR --calib-data WIKITEXT2 --eval-data C4,WIKITEXT2 --n-calib 64
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hpo.study.bench import bench_plan
from hpo.study.options import BenchOptions
from objectives.evaluation import Row, evaluate, lay_out
from objectives.model.memory import keep_freed_memory
from objectives.paired import Difference, paired_difference
from objectives.progress import silent
from objectives.scoring import Measure
from quant.plan import Plan
from quant.recipes import recipe_fields, recipe_name
from quant.setting import Setting
from storage.paths import Paths

BASELINE = "gw-awq"
ASYMMETRIC = ("rtn", BASELINE, "gw-awq+range", "gw-awq+gptq", "gw-awq+range+gptq", "gw-awq+range+alpha+gptq")
SYMMETRIC = (
    *("rtn", BASELINE, "gw-awq+full", "gw-awq+full+range", "gw-awq+range+gptq", "gw-awq+full+gptq"),
    *("gw-awq+full+range+gptq", "gw-awq+full+range+alpha+gptq"),
)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BenchOptions.model)
    parser.add_argument("--calib-data")
    parser.add_argument("--eval-data")
    parser.add_argument("--eval-samples", type=int, default=48)
    parser.add_argument("--n-calib", type=int, default=128)
    parser.add_argument("--n-grid", type=int, default=20)
    parser.add_argument("--damping", type=float, default=0.05)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--grid", choices=("both", "symmetric", "asymmetric"), default="both")
    parser.add_argument("--recipes", help="separated by commas; others are compared with the first")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def settings_of(options: argparse.Namespace, symmetric: bool) -> list[Setting]:
    """The recipes of one grid."""
    names = options.recipes.split(",") if options.recipes else SYMMETRIC if symmetric else ASYMMETRIC
    common = {name: getattr(options, name) for name in ("n_calib", "n_grid", "damping", "group_size")}
    return [Setting(**recipe_fields({**common, "method": name, "symmetric": symmetric})) for name in names]


def estimate(difference: Difference) -> str:
    """A mean with its standard error."""
    return f"{difference.value:.4f} ({difference.standard_error:.4f})"


def against(row: Row, baseline: Row | None, measure: Measure) -> str:
    """The paired difference to the baseline with its interval."""
    if baseline is None or baseline is row:
        return "-"
    difference = paired_difference(row.score, baseline.score, measure=measure)
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def main() -> None:
    options = parsed()
    keep_freed_memory()
    texts = {"calib_data": options.calib_data, "eval_data": options.eval_data, "eval_samples": options.eval_samples}
    plan = bench_plan(BenchOptions(model=options.model, **texts), options.n_calib)
    laid_out = lay_out(replace(plan, data=plan.data), Paths.default(), silent)
    grids = [True, False] if options.grid == "both" else [options.grid == "symmetric"]
    settings = [setting for symmetric in grids for setting in settings_of(options, symmetric)]
    first = options.recipes.split(",")[0] if options.recipes else BASELINE
    print(
        "| data | grid | recipe | bits | NLL above full (s.e.) | against the baseline | KL | against it | quantize s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    baselines: dict[tuple[str, bool], Row] = {}
    records = []
    for row in evaluate(laid_out, [Plan.uniform(setting) for setting in settings], silent):
        if row.setting is None or row.difference is None or row.kl is None:
            continue
        place = (row.dataset, row.setting.symmetric)
        if recipe_name(row.setting) == first:
            baselines.setdefault(place, row)
        grid = "symmetric" if row.setting.symmetric else "asymmetric"
        cells = (
            *(Path(row.dataset).name, grid, row.setting.label(), f"{row.bits_per_weight:.3f}"),
            *(estimate(row.difference), against(row, baselines.get(place), "nll")),
            *(estimate(row.kl), against(row, baselines.get(place), "kl"), f"{row.quantize_seconds:.1f}"),
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        records.append({"dataset": row.dataset, "setting": row.setting.as_dict(), "nll": row.score.nll.tolist()})
    if options.json:
        options.json.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
