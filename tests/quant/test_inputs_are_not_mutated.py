"""No public function of the package writes over a tensor it is given, unless its name ends with an underscore."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from quant import layers, linears, matmul, methods, packing, scheme, setting, statistics
from quant.rounding import gptq, nearest, ranges
from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix
from quant.scaling import folding, salience, search
from tests.quant import synthetic
from tests.quant.synthetic import CPU, seeded


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor reachable from an argument."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return tensors_in(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in tensors_in(getattr(value, field.name))]
    return []


def square(size: int) -> Tensor:
    rows = torch.randn(size + 3, size, generator=seeded(size))
    return rows.T @ rows


WEIGHT = torch.randn(4, 24, generator=seeded(0))
SALIENCE = torch.rand(24, generator=seeded(1)) + 0.5
INPUTS = ScaledInputs(statistics=synthetic.input_statistics(torch.randn(40, 24, generator=seeded(6))), scale=SALIENCE)
GATE_UP = synthetic.linear_set(synthetic.layers("gate-up", 0, torch.float32))
TIED = synthetic.linear_set(synthetic.layers("tied", 0, torch.float32))
WEIGHTS = [linear.weight for linear in GATE_UP.linears]
IMPORTANCES = [linear.outputs.activated for linear in GATE_UP.linears]
OUTPUTS = GATE_UP.linears[0].outputs
SCHEMES = [
    scheme.Scheme(group_size=size, symmetric=symmetric, scale_dtype=dtype)
    for size in (None, 1, 8, 10)
    for symmetric in (True, False)
    for dtype in scheme.SCALE_TYPES
]

CALLS: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    **{f"quantize-{number}": (scheme.quantize, (WEIGHT, variant)) for number, variant in enumerate(SCHEMES)},
    **{f"round_nearest-{number}": (scheme.round_nearest, (WEIGHT, variant)) for number, variant in enumerate(SCHEMES)},
    **{
        f"dequantize-{number}": (scheme.dequantize, (scheme.quantize(WEIGHT, variant),))
        for number, variant in enumerate(SCHEMES)
    },
    **{
        f"undivided-{number}": (scheme.undivided, (scheme.quantize(WEIGHT, variant), SALIENCE))
        for number, variant in enumerate(SCHEMES)
    },
    **{
        f"loaded-{number}": (scheme.loaded, (scheme.quantize(WEIGHT, variant),))
        for number, variant in enumerate(SCHEMES)
    },
    **{
        f"effective_weight-{number}": (scheme.effective_weight, (WEIGHT, SALIENCE, variant))
        for number, variant in enumerate(SCHEMES)
    },
    **{
        f"effective_in_ranges-{number}": (ranges.effective_in_ranges, (WEIGHT, SALIENCE, variant, INPUTS.statistics))
        for number, variant in enumerate(SCHEMES)
    },
    "stored_scale": (scheme.stored_scale, (SALIENCE, SCHEMES[0])),
    **{
        f"encode-{number}": (scheme.encode, (WEIGHT[:, None], scheme.group_ranges(WEIGHT[:, None], variant), variant))
        for number, variant in enumerate(SCHEMES)
    },
    "grouped": (scheme.grouped, (WEIGHT, SCHEMES[-1])),
    "stored": (
        scheme.stored,
        (WEIGHT.round(), scheme.group_ranges(WEIGHT[:, None], SCHEMES[0]), WEIGHT.shape[1], SCHEMES[0]),
    ),
    **{
        f"{module.__name__}-{number}": (
            module,
            (
                [Matrix(weight=WEIGHT, ranges=scheme.group_ranges(scheme.grouped(WEIGHT, variant), variant))],
                variant,
                INPUTS,
                setting.Setting(),
            ),
        )
        for module in (gptq.gptq, nearest.nearest)
        for number, variant in enumerate(SCHEMES)
    },
    **{
        f"find_ranges-{search}-{number}": (ranges.find_ranges, (WEIGHT, variant, INPUTS, search))
        for search in ("none", "diagonal", "block")
        for number, variant in enumerate(SCHEMES)
    },
    "damped_factor": (gptq.damped_factor, (INPUTS.gram, 0.1)),
    **{
        f"group_ranges-{number}": (scheme.group_ranges, (WEIGHT[:, None], variant))
        for number, variant in enumerate(SCHEMES)
    },
    "group_ranges-of-one": (scheme.group_ranges, (-WEIGHT[..., None], scheme.Scheme(group_size=1, symmetric=False))),
    **{
        f"quantize_set-{method}-{sharing}": (
            partial(layers.quantize_set, setting=setting.Setting(method=method, scales=sharing, group_size=12)),
            (GATE_UP,),
        )
        for method in methods.METHODS
        for sharing in ("linear", "foldable")
    },
    "quantize_sets": (
        partial(layers.quantize_sets, setting=setting.Setting(group_size=12)),
        ([GATE_UP, replace(GATE_UP, inputs=replace(GATE_UP.inputs, tokens=3))],),
    ),
    "shrunk": (statistics.shrunk, (GATE_UP.inputs, replace(GATE_UP.inputs, tokens=5), 0.3)),
    "quantize_set-tied": (partial(layers.quantize_set, setting=setting.Setting(group_size=12)), (TIED,)),
    "require_finite": (linears.require_finite, (TIED,)),
    "HeadTie.average": (linears.HeadTie(kv_heads=2, repeats=3, head_dim=4).average, (SALIENCE,)),
    "HeadTie.average-alone": (linears.HeadTie(kv_heads=6, repeats=1, head_dim=4).average, (SALIENCE,)),
    "HeadTie.per_value": (linears.HeadTie(kv_heads=2, repeats=3, head_dim=4).per_value, (SALIENCE,)),
    "LinearInput.divided": (
        lambda linear: linear.divided(),
        (replace(GATE_UP.linears[0], divisor=torch.rand(7, generator=seeded(3)) + 0.5),),
    ),
    **{
        f"quantize_set-divided-{offset}": (
            partial(layers.quantize_set, setting=setting.Setting(group_size=12)),
            (
                replace(
                    GATE_UP,
                    norm=folding.NormWeight(weight=torch.rand(36, generator=seeded(4)).bfloat16(), offset=offset),
                    linears=tuple(replace(linear, divisor=torch.full((7,), 0.7)) for linear in GATE_UP.linears),
                ),
            ),
        )
        for offset in (0.0, 1.0)
    },
    "NormWeight.divided": (lambda norm, scale: norm.divided(scale), (folding.NormWeight(weight=SALIENCE), SALIENCE)),
    "NormWeight.representable": (
        lambda norm, scale: norm.representable(scale),
        (folding.NormWeight(weight=SALIENCE.bfloat16(), offset=1.0), SALIENCE),
    ),
    "pack": (packing.pack, (torch.arange(30).view(2, 15) % 16,)),
    "unpack": (packing.unpack, (torch.tensor([[-1, 2**31 - 1]], dtype=torch.int32), 13)),
    **{
        f"packed_tensors-{number}": (packing.packed_tensors, (scheme.quantize(WEIGHT, variant),))
        for number, variant in enumerate(SCHEMES)
    },
    **{
        f"unpacked-{number}": (packing.unpacked, (packing.packed_tensors(scheme.quantize(WEIGHT, variant)),))
        for number, variant in enumerate(SCHEMES)
    },
    "interleaved": (
        packing.interleaved,
        ([(torch.arange(start, 8, 2), scheme.quantize(WEIGHT, scheme.Scheme(group_size=8))) for start in (0, 1)],),
    ),
    "gram_sum": (matmul.gram_sum, (WEIGHT,)),
    "gram_sum-bfloat16": (matmul.gram_sum, (WEIGHT.bfloat16(),)),
    **{
        f"importance-{method}-{kind}": (
            salience.importance,
            (setting.Setting(method=method), kind, GATE_UP.inputs, OUTPUTS, WEIGHTS[0]),
        )
        for method in methods.METHODS
        for kind in ("mlp", "attention")
    },
    "risk": (salience.risk, (setting.Setting(), GATE_UP.inputs, OUTPUTS, WEIGHTS[0])),
    "spread": (salience.spread, (OUTPUTS,)),
    "kept_rows": (salience.kept_rows, (SALIENCE, 5)),
    "post_activation_salience": (salience.post_activation_salience, (WEIGHTS, IMPORTANCES)),
    **{
        f"input_salience-{method}-{kind}": (
            salience.input_salience,
            (setting.Setting(method=method), kind, GATE_UP.inputs, WEIGHTS, IMPORTANCES),
        )
        for method in methods.METHODS
        if methods.METHODS[method].salience
        for kind in ("mlp", "attention")
    },
    "normalise-soft": (salience.normalise, (SALIENCE, "soft")),
    "normalise-mean": (salience.normalise, (SALIENCE, "mean")),
    **{
        f"error_weights-{method}": (salience.error_weights, (setting.Setting(method=method), "mlp", SALIENCE))
        for method in methods.METHODS
    },
    "QuadraticForm": (lambda gram, rows: search.QuadraticForm(gram, rows.dtype)(rows), (square(24), WEIGHT)),
    "QuadraticForm-bfloat16": (
        lambda gram, rows: search.QuadraticForm(gram, rows.dtype)(rows),
        (square(24), WEIGHT.bfloat16()),
    ),
    "candidate_scales": (search.candidate_scales, (SALIENCE, 5)),
    "loss": (
        search.loss,
        (
            search.Problem(weight=WEIGHT, error_weights=torch.ones(4)),
            search.QuadraticForm(square(24), torch.float32),
            WEIGHT + 1,
        ),
    ),
    "losses": (
        partial(search.losses, rounding=partial(scheme.effective_weight, scheme=scheme.Scheme(group_size=8))),
        (
            [search.Problem(weight=WEIGHT, error_weights=torch.ones(4))],
            search.QuadraticForm(square(24)),
            [torch.ones(24), SALIENCE],
        ),
    ),
    "merge": (statistics.merge, ([GATE_UP.inputs, GATE_UP.inputs, GATE_UP.inputs],)),
    "merge-outputs": (statistics.merge, ([OUTPUTS, OUTPUTS],)),
    "pack_symmetric": (statistics.pack_symmetric, (square(6),)),
    "unpack_symmetric": (statistics.unpack_symmetric, (torch.rand(4, 6, generator=seeded(2)),)),
    "InputSums.add": (statistics.InputSums(24, CPU).add, (WEIGHT,)),
    "InputSums.add-bfloat16": (statistics.InputSums(24, CPU).add, (WEIGHT.bfloat16(),)),
    "OutputSums.add": (statistics.OutputSums(24, CPU).add, (WEIGHT, silu)),
    "OutputSums.add-plain": (statistics.OutputSums(24, CPU).add, (WEIGHT, None)),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_are_not_mutated(name: str) -> None:
    """After the call every tensor in the arguments is bit for bit what it was before."""
    function, arguments = CALLS[name]
    before = [tensor.clone() for tensor in tensors_in(arguments)]
    assert before
    function(*arguments)
    assert all(torch.equal(*pair) for pair in zip(before, tensors_in(arguments), strict=True))


def test_every_public_function_is_called() -> None:
    """The calls above cover each public function of the package that is given tensors."""
    without_tensors = {"fast_dtype", "piece_elements", "scale_type"}
    public = {
        name
        for module in (folding, gptq, nearest, ranges, scheme, layers, matmul, packing, salience, search, statistics)
        for name, value in vars(module).items()
        if callable(value) and not isinstance(value, type) and getattr(value, "__module__", "") == module.__name__
        if not name.startswith("_") and not name.endswith("_")
    }
    assert public - without_tensors <= {name.split("-")[0] for name in CALLS}


def test_results_do_not_share_memory_with_weights() -> None:
    """Writing over a quantized weight leaves the original weight as it is, also for nearest rounding."""
    for method in methods.METHODS:
        before = [linear.weight.clone() for linear in GATE_UP.linears]
        for found in layers.quantize_set(GATE_UP, setting.Setting(method=method, group_size=12)):
            found.weight.zero_()
        assert all(torch.equal(w, linear.weight) for w, linear in zip(before, GATE_UP.linears, strict=True))
