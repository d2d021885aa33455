"""What streaming blocks costs: time per trial and peak memory, in memory and with one block at a time.

    python benchmarks/streaming.py --model DIR --text FILE [--limit-gb 1.5] [--refine]

Runs each way in a fresh process of one thread and prints seconds by phase, the peak of the resident memory above that
of the process before the model was loaded, and what that peak is made of. With a limit both ways run under RLIMIT_DATA,
which a model that is too large for it does not survive.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def main() -> None:
    """Run both ways and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="a text file")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--limit-gb", type=float)
    parser.add_argument("--refine", action="store_true", help="refine scales, norms and biases after the trials")
    parser.add_argument("--way", choices=("memory", "streamed"), help="run one way in this process")
    parsed = parser.parse_args()
    if parsed.way:
        print(json.dumps(_measured(parsed)))
        return
    for way in ("memory", "streamed"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(way, done.stdout.strip() or f"failed: {done.stderr.strip().splitlines()[-1][:200]}", flush=True)


def _resident(mark: str = "VmRSS") -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{mark}:"))
    return int(line.split()[1]) * 1024


def _measured(parsed: argparse.Namespace) -> dict[str, object]:
    from objectives.calibration.recording import statistics_bytes
    from objectives.evaluation import BenchPlan, load_bench
    from objectives.model.finding import decoder_layers
    from objectives.model.loading import ModelPlan
    from objectives.model.memory import reset_peak
    from objectives.text.sequences import TextPlan
    from objectives.trial import run_trial
    from quant.plan import Plan
    from quant.setting import Setting
    from storage.paths import Paths

    if parsed.limit_gb:
        resource.setrlimit(resource.RLIMIT_DATA, (int(parsed.limit_gb * 1e9),) * 2)
    text = {"source": parsed.text, "count": parsed.samples, "length": parsed.length}
    streamed = parsed.way == "streamed"

    def planned(memory: int | None, most: int | None) -> BenchPlan:
        return BenchPlan(
            model=ModelPlan(name=parsed.model, dtype="bfloat16", device_memory=memory),
            calibration=TextPlan(part="calibration", **text),
            data=(TextPlan(part="tuning", **text),),
            max_memory=most,
        )

    before = _resident()
    with tempfile.TemporaryDirectory() as home:
        paths = Paths(Path(home))
        # The sizes of its parts, from a model that streams whatever does not fit.
        least, outside, block, sums = _sizes(parsed.model, decoder_layers, statistics_bytes)
        bench, (data,) = load_bench(planned(least, sums) if streamed else planned(10**12, None), paths)
        import torch

        reset_peak(torch.device("cpu"))
        trials, peaks = [], []
        for bits in (4, 3, 5, 6, 2, 8)[: parsed.trials]:
            plan = Plan.uniform(Setting(method="gw-awq", bits=bits, group_size=64, n_calib=parsed.samples, n_grid=5))
            result = run_trial(bench, plan, data)
            assert result.score is not None, result.outcome
            trials.append({"nll": result.score.mean_nll, **{key: round(s, 2) for key, s in result.seconds.items()}})
            peaks.append(result.peak_bytes)
        refining = _refined(bench, data, plan, paths) if parsed.refine else {}
    return {
        **refining,
        "trials": trials,
        "peak above the empty process, MB": [round((peak - before) / 1e6) for peak in peaks],
        "embeddings, MB": round(outside / 1e6, 1),
        "a block, MB": round(block / 1e6, 1),
        "sums of a block, MB": round(sums / 1e6, 1),
    }


def _refined(bench: Any, data: Any, plan: Any, paths: Any) -> dict[str, object]:
    """Take one pass over what is scored; seconds of it all, and the same with codes that move first."""
    from time import perf_counter

    from objectives.progress import silent
    from objectives.refinement.options import RefinementOptions, RefinementText
    from objectives.refinement.refine import refine
    from storage.results import ResultStore

    text = RefinementText(training=data, validation=data[:2])
    seconds, kls = [], []
    for steps in (0, 4):
        started = perf_counter()
        options = RefinementOptions(passes=1, code_steps=steps)
        refined = refine(bench, plan, text, options, ResultStore(paths.results), silent)
        seconds.append(round(perf_counter() - started, 1))
        kls.append([look.kl for look in refined.refinement.looks])
    return {"refining, s": seconds, "KL of what is held back": kls}


def _sizes(model: str, layers: object, statistics: object) -> tuple[int, int, int, int]:
    from objectives.model.loading import ModelPlan
    from objectives.model.skeleton import load_skeleton

    module, blocks = load_skeleton(ModelPlan(name=model))
    sizes = [2 * sum(p.numel() for p in layer.parameters()) for layer in layers(module)[1]]  # type: ignore[operator]
    outside = 2 * sum(p.numel() for p in module.parameters()) - sum(sizes)
    sums = max(statistics(block) for block in blocks)  # type: ignore[operator]
    return outside + 2 * max(sizes), outside, max(sizes), sums


if __name__ == "__main__":
    main()
