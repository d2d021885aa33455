"""What statistics of experts are worth where calibration is short: their own tokens, shrunk ones, those of all tokens.

A mixture of experts is quantized with every way of reading statistics of experts, from so many short calibration
sequences and several draws of them, and scored on the same text; means over the draws, paired differences from the
experts' own statistics, intervals over documents.

`own` shrinks nothing (an expert without tokens has what all have), `kappa K` shrinks with K for each input, `kappa K
gate+up` only what gates and ups read, `kappa K down` only the others (`--apart`); `by number` takes hidden neurons of
two experts for the same where they have the same number, as the target for `down` once did; `pool` reads the target
alone, and `route-all` is the option of that name. The model is made by the first command.

    python -m training.train_mixture --minutes 6 --experts 6 --out runs/mixture
    python benchmarks/experts.py --model runs/mixture
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from unittest import mock

import torch

from objectives.calibration import calibration as reading
from objectives.calibration import shrinking
from objectives.calibration.calibration import Calibration
from objectives.calibration.reach import expert_tokens
from objectives.calibration.recording import BlockStatistics
from objectives.evaluation import BenchPlan, LaidOut, lay_out
from objectives.model.loading import ModelPlan
from objectives.model.memory import keep_freed_memory
from objectives.model.roles import Block
from objectives.paired import Difference, distance, paired_difference
from objectives.progress import silent
from objectives.scoring import Score, score_all
from objectives.text.sequences import TextPlan
from objectives.trial import quantized
from quant.plan import Plan
from quant.recipes import recipe_fields
from quant.setting import Setting
from quant.statistics import Statistics
from storage.cache import TensorCache
from storage.paths import Paths

ALL_OF_THE_POOL = 1e12


@dataclass(frozen=True, kw_only=True)
class Way:
    """How statistics of experts are read: `kappa` for each input, of their own tokens or of all.

    `leaving` are roles whose inputs are left as they are; `by_number` takes neurons of one number for the same.
    """

    name: str
    kappa: float = 0.0
    route_all: bool = False
    leaving: frozenset[str] = frozenset()
    by_number: bool = False

    def shrunk(self, block: Block, statistics: BlockStatistics) -> BlockStatistics:
        """Shrink what is not left as it is."""
        own = _with_kappa(0.0, block, statistics)
        with mock.patch.object(shrinking, "alike", _as_it_is if self.by_number else shrinking.alike):
            shrunk = _with_kappa(self.kappa, block, statistics)
        inputs, outputs = dict(shrunk.inputs), dict(shrunk.outputs)
        for site in block.sites:
            for linear in site.linears if site.linears[0].role in self.leaving else ():
                inputs[site.name], outputs[linear.name] = own.inputs[site.name], own.outputs[linear.name]
        return replace(shrunk, inputs=inputs, outputs=outputs)


def _as_it_is(pooled: Statistics) -> Statistics:
    return pooled


def _with_kappa(kappa: float, block: Block, statistics: BlockStatistics) -> BlockStatistics:
    with mock.patch.object(shrinking, "KAPPA_PER_INPUT", kappa):
        return shrinking.shrunk_block(block, statistics)


def ways(kappas: Sequence[float], apart: bool) -> list[Way]:
    """All ways, the one that others are compared with first."""
    parts = {"": (), " gate+up": ("down",), " down": ("gate",)} if apart else {"": ()}
    return [
        Way(name="own"),
        *(
            Way(name=f"kappa {kappa:g}{name}", kappa=kappa, leaving=frozenset(leaving))
            for kappa in kappas
            for name, leaving in parts.items()
        ),
        Way(name="kappa 1 by number", kappa=1.0, by_number=True),
        Way(name="pool", kappa=ALL_OF_THE_POOL),
        Way(name="route-all", route_all=True),
    ]


def scores_of(laid_out: LaidOut, way: Way, setting: Setting, draw: int, paths: Paths) -> list[Score]:
    """Quantize from one draw of calibration sequences and score every text."""
    bench, size = laid_out.bench, setting.n_calib
    sequences = bench.calibration.text[draw * size : (draw + 1) * size]
    calibration = Calibration(bench.model, bench.blocks, sequences, TensorCache(paths), route_all=way.route_all)
    bench = replace(bench, calibration=calibration)
    teachers = [bench.teacher(text) for text in laid_out.data]
    with (
        mock.patch.object(reading, "shrunk_block", way.shrunk),
        quantized(bench, Plan.uniform(setting)),
    ):
        return [
            score_all(bench.model.module, text, "scoring", silent, teacher)
            for text, teacher in zip(laid_out.data, teachers, strict=True)
        ]


def mean_of(scores: Sequence[Score]) -> Score:
    """The mean of scores of one text, sequence by sequence."""
    parts = {name: torch.stack([getattr(score, name).double() for score in scores]).mean(0) for name in ("nll", "kl")}
    return replace(scores[0], **parts)


def interval(difference: Difference) -> str:
    """A difference with its 95 % interval, in thousandths of a nat."""
    value, low, high = (1000 * nats for nats in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def reached(laid_out: LaidOut, size: int, draws: int, paths: Paths) -> str:
    """How many tokens experts read in a draw: least, median, most over blocks and draws."""
    counts: list[int] = []
    for draw in range(draws):
        sequences = laid_out.bench.calibration.text[draw * size : (draw + 1) * size]
        calibration = Calibration(laid_out.bench.model, laid_out.bench.blocks, sequences, TensorCache(paths))
        calibration.ensure([size], silent)
        for tokens in expert_tokens(calibration, laid_out.bench.blocks, size).values():
            counts += tokens
    counts.sort()
    return f"{counts[0]}, {counts[len(counts) // 2]}, {counts[-1]}"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a mixture of experts")
    parser.add_argument("--calib-data", default="bundled:docstrings")
    parser.add_argument("--eval-data", default="bundled:docstrings,bundled:topics")
    parser.add_argument("--calib-len", type=int, default=64, help="tokens of a calibration sequence (default 64)")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--eval-samples", type=int, default=32)
    parser.add_argument("--sizes", default="4,16,64", help="calibration sequences (default 4,16,64)")
    parser.add_argument("--draws", type=int, default=3, help="of calibration sequences (default 3)")
    parser.add_argument("--kappas", default="0.25,1,4", help="for each input (default 0.25,1,4)")
    parser.add_argument("--apart", action="store_true", help="shrink what gate and up read, or down, alone as well")
    parser.add_argument("--method", default="gw-awq+full+range+gptq")
    parser.add_argument("--group-size", type=int, default=32)
    parsed = parser.parse_args()
    keep_freed_memory()
    sizes = [int(size) for size in parsed.sizes.split(",")]
    calibration = TextPlan(
        source=parsed.calib_data, part="calibration", count=max(sizes) * parsed.draws, length=parsed.calib_len
    )
    data = tuple(
        TextPlan(source=source, part="tuning", count=parsed.eval_samples, length=parsed.seq_len)
        for source in parsed.eval_data.split(",")
    )
    paths = Paths.default()
    laid_out = lay_out(
        BenchPlan(model=ModelPlan(name=parsed.model), calibration=calibration, data=data), paths, silent
    )  # fmt: skip
    print("| n_calib | tokens of an expert | statistics | text | KL | KL against own | NLL against own |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        setting = Setting(**recipe_fields({"method": parsed.method, "group_size": parsed.group_size, "n_calib": size}))
        tokens = reached(laid_out, size, parsed.draws, paths)
        own: dict[int, Score] = {}
        for way in ways([float(kappa) for kappa in parsed.kappas.split(",")], parsed.apart):
            drawn = [scores_of(laid_out, way, setting, draw, paths) for draw in range(parsed.draws)]
            for number, text in enumerate(laid_out.data):
                score = mean_of([scores[number] for scores in drawn])
                first = own.setdefault(number, score)
                kl = distance(score, "kl")
                assert kl is not None
                against = (
                    ("–", "–")
                    if score is first
                    else [interval(paired_difference(score, first, measure=measure)) for measure in ("kl", "nll")]
                )
                cells = (size, tokens, way.name, text.source, f"{1000 * kl.value:.1f}", *against)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
