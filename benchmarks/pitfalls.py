"""Measure what is known to go wrong with the methods, one table for each pitfall; `docs/methods.md` quotes them.

Every setting is calibrated on the same samples and scored on the same packed sequences as full precision, symmetric,
with one input scale per Linear (`linear`, the form of the original methods). Differences are paired, standard errors
count blocks of one document as one cluster.

    python benchmarks/pitfalls.py
    python benchmarks/pitfalls.py --model DIR --eval-data c4.jsonl.gz --calib-data wikitext2.test.raw --seq-len 512
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from scipy import stats
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hpo.workers.measuring import measure
from objectives import quantization
from objectives.evaluation import BenchPlan, LaidOut, lay_out
from objectives.model.loading import ModelPlan
from objectives.model.memory import keep_freed_memory
from objectives.paired import Difference, paired_difference
from objectives.progress import silent
from objectives.quantization import model_size
from objectives.scoring import Score
from objectives.text.sequences import TextPlan
from objectives.trial import TrialResult, run_trial
from quant import layers
from quant.layers import QuantizedLinear, quantize_set
from quant.linears import LinearSet
from quant.methods import METHODS
from quant.plan import Plan
from quant.scaling.salience import Kind, error_weights, normalise
from quant.setting import Setting
from quant.statistics import OutputStatistics
from storage.paths import Paths
from storage.results import ResultStore

# So large that the softmax of error weights is uniform.
UNIFORM = 1e6
TAUS = (0.2, 2.0, UNIFORM)
RATIOS = (0.05, 0.2)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One setting: its result, and its mean NLL minus full precision's."""

    result: TrialResult
    difference: Difference

    @property
    def score(self) -> Score:
        """Its values per sequence."""
        assert self.result.score is not None
        return self.result.score

    @property
    def text(self) -> str:
        """The increase of the mean NLL with its standard error."""
        return f"{self.difference.value:+.4f} ({self.difference.standard_error:.4f})"


class Bed:
    """A model with its text, on which every setting is measured once, also when this is run again."""

    def __init__(self, laid_out: LaidOut, usual: Setting, store: ResultStore) -> None:
        self.bench, (self.text, *_) = laid_out.bench, laid_out.data
        self.usual, self._store = usual, store
        full = self._result(None).score
        assert full is not None
        self.full = full

    def setting(self, method: str, **fields: object) -> Setting:
        """A setting of this bed's group size and calibration."""
        return replace(self.usual, method=method, **fields)  # type: ignore[arg-type]

    def measure(self, setting: Setting, changed: AbstractContextManager[object] | None = None) -> Measurement:
        """One setting; what has something `changed` in how it is applied is not kept."""
        if changed is None:
            result = self._result(setting)
        else:
            with changed:
                result = run_trial(self.bench, Plan.uniform(setting), self.text)
        assert result.score is not None
        return Measurement(result=result, difference=self.between(result.score, self.full))

    def _result(self, setting: Setting | None) -> TrialResult:
        return measure(self.bench, self._store, setting, [self.text], silent)[0]

    def between(self, first: Score, second: Score) -> Difference:
        """The paired difference of two scores."""
        return paired_difference(first, second)

    def apart(self, first: Measurement, second: Measurement) -> str:
        """The paired difference of two measurements with its standard error."""
        difference = self.between(first.score, second.score)
        return f"{difference.value:+.4f} ({difference.standard_error:.4f})"

    def inputs(self) -> Iterator[tuple[str, Tensor]]:
        """`E|x|` of every input of a Linear, by the input's name."""
        for block in self.bench.blocks:
            statistics = self.bench.calibration.read(block, self.usual.n_calib)
            for site in block.sites:
                yield site.name, statistics.inputs[site.name].magnitude

    def outputs(self) -> Iterator[tuple[str, Kind, OutputStatistics]]:
        """Statistics of every Linear's outputs, by its name."""
        for block in self.bench.blocks:
            statistics = self.bench.calibration.read(block, self.usual.n_calib)
            for site in block.sites:
                for linear in site.linears:
                    yield linear.name, site.kind, statistics.outputs[linear.name]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(f"\n{note}" if note else "", flush=True)


