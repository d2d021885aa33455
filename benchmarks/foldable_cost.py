"""What it costs in perplexity that scales fold: gw-awq, foldable against linear, at each group size and grid.

python benchmarks/foldable_cost.py --model DIR --eval-text c4.jsonl.gz --calib-text wikitext2.test.raw
"""

import argparse
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hpo.verdict.words import percent_text
from hpo.workers.measuring import measure
from objectives.evaluation import BenchPlan, load_bench
from objectives.model.loading import ModelPlan
from objectives.model.memory import keep_freed_memory
from objectives.paired import paired_difference
from objectives.progress import silent
from objectives.scoring import Score
from objectives.text.sequences import TextPlan
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore

CALIBRATED = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--calib-text", required=True)
    parser.add_argument("--scored", type=int, default=32, help="sequences of 512 tokens")
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[64, 32])
    options = parser.parse_args()
    keep_freed_memory()
    plan = BenchPlan(
        model=ModelPlan(name=options.model),
        calibration=TextPlan(source=options.calib_text, part="calibration", count=CALIBRATED),
        data=(TextPlan(source=options.eval_text, part="tuning", count=options.scored),),
    )
    paths = Paths.default()
    bench, data = load_bench(plan, paths)
    store = ResultStore(paths.results)
    for size, symmetric in product(options.group_sizes, (False, True)):
        scores: dict[str, Score] = {}
        for scales in ("linear", "foldable"):
            setting = Setting(method="gw-awq", group_size=size, symmetric=symmetric, scales=scales, n_calib=CALIBRATED)
            score = measure(bench, store, setting, data, silent)[0].score
            assert score is not None
            scores[scales] = score
        cost = paired_difference(scores["foldable"], scores["linear"])
        values = ", ".join(f"{scales} {score.perplexity:.3f}" for scales, score in scores.items())
        grid = "symmetric" if symmetric else "asymmetric"
        print(f"group {size} {grid}: {values}, foldable costs {percent_text(cost)}", flush=True)


if __name__ == "__main__":
    main()
