"""A rounding of one's own goes through the same door as the product's; whoever loses more than nearest is not taken."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.layers import quantize_set
from quant.linears import LinearInput, LinearSet
from quant.recipes import recipe_fields
from quant.rounding import rounding
from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix, Rounded
from quant.rounding.ranges import find_ranges
from quant.rounding.rounding import ROUNDINGS
from quant.scaling.salience import error_weights, importance, kept_rows
from quant.scheme import IntWeight, Scheme, dequantize, quantize
from quant.setting import Setting
from tests.quant.synthetic import activations, input_statistics, output_statistics, per_input, seeded
from tests.quant.test_inputs_are_not_mutated import GATE_UP

SETTING = {"method": "gw-awq", "group_size": 12, "n_grid": 4}


class Swept:
    """Rounds to nearest, then chooses every input's codes anew in the light of all others: never a larger loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[Matrix, Scheme, ScaledInputs, Setting]] = []

    def __call__(
        self, matrices: Sequence[Matrix], scheme: Scheme, inputs: ScaledInputs, setting: Setting
    ) -> list[Rounded]:
        self.seen += [(matrix, scheme, inputs, setting) for matrix in matrices]
        return [Rounded(codes=swept(matrix, scheme, inputs.gram)) for matrix in matrices]


def swept(matrix: Matrix, scheme: Scheme, gram: Tensor) -> IntWeight:
    codes = quantize(matrix.weight, scheme, matrix.ranges)
    scale = per_input(matrix.ranges.scale, codes.group_size, matrix.weight.shape[1])
    for column in range(matrix.weight.shape[1]):
        step = ((matrix.weight - dequantize(codes)) @ gram[:, column]) / gram[column, column]
        moved = codes.codes[:, column] + (step / scale[:, column]).round()
        codes.codes[:, column] = moved.clamp(scheme.lowest, scheme.highest).to(torch.int8)
    return codes


class TowardsZero:
    """Rounds every weight towards zero, which loses more than nearest rounding."""

    def __call__(
        self, matrices: Sequence[Matrix], scheme: Scheme, inputs: ScaledInputs, setting: Setting
    ) -> list[Rounded]:
        return [Rounded(codes=towards_zero(matrix.weight, scheme)) for matrix in matrices]


def towards_zero(weight: Tensor, scheme: Scheme) -> IntWeight:
    nearest = quantize(weight, scheme)
    too_far = dequantize(nearest).abs() > weight.abs()
    return replace(nearest, codes=nearest.codes - torch.where(too_far, nearest.codes.sign(), 0).to(torch.int8))


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Swept:
    """Another inhabitant."""
    inhabitant = Swept()
    monkeypatch.setitem(ROUNDINGS, "swept", inhabitant)
    return inhabitant


@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_another_rounding_decides_the_codes_and_their_loss(sweep: Swept, scales: str) -> None:
    """Input scales are those of the search, whose proxy stays nearest rounding."""
    usual = quantize_set(GATE_UP, Setting(**SETTING, scales=scales))
    other = quantize_set(GATE_UP, Setting(**SETTING, scales=scales, rounding="swept"))
    for before, after in zip(usual, other, strict=True):
        assert torch.equal(before.scale, after.scale)
        assert (before.alpha, before.loss, before.nearest_loss) == (after.alpha, after.loss, after.nearest_loss)
        assert not torch.equal(before.weight, after.weight)
        assert after.final_loss < before.final_loss == before.loss
        assert (before.codes is None) == (after.codes is None)
        assert not after.fell_back


@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_a_rounding_that_loses_more_is_not_taken(monkeypatch: pytest.MonkeyPatch, scales: str) -> None:
    """Nearest rounding stays, to the last bit, and the result says so."""
    monkeypatch.setitem(ROUNDINGS, "towards-zero", TowardsZero())
    usual = quantize_set(GATE_UP, Setting(**SETTING, scales=scales))
    other = quantize_set(GATE_UP, Setting(**SETTING, scales=scales, rounding="towards-zero"))
    for before, after in zip(usual, other, strict=True):
        assert (before.fell_back, after.fell_back) == (False, True)
        assert torch.equal(before.weight, after.weight)
        assert after.final_loss == before.loss