def scaling_without_the_inverse(bed: Bed) -> None:
    """The weights become Q(W S) while the inputs are not divided by S."""

    def unscaled(linears: LinearSet, setting: Setting) -> list[QuantizedLinear]:
        quantized = quantize_set(linears, setting)
        return [
            linear
            if linear.scale is None
            else replace(linear, weight=(linear.weight * linear.scale).to(linear.weight.dtype))
            for linear in quantized
        ]

    setting = bed.setting("gw-awq")
    right = bed.measure(setting)
    wrong = bed.measure(setting, mock.patch.object(quantization, "quantize_set", unscaled))
    rows = [
        ("full precision", f"{bed.full.perplexity:.3f}", "0"),
        ("gw-awq, Q(W S) / S", f"{right.score.perplexity:.3f}", right.text),
        ("gw-awq, Q(W S)", f"{wrong.score.perplexity:,.0f}", wrong.text),
    ]
    table("Scaling without the inverse", ("weights", "perplexity", "NLL above full (s.e.)"), rows)


def one_outlier(bed: Bed) -> None:
    """Saliences that differ in their normalisation alone."""
    by_mean = replace(METHODS["gw-praq"], normalisation="mean")
    praq = bed.setting("gw-praq")
    changed = mock.patch.dict(METHODS, {"gw-praq": by_mean})
    pairs = {"PRAQ's p, linear": (bed.measure(praq, changed), bed.measure(praq))}
    for scales in ("linear", "foldable"):
        settings = (bed.setting("gw-awq"), bed.setting("gwh-praq-v2", beta=0.0, tau=UNIFORM))
        mean, soft = (bed.measure(replace(setting, scales=scales)) for setting in settings)
        pairs[f"AWQ's a, {scales}"] = (mean, soft)
    flattened = {name: float((normalise(a, "soft") < 1.09).float().mean()) for name, a in bed.inputs()}
    worst = max(flattened, key=lambda name: flattened[name])
    salience = dict(bed.inputs())[worst]
    columns = (
        "salience, scales",
        "v / mean v (s.e.)",
        "mean alpha",
        "soft(v) (s.e.)",
        "mean alpha",
        "soft minus mean, paired",
    )
    rows = [
        (name, mean.text, _alpha(mean), soft.text, _alpha(soft), bed.apart(soft, mean))
        for name, (mean, soft) in pairs.items()
    ]
    note = (
        f"Inputs whose soft(a) lies in the lowest tenth of its range: {_median(flattened.values()):.0%} of a Linear's "
        f"(median over inputs). The flattest is {worst}: {flattened[worst]:.1%} of {len(salience)}; its largest a is "
        f"{float(salience.max() / salience.median()):.0f} times its median."
    )
    table("Min-max normalisation under one outlier", columns, rows, note)


def temperature(bed: Bed) -> None:
    """The same temperature on importances that differ in scale from Linear to Linear."""

    def relative(setting: Setting, kind: Kind, h: Tensor) -> Tensor:
        return error_weights(setting, kind, h / h.mean())

    rows = []
    for tau in TAUS:
        setting = bed.setting("gwh-praq-v2", beta=0.0, tau=tau)
        plain = bed.measure(setting)
        scaled = plain if tau == UNIFORM else bed.measure(setting, mock.patch.object(layers, "error_weights", relative))
        shares = [
            _effective_share(error_weights(setting, kind, _importance(kind, out))) for _, kind, out in bed.outputs()
        ]
        rows.append(
            (
                "infinite" if tau == UNIFORM else f"{tau:g}",
                plain.text,
                f"{min(shares):.1%}",
                f"{_median(shares):.1%}",
                scaled.text,
            )
        )
    means = {name: float(_importance(kind, out).mean()) for name, kind, out in bed.outputs()}
    low, high = (choose(means, key=lambda name: means[name]) for choose in (min, max))
    table(
        "A temperature on unnormalised importances (gwh-praq-v2, beta 0)",
        (
            "tau",
            "NLL above full (s.e.)",
            "least effective outputs",
            "median",
            "NLL, importances over their mean (s.e.)",
        ),
        rows,
        "Effective outputs are 1 / (O sum p^2) of a Linear's O outputs, p the error weights' shares. The mean "
        f"importance h of a Linear goes from {means[low]:.3g} ({low}) to {means[high]:.3g} ({high}).",
    )


