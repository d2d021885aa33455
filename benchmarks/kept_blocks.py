"""What it costs to keep quantized blocks on the disk: bytes, and seconds to write and to read each.

    python benchmarks/kept_blocks.py --model DIR --text FILE [--codes]

Quantizes a model with every block kept, whatever it took, is interrupted after the last one, and reads all of them in a
second run. Prints medians over the blocks, beside the seconds that quantizing them took; both runs must give the same
weights.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from objectives import kept_blocks
from objectives.evaluation import BenchPlan, load_bench
from objectives.kept_blocks import KeptBlocks
from objectives.model.loading import ModelPlan
from objectives.text.sequences import TextPlan
from objectives.trial import quantized
from quant.plan import Plan
from quant.setting import Setting
from storage.files import TEMPORARY
from storage.paths import Paths


def main() -> None:
    """Quantize, be interrupted, go on, and print what keeping cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="a text file")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--codes", action="store_true", help="as `quantize` does, which keeps codes, too")
    parsed = parser.parse_args()
    text = {"source": parsed.text, "count": parsed.samples, "length": parsed.length}
    planned = BenchPlan(
        model=ModelPlan(name=parsed.model, dtype=parsed.dtype),
        calibration=TextPlan(part="calibration", **text),
        data=(TextPlan(part="tuning", **text),),
    )
    plan = Plan.uniform(Setting(method="gw-awq", group_size=64, n_calib=parsed.samples, n_grid=5))
    kept_blocks.LONG_SECONDS, kept_blocks.WRITING_SHARE = 0.0, inf
    quantizing, writing = _timed("keep")
    _, reading = _timed("read")
    with tempfile.TemporaryDirectory() as home:
        bench, _ = load_bench(planned, Paths(Path(home)))
        prints = []
        with suppress(KeyboardInterrupt), quantized(bench, plan, with_codes=parsed.codes) as made:
            prints.append(made.fingerprint)
            raise KeyboardInterrupt
        sizes = [path.stat().st_size for path in Path(home, "calibration").glob(f"{TEMPORARY}*/block*")]
        reading.clear()
        started = perf_counter()
        with quantized(bench, plan, with_codes=parsed.codes) as made:
            prints.append(made.fingerprint)
            seconds = perf_counter() - started
    assert prints[0] == prints[1]
    assert len(sizes) == len(quantizing) == len(reading) == len(bench.blocks)
    print(f"{len(sizes)} blocks of {median(sizes) / 1e6:.1f} MB, load {os.getloadavg()[0]:.1f}")
    for name, taken in (("quantizing", quantizing), ("writing", writing), ("reading", reading)):
        print(f"{name} a block: {median(taken):.3f} s")
    print(f"the second run, which only reads: {seconds:.1f} s")


def _timed(name: str) -> tuple[list[Any], list[float]]:
    """Have a method of `KeptBlocks` note its last argument and how long it took, call by call."""
    last: list[Any] = []
    taken: list[float] = []
    usual: Callable[..., Any] = getattr(KeptBlocks, name)

    def timed(self: KeptBlocks, *rest: Any) -> Any:
        started = perf_counter()
        try:
            return usual(self, *rest)
        finally:
            last.append(rest[-1])
            taken.append(perf_counter() - started)

    setattr(KeptBlocks, name, timed)
    return last, taken


if __name__ == "__main__":
    main()