@pytest.mark.parametrize("method", ["gw-awq", "gwh-praq-v2", "awq-mixed"])
@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_the_final_loss_is_that_of_the_codes(sweep: Swept, method: str, scales: str) -> None:
    """It is the weighted output error of the weight that comes out, rows in 16 bit left out."""
    setting = Setting(method=method, group_size=12, n_grid=4, scales=scales, rounding="swept")
    quantized = quantize_set(GATE_UP, setting, loss_dtype=torch.float32)
    for linear, rounded, (matrix, scheme, inputs, _) in zip(GATE_UP.linears, quantized, sweep.seen, strict=True):
        h = importance(setting, GATE_UP.kind, GATE_UP.inputs, linear.outputs, linear.weight.float())
        weights = error_weights(setting, GATE_UP.kind, h) * ~kept_rows(h, setting.kept_rows(len(h)))
        codes = swept(matrix, scheme, inputs.gram)
        delta = (dequantize(codes) / inputs.scale - linear.weight.float()).double()
        errors = ((delta @ GATE_UP.inputs.gram.double()) * delta).sum(1)
        assert rounded.final_loss == pytest.approx(float(errors @ weights.double()), rel=1e-4)


def test_nearest_rounding_computes_no_loss_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search found is what is reported."""
    monkeypatch.setattr("quant.layers.loss", lambda *given: pytest.fail("the loss was computed again"))
    assert all(linear.final_loss == linear.loss for linear in quantize_set(GATE_UP, Setting(**SETTING)))


def test_a_rounding_is_handed_the_scaled_weight_and_the_statistics(sweep: Swept) -> None:
    """What it sees is W S, the scheme, the statistics of x / S, and the setting that asked for it."""
    setting = Setting(**SETTING, rounding="swept")
    quantized = quantize_set(GATE_UP, setting)
    for linear, rounded, (matrix, scheme, inputs, asked) in zip(GATE_UP.linears, quantized, sweep.seen, strict=True):
        assert torch.equal(matrix.weight, linear.divided() * rounded.scale)
        assert scheme == setting.scheme(linear.weight.dtype)
        assert asked == setting
        scale = rounded.scale.double()
        expected = GATE_UP.inputs.gram.double() / torch.outer(scale, scale)
        torch.testing.assert_close(inputs.gram.double(), expected, rtol=1e-6, atol=0)


def test_a_label_tells_ingredients_apart() -> None:
    """Those of the method itself are not mentioned."""
    assert Setting(**SETTING).label() == "gw-awq n_grid=4"
    assert Setting(**SETTING, rounding="gptq", damping=0.1).label() == "gw-awq+gptq n_grid=4 damping=0.1"
    assert Setting(**SETTING, range_search="block", damping=0.1).label() == "gw-awq+block n_grid=4"


def test_an_unknown_rounding_is_refused_with_the_known_ones() -> None:
    """In one line, with the other problems of the setting."""
    with pytest.raises(QuantizationError, match=r"^rounding 'best' is unknown; choose one of nearest, gptq; beta 2 is"):
        Setting(rounding="best", beta=2)


def test_nearest_rounding_is_the_scheme_s_own() -> None:
    """The first inhabitant needs no statistics."""
    weight, scheme = torch.randn(4, 24, generator=seeded(0)), Scheme(group_size=8)
    inputs = ScaledInputs(statistics=GATE_UP.inputs, scale=torch.ones(24))
    ranges = find_ranges(weight, scheme, inputs, "none")
    (rounded,) = rounding.nearest([Matrix(weight=weight, ranges=ranges)], scheme, inputs, Setting())
    assert torch.equal(dequantize(rounded.codes), dequantize(quantize(weight, scheme)))


@pytest.mark.parametrize("recipe", ["gw-awq+range+alpha+gptq", "gwh-praq-v2+full+block+alpha+gptq"])
def test_threads_do_not_change_a_recipe(recipe: str) -> None:
    """Exponents, ranges and codes of every ingredient together are the same on one and on two threads."""
    rows = activations(512, 256, seed=3)
    weights = [torch.randn(outputs, 256, generator=seeded(outputs)) / 16 for outputs in (192, 128)]
    linears = tuple(
        LinearInput(name=f"{len(weight)}", weight=weight, outputs=output_statistics(rows @ weight.T, rows, False))
        for weight in weights
    )
    given = LinearSet(linears=linears, kind="attention", inputs=input_statistics(rows))
    setting = Setting(**recipe_fields({"method": recipe, "group_size": 32, "n_grid": 8}))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(quantize_set(given, setting))
    finally:
        torch.set_num_threads(threads)
    for alone, shared in zip(*results, strict=True):
        assert alone.codes is not None
        assert shared.codes is not None
        assert alone.alpha == shared.alpha
        assert torch.equal(alone.codes.scale, shared.codes.scale)
        assert torch.equal(alone.codes.codes, shared.codes.codes)
