"""Measure what range search and GPTQ take beside a bare matrix product, on the shapes of one decoder block.

GPTQ on a matrix of O outputs and I inputs spreads the error of each input over those that follow: O I² operations,
blocked so that most of them are matrix products. Its factor takes about I³ (a Cholesky factorisation and a triangular
inverse), in float64 only where float32 fails. Seconds are the best of some repetitions; rates are given beside that of
a product of the same operands, measured in the same run.

    python benchmarks/gptq_speed.py --width 576 --hidden 1536
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from quant.rounding.gptq import damped_factor, gptq
from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix
from quant.rounding.nearest import nearest
from quant.rounding.ranges import find_ranges
from quant.scheme import Scheme
from quant.setting import Setting
from quant.statistics import InputStatistics

REPETITIONS = 5
SETTING = Setting(method="gw-awq", rounding="gptq", symmetric=False)
SCHEME = Scheme(group_size=64, symmetric=False)


def seconds(work: Callable[[], object]) -> float:
    """The least time of some runs."""
    times = []
    for _ in range(REPETITIONS):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return min(times)


def correlated(inputs: int, generator: torch.Generator) -> Tensor:
    """A Gram matrix of four tokens an input, of unequal sizes."""
    rows = torch.randn(4 * inputs, inputs, generator=generator) * torch.rand(inputs, generator=generator).mul_(3)
    return rows.T @ rows / len(rows)


def measure(inputs: int, outputs: Sequence[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    gram = correlated(inputs, generator)
    ones = torch.ones(inputs)
    scaled = ScaledInputs(
        statistics=InputStatistics(tokens=4 * inputs, gram=gram, magnitude=ones, mean=ones), scale=ones
    )
    weights = [torch.randn(rows, inputs, generator=generator) for rows in outputs]
    matrices = [Matrix(weight=w, ranges=find_ranges(w, SCHEME, scaled, "none")) for w in weights]
    everything = torch.cat(weights)
    bare = seconds(lambda: everything @ gram)
    searched = {
        search: seconds(lambda search=search: [find_ranges(w, SCHEME, scaled, search) for w in weights])  # type: ignore[misc]
        for search in ("diagonal", "block")
    }
    factor = seconds(lambda: damped_factor(scaled.gram, SETTING.damping))
    rounded = seconds(lambda: gptq(matrices, SCHEME, scaled, SETTING))
    plain = seconds(lambda: nearest(matrices, SCHEME, scaled, SETTING))
    operations = sum(outputs) * inputs**2 + inputs**3
    ranges = " | ".join(f"{taken:.4f}" for taken in searched.values())
    rates = (
        f"{operations / 1e9:.2f} | {operations / rounded / 1e9:.1f} | {2 * sum(outputs) * inputs**2 / bare / 1e9:.1f}"
    )
    shape = f"{inputs} x {'+'.join(map(str, outputs))}"
    print(f"| {shape} | {plain:.4f} | {ranges} | {factor:.4f} | {rounded:.4f} | {rates} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--key-value", type=int, default=192)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads\n")
    print("| shape | nearest s | diagonal s | block s | factor s | GPTQ s | GFLOP | GFLOP/s | bare product GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    measure(options.width, [options.width, options.key_value, options.key_value])
    measure(options.width, [options.width])
    measure(options.width, [options.hidden, options.hidden])
    measure(options.hidden, [options.width])


if __name__ == "__main__":
    main()