def placement(bed: Bed) -> None:
    """The activation on every MLP output, or only where the block has one."""
    rows = []
    for method in ("gw-praq", "gwh-praq-v1"):
        original, structural = (
            bed.measure(bed.setting(method, placement=where)) for where in ("original", "structural")
        )
        rows.append((method, original.text, structural.text, bed.apart(structural, original)))
    ranks: dict[str, list[float]] = {}
    for name, kind, out in bed.outputs():
        if kind == "mlp":
            correlation = stats.spearmanr(out.activated.numpy(), out.structural.numpy()).statistic
            ranks.setdefault(name.rpartition(".")[2], []).append(float(correlation))
    note = "Rank correlation of the two importances over a Linear's outputs, median over blocks: " + ", ".join(
        f"{role} {_median(values):.2f}" for role, values in ranks.items()
    )
    columns = ("method", "original (s.e.)", "structural (s.e.)", "structural minus original, paired")
    table("Activation where none is applied", columns, rows, f"{note}.")


def kept_rows(bed: Bed) -> None:
    """Memory spent on rows in 16 bit, or on smaller groups and scaled inputs."""
    settings = [
        bed.setting("rtn-channel"),
        bed.setting("awq"),
        *(bed.setting(method, keep_ratio=ratio) for ratio in RATIOS for method in ("awq-mixed", "praq-mixed")),
        *(bed.setting(method, group_size=size) for size in (64, 32) for method in ("rtn", "gw-awq")),
    ]
    sized = [
        (setting, model_size(bed.bench.model, bed.bench.blocks, Plan.uniform(setting)).bits_per_weight)
        for setting in settings
    ]
    rows = []
    for setting, bits in sorted(sized, key=lambda pair: pair[1]):
        detail = f", {setting.keep_ratio:.0%} of rows" if setting.definition.keeps_rows else ""
        size = "" if setting.definition.per_row else f", group {setting.group_size}"
        rows.append((f"{setting.method}{detail}{size}", f"{bits:.3f}", bed.measure(setting).text))
    columns = ("method", "bits per weight", "NLL above full (s.e.)")
    table("Keeping rows in 16 bit against scaling", columns, rows)


EXAMPLES: Mapping[str, Callable[[Bed], None]] = {
    "inverse": scaling_without_the_inverse,
    "outlier": one_outlier,
    "temperature": temperature,
    "placement": placement,
    "rows": kept_rows,
}


def _importance(kind: Kind, outputs: OutputStatistics) -> Tensor:
    return outputs.magnitude if kind == "attention" else outputs.activated


def _effective_share(weights: Tensor) -> float:
    shares = weights.double() / weights.double().sum()
    return float(1 / (len(shares) * shares.square().sum()))


def _alpha(measurement: Measurement) -> str:
    return f"{sum(layer.alpha for layer in measurement.result.layers) / len(measurement.result.layers):.2f}"


def _median(values: object) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).median())  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--eval-data", default="bundled:docstrings")
    parser.add_argument("--calib-data", help="default: other documents of the evaluation text")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--eval-samples", type=int, default=64)
    parser.add_argument("--n-calib", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--only", choices=list(EXAMPLES), nargs="+", default=list(EXAMPLES))
    options = parser.parse_args()
    keep_freed_memory()
    text = partial(TextPlan, length=options.seq_len)
    plan = BenchPlan(
        model=ModelPlan(name=options.model),
        calibration=text(source=options.calib_data or options.eval_data, part="calibration", count=options.n_calib),
        data=(text(source=options.eval_data, part="tuning", count=options.eval_samples),),
    )
    paths = Paths.default()
    laid_out = lay_out(plan, paths, silent)
    laid_out.bench.calibration.ensure([options.n_calib], silent)
    usual = Setting(n_calib=options.n_calib, group_size=options.group_size, scales="linear")
    bed = Bed(laid_out, usual, ResultStore(paths.results))
    model = laid_out.bench.model
    print(f"{model.name}, {model.dtype}, perplexity {bed.full.perplexity:.3f} on {bed.text.source}", flush=True)
    for name in options.only:
        EXAMPLES[name](bed)


if __name__ == "__main__":
    main()
