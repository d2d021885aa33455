"""Compare the options of refining, each alone against the defaults, on text that had no part in it.

The same codes are refined once with the defaults and once with each option changed. What is given of each is the KL
held back before, with moved codes and after, and on every held-out text the KL with its paired difference to the
defaults, clusters being documents. What a refinement needs of an earlier one is read, so that a benchmark that was
ended goes on.

    python benchmarks/refinement_options.py --asymmetric
    python benchmarks/refinement_options.py --model DIR --calib-data C4-TUNE --eval-data C4-HELD,WIKITEXT2 --asymmetric
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hpo.deploy.refining import Refining, text_of, with_refining_text
from hpo.study.bench import bench_plan
from hpo.study.options import BenchOptions
from hpo.terminal import progress_display
from hpo.workers.measuring import measure_plan
from objectives.evaluation import BenchPlan, load_bench
from objectives.model.memory import keep_freed_memory
from objectives.paired import paired_difference
from objectives.progress import Progress
from objectives.refined import Refined
from objectives.refinement.options import RefinementOptions
from objectives.refinement.refine import refine
from objectives.scoring import Score
from quant.plan import Plan
from quant.recipes import recipe_fields
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore

USUAL = RefinementOptions()
CHANGED = {
    "defaults": USUAL,
    "drift .05": replace(USUAL, code_drift=0.05),
    "drift .1": replace(USUAL, code_drift=0.1),
    "drift .4": replace(USUAL, code_drift=0.4),
    "25 steps": replace(USUAL, code_steps=25),
    "100 steps": replace(USUAL, code_steps=100),
    "100 steps of drift .4": replace(USUAL, code_steps=100, code_drift=0.4),
    "codes stay": replace(USUAL, code_steps=0),
    "rate 5e-4": replace(USUAL, rate=5e-4),
    "rate 2e-3": replace(USUAL, rate=2e-3),
    "1024 tokens": replace(USUAL, batch_tokens=1024),
    "4096 tokens": replace(USUAL, batch_tokens=4096),
    "2 passes": replace(USUAL, passes=2),
    "scales": replace(USUAL, parts=("scales",)),
    "norms and biases": replace(USUAL, parts=("norms", "biases")),
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BenchOptions.model)
    parser.add_argument("--calib-data")
    parser.add_argument("--eval-data")
    parser.add_argument("--eval-samples", type=int, default=48)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--n-calib", type=int, default=64)
    parser.add_argument("--refine-samples", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--method", default="gw-awq+range+gptq")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--only", default=",".join(CHANGED), help="of what is changed; defaults come first")
    options = parser.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in CHANGED]:
        parser.error(f"--only has {', '.join(unknown)}; give some of {','.join(CHANGED)}")
    return options


def plans_of(options: argparse.Namespace) -> tuple[BenchPlan, Plan, Refining]:
    """The model with its text, how it is quantized, and on what it is refined."""
    texts = {"calib_data": options.calib_data, "eval_data": options.eval_data, "eval_samples": options.eval_samples}
    fields = {"method": options.method, "n_calib": options.n_calib, "group_size": options.group_size}
    plan = Plan.uniform(Setting(**recipe_fields({**fields, "symmetric": not options.asymmetric})))
    bench = bench_plan(BenchOptions(model=options.model, seq_len=options.seq_len, **texts), options.n_calib)
    return bench, plan, Refining(source=None, samples=options.refine_samples, trials=1, options=USUAL)


def cells(refined: Refined, scores: dict[str, Score], usual: dict[str, Score]) -> Iterator[str]:
    """What one refinement gained: held back, and on each text against the defaults."""
    refinement = refined.refinement
    moves = refinement.moves
    yield "-" if moves is None else f"{100 * moves.share:.1f} %"
    yield f"{refinement.before:.4f}"
    yield "-" if moves is None else f"{moves.after:.4f}"
    yield f"{refinement.after:.4f}"
    for source, score in scores.items():
        yield f"{score.mean('kl'):.4f}"
        difference = paired_difference(score, usual[source], measure="kl")
        same = score is usual[source]
        yield "-" if same else f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def main() -> None:
    options = parsed()
    keep_freed_memory()
    described, plan, refining = plans_of(options)
    paths = Paths.default()
    with progress_display(False) as progress:
        compare(options.only.split(","), described, plan, refining, paths, progress)


def compare(
    names: list[str], described: BenchPlan, plan: Plan, refining: Refining, paths: Paths, progress: Progress
) -> None:
    """Refine with the defaults and with what is changed, and print a row for each."""
    bench, (*judged, training, validation) = load_bench(with_refining_text(described, refining), paths, progress)
    text = text_of(bench, training, validation, refining)
    sources = [part.source for part in described.data]
    heads = [head for source in sources for head in (f"{Path(source).name}: KL", "against the defaults")]
    header = ("changed", "codes moved", "held back", "with moved codes", "after", *heads, "s")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    store = ResultStore(paths.results)
    usual: dict[str, Score] = {}
    for name in dict.fromkeys(["defaults", *names]):
        began = monotonic()
        refined = refine(bench, plan, text, CHANGED[name], store, progress)
        seconds = monotonic() - began
        results = measure_plan(replace(bench, refined=refined), store, plan, judged, progress)
        scores = {source: result.score for source, result in zip(sources, results, strict=True) if result.score}
        usual = usual or scores
        print(f"| {name} | {' | '.join(cells(refined, scores, usual))} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
