"""A rounding of one's own goes through the same door as nearest rounding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.layers import quantize_set
from quant.rounding import rounding
from quant.rounding.rounding import ROUNDINGS, ScaledInputs
from quant.scaling.salience import error_weights, importance, kept_rows
from quant.scheme import IntWeight, Scheme, dequantize, quantize
from quant.setting import Setting
from tests.quant.synthetic import seeded
from tests.quant.test_inputs_are_not_mutated import GATE_UP

SETTING = {"method": "gw-awq", "group_size": 12, "n_grid": 4}


class TowardsZero:
    """Rounds every weight towards zero, and remembers what it was handed."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Scheme, ScaledInputs, Setting]] = []

    def __call__(self, weight: Tensor, scheme: Scheme, inputs: ScaledInputs, setting: Setting) -> IntWeight:
        self.seen.append((weight, scheme, inputs, setting))
        nearest = quantize(weight, scheme)
        too_far = dequantize(nearest).abs() > weight.abs()
        return IntWeight(
            codes=nearest.codes - torch.where(too_far, nearest.codes.sign(), 0).to(torch.int8),
            scale=nearest.scale,
            zero=nearest.zero,
            group_size=nearest.group_size,
            bits=nearest.bits,
        )


@pytest.fixture
def towards_zero(monkeypatch: pytest.MonkeyPatch) -> TowardsZero:
    """A second inhabitant."""
    found = TowardsZero()
    monkeypatch.setitem(ROUNDINGS, "towards-zero", found)
    return found


@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_another_rounding_decides_the_codes_and_their_loss(towards_zero: TowardsZero, scales: str) -> None:
    """Input scales are those of the search, whose proxy stays nearest rounding; weights never grow in magnitude."""
    usual = quantize_set(GATE_UP, Setting(**SETTING, scales=scales))
    other = quantize_set(GATE_UP, Setting(**SETTING, scales=scales, rounding="towards-zero"))
    for before, after in zip(usual, other, strict=True):
        assert torch.equal(before.scale, after.scale)
        assert (before.alpha, before.loss, before.nearest_loss) == (after.alpha, after.loss, after.nearest_loss)
        assert not torch.equal(before.weight, after.weight)
        assert before.final_loss == before.loss < after.final_loss
        assert (before.codes is None) == (after.codes is None)
        if before.codes is not None and after.codes is not None:
            assert (after.codes.codes.abs() <= before.codes.codes.abs()).all()


@pytest.mark.parametrize("method", ["gw-awq", "gwh-praq-v2", "awq-mixed"])
@pytest.mark.parametrize("scales", ["foldable", "linear"])
def test_the_final_loss_is_that_of_the_codes(towards_zero: TowardsZero, method: str, scales: str) -> None:
    """It is the weighted output error of the weight that comes out, rows in 16 bit left out."""
    setting = Setting(method=method, group_size=12, n_grid=4, scales=scales, rounding="towards-zero")
    found = quantize_set(GATE_UP, setting, loss_dtype=torch.float32)
    for linear, quantized, (weight, scheme, inputs, _) in zip(GATE_UP.linears, found, towards_zero.seen, strict=True):
        h = importance(setting, GATE_UP.kind, GATE_UP.inputs, linear.outputs, linear.weight.float())
        weights = error_weights(setting, GATE_UP.kind, h) * ~kept_rows(h, setting.kept_rows(len(h)))
        codes = TowardsZero()(weight, scheme, inputs, setting)
        delta = (dequantize(codes) / inputs.scale - linear.weight.float()).double()
        errors = ((delta @ GATE_UP.inputs.gram.double()) * delta).sum(1)
        assert quantized.final_loss == pytest.approx(float(errors @ weights.double()), rel=1e-4)


def test_nearest_rounding_computes_no_loss_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search found is what is reported."""
    monkeypatch.setattr("quant.layers.loss", lambda *given: pytest.fail("the loss was computed again"))
    assert all(found.final_loss == found.loss for found in quantize_set(GATE_UP, Setting(**SETTING)))


def test_a_rounding_is_handed_the_scaled_weight_and_the_statistics(towards_zero: TowardsZero) -> None:
    """What it sees is W S, the scheme, the statistics of x / S, and the setting that asked for it."""
    setting = Setting(**SETTING, rounding="towards-zero")
    found = quantize_set(GATE_UP, setting)
    for linear, quantized, (weight, scheme, inputs, asked) in zip(
        GATE_UP.linears, found, towards_zero.seen, strict=True
    ):
        assert torch.equal(weight, linear.divided() * quantized.scale)
        assert scheme == setting.scheme(linear.weight.dtype)
        assert asked == setting
        scale = quantized.scale.double()
        expected = GATE_UP.inputs.gram.double() / torch.outer(scale, scale)
        torch.testing.assert_close(inputs.gram().double(), expected, rtol=1e-6, atol=0)


def test_a_label_tells_roundings_apart(towards_zero: Any) -> None:
    """The usual one is not mentioned."""
    assert Setting(**SETTING).label() == "gw-awq n_grid=4"
    assert Setting(**SETTING, rounding="towards-zero").label() == "gw-awq n_grid=4 rounding=towards-zero"


def test_an_unknown_rounding_is_refused_with_the_known_ones() -> None:
    """In one line, with the other problems of the setting."""
    with pytest.raises(QuantizationError, match=r"^rounding 'best' is unknown; choose one of nearest; beta 2 is"):
        Setting(rounding="best", beta=2)


def test_nearest_rounding_is_the_scheme_s_own() -> None:
    """The first inhabitant needs no statistics."""
    weight, scheme = torch.randn(4, 24, generator=seeded(0)), Scheme(group_size=8)
    inputs = ScaledInputs(statistics=GATE_UP.inputs, scale=torch.ones(24))
    found = rounding.nearest(weight, scheme, inputs, Setting())
    assert torch.equal(dequantize(found), dequantize(quantize(weight, scheme)))
