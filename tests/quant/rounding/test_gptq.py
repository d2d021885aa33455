"""GPTQ equals the column by column algorithm of the paper, and holds where Gram matrices are bad."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.layers import quantize_set
from quant.rounding import gptq as module
from quant.rounding.gptq import damped_factor, gptq
from quant.rounding.inputs import ScaledInputs
from quant.rounding.matrix import Matrix, Rounded
from quant.rounding.ranges import find_ranges
from quant.scheme import IntWeight, Scheme, dequantize, quantize
from quant.setting import Setting
from quant.statistics import InputStatistics
from tests.quant import synthetic
from tests.quant.synthetic import activations, per_input, seeded

INPUTS = 90
DAMPING = 0.02
SETTING = Setting(method="rtn", rounding="gptq", damping=DAMPING)
SCHEMES = [Scheme(group_size=size, symmetric=symmetric) for size in (None, 16, 40) for symmetric in (True, False)]


def statistics(rows: Tensor) -> InputStatistics:
    gram = rows.T @ rows / len(rows)
    return InputStatistics(tokens=len(rows), gram=gram, magnitude=rows.abs().mean(0), mean=rows.mean(0))


def scaled_inputs(rows: Tensor, seed: int = 3) -> ScaledInputs:
    scale = torch.rand(rows.shape[1], generator=seeded(seed)) + 0.5
    return ScaledInputs(statistics=statistics(rows), scale=scale)


def matrix(scheme: Scheme, inputs: ScaledInputs, search: str = "none", outputs: int = 12, seed: int = 0) -> Matrix:
    weight = torch.randn(outputs, len(inputs.scale), generator=seeded(seed)) * inputs.scale
    return Matrix(weight=weight, ranges=find_ranges(weight, scheme, inputs, search))


def literal(scaled: Matrix, scheme: Scheme, gram: Tensor, damping: float) -> Tensor:
    """The algorithm as it is written down, float64, one input after the other, nothing blocked; codes `[O, I]`."""
    gram = gram.double()
    order = gram.diagonal().argsort(descending=True, stable=True)
    hessian = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian[order][:, order]), upper=True)
    size = scheme.group_size or len(gram)
    scale = per_input(scaled.ranges.scale, size, len(gram))
    zero = None if scaled.ranges.zero is None else per_input(scaled.ranges.zero, size, len(gram))
    rest, codes = scaled.weight.double()[:, order], torch.zeros(scaled.weight.shape, dtype=torch.float64)
    for step, column in enumerate(order.tolist()):
        offset = 0 if zero is None else zero[:, column].double()
        chosen = ((rest[:, step] / scale[:, column].double()).round() + offset).clamp(scheme.lowest, scheme.highest)
        error = (rest[:, step] - (chosen - offset) * scale[:, column].double()) / upper[step, step]
        rest[:, step + 1 :] -= torch.outer(error, upper[step, step + 1 :])
        codes[:, column] = chosen
    return codes


def loss(codes: IntWeight, scaled: Matrix, gram: Tensor) -> float:
    delta = (dequantize(codes) - scaled.weight).double()
    return float(((delta @ gram.double()) * delta).sum())


@pytest.mark.parametrize("search", ["none", "diagonal", "block"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_codes_are_those_of_the_paper_s_algorithm(scheme: Scheme, search: str) -> None:
    """On every grid, with whole and partial groups, one scale per row, and searched ranges."""
    inputs = scaled_inputs(activations(400, INPUTS, 1))
    scaled = matrix(scheme, inputs, search)
    (rounded,) = gptq([scaled], scheme, inputs, SETTING)
    assert torch.equal(rounded.codes.codes.double(), literal(scaled, scheme, inputs.gram, DAMPING))
    assert rounded.damping is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_loses_less_than_nearest_rounding(scheme: Scheme) -> None:
    """On the same ranges: the objective that it is for."""
    inputs = scaled_inputs(activations(400, INPUTS, 1))
    scaled = matrix(scheme, inputs)
    (rounded,) = gptq([scaled], scheme, inputs, SETTING)
    assert loss(rounded.codes, scaled, inputs.gram) < 0.9 * loss(quantize(scaled.weight, scheme), scaled, inputs.gram)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a matter of speed."""
    inputs, scheme = scaled_inputs(activations(400, INPUTS, 1)), SCHEMES[3]
    scaled = matrix(scheme, inputs)
    (usual,) = gptq([scaled], scheme, inputs, SETTING)
    monkeypatch.setattr(module, "BLOCK", block)
    (other,) = gptq([scaled], scheme, inputs, SETTING)
    assert torch.equal(usual.codes.codes, other.codes.codes)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_uncorrelated_inputs_are_rounded_to_nearest(scheme: Scheme) -> None:
    """There is nothing that others could take back."""
    rows = activations(400, INPUTS, 1)
    inputs = scaled_inputs(rows)
    diagonal = replace(inputs.statistics, gram=inputs.statistics.gram.diagonal().diag())
    inputs = replace(inputs, statistics=diagonal)
    scaled = matrix(scheme, inputs)
    (rounded,) = gptq([scaled], scheme, inputs, SETTING)
    assert torch.equal(rounded.codes.codes, quantize(scaled.weight, scheme).codes)


def test_matrices_that_share_inputs_have_the_codes_they_have_alone() -> None:
    """Rows do not influence each other."""
    inputs, scheme = scaled_inputs(activations(400, INPUTS, 1)), SCHEMES[2]
    several = [matrix(scheme, inputs, outputs=outputs, seed=outputs) for outputs in (3, 8, 1)]
    together = gptq(several, scheme, inputs, SETTING)
    for scaled, rounded in zip(several, together, strict=True):
        (alone,) = gptq([scaled], scheme, inputs, SETTING)
        assert torch.equal(rounded.codes.codes, alone.codes.codes)
        assert torch.equal(rounded.codes.scale, alone.codes.scale)


def test_the_order_of_the_inputs_does_not_matter() -> None:
    """Inputs that change places take their codes with them."""
    rows, scheme = activations(400, INPUTS, 1), Scheme(group_size=None)
    places = torch.randperm(INPUTS, generator=seeded(5))
    inputs = ScaledInputs(statistics=statistics(rows), scale=torch.ones(INPUTS))
    moved = ScaledInputs(statistics=statistics(rows[:, places]), scale=torch.ones(INPUTS))
    scaled = matrix(scheme, inputs)
    other = replace(scaled, weight=scaled.weight[:, places])
    (rounded,), (again,) = gptq([scaled], scheme, inputs, SETTING), gptq([other], scheme, moved, SETTING)
    assert torch.equal(rounded.codes.codes[:, places], again.codes.codes)


def bad_rows(kind: str) -> Tensor:
    rows = activations(400, INPUTS, 1)
    if kind == "few tokens":
        return rows[:5]
    if kind == "dead inputs":
        return rows * (torch.arange(INPUTS) % 3 > 0)
    if kind == "repeated inputs":
        return rows[:, torch.arange(INPUTS) % 30]
    if kind == "large":
        return rows / rows.abs().max() * 1e18
    if kind == "small":
        return rows / rows.abs().max() * 1e-18
    return torch.zeros_like(rows)


@pytest.mark.parametrize("damping", [1e-6, 0.05])
@pytest.mark.parametrize("kind", ["few tokens", "dead inputs", "repeated inputs", "large", "small", "nothing"])
def test_bad_gram_matrices_give_whole_codes(kind: str, damping: float) -> None:
    """Never NaN, and never worse than nearest rounding by much, whatever was measured."""
    inputs, scheme = scaled_inputs(bad_rows(kind)), SCHEMES[3]
    scaled = matrix(scheme, inputs)
    (rounded,) = gptq([scaled], scheme, inputs, replace(SETTING, damping=damping))
    assert dequantize(rounded.codes).isfinite().all()
    if kind in ("few tokens", "dead inputs", "repeated inputs"):
        assert loss(rounded.codes, scaled, inputs.gram) < loss(quantize(scaled.weight, scheme), scaled, inputs.gram)


def test_more_damping_is_taken_where_a_factor_fails_and_said() -> None:
    """A Gram matrix that is none, with a negative eigenvalue, needs more than was asked for."""
    gram = torch.eye(8)
    gram[0, 0] = -0.5
    factor, damping = damped_factor(gram, 0.01)
    assert damping > 0.1
    assert factor.isfinite().all()
    inputs = ScaledInputs(statistics=replace(statistics(torch.ones(2, 8)), gram=gram), scale=torch.ones(8))
    scheme = Scheme(group_size=4)
    scaled = matrix(scheme, inputs)
    rounded: list[Rounded] = gptq([scaled, scaled], scheme, inputs, SETTING)
    assert all(each.damping is not None and each.damping > DAMPING for each in rounded)


def test_factors_of_good_matrices_are_those_of_linear_algebra() -> None:
    """`U` of the inverse, rows divided by their diagonal elements."""
    rows = activations(400, INPUTS, 1)
    gram = rows.T @ rows / len(rows)
    factor, damping = damped_factor(gram, 0.1)
    damped = gram.double() + 0.1 * gram.diagonal().double().mean() * torch.eye(INPUTS)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert damping == 0.1
    torch.testing.assert_close(factor.double(), upper / upper.diagonal()[:, None], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", ["attention", "tied", "gate-up", "down"])
@pytest.mark.parametrize("method", ["rtn", "gw-awq", "gwh-praq-v2", "awq"])
def test_every_ingredient_changes_codes_and_lowers_the_loss(layout: synthetic.Layout, method: str) -> None:
    """Range search, then GPTQ on it, on every layout; each Linear's loss is at most that of nearest rounding."""
    linears = synthetic.linear_set(synthetic.layers(layout, 2, torch.float32))
    base = Setting(method=method, group_size=12, n_grid=4, tau=1.0)
    usual = quantize_set(linears, base, torch.float32)
    stacks = (
        replace(base, range_search="diagonal"),
        replace(base, range_search="block"),
        replace(base, rounding="gptq"),
        replace(base, range_search="diagonal", rounding="gptq"),
    )
    for stack in stacks:
        quantized = quantize_set(linears, stack, torch.float32)
        assert any(not torch.equal(a.weight, b.weight) for a, b in zip(usual, quantized, strict=True))
        assert all(b.final_loss <= a.loss == b.loss for a, b in zip(usual, quantized, strict=True))
        assert sum(b.final_loss for b in quantized) < sum(a.loss for a in usual)


def test_damping_changes_the_codes() -> None:
    """And has no meaning for nearest rounding."""
    linears = synthetic.linear_set(synthetic.layers("gate-up", 2, torch.float32))
    base = Setting(method="gw-awq", group_size=12, n_grid=4, rounding="gptq", damping=0.005)
    some, more = (quantize_set(linears, replace(base, damping=damping)) for damping in (0.005, 5.0))
    assert any(not torch.equal(a.weight, b.weight) for a, b in zip(some, more, strict=True))
    assert Setting(damping=0.2).canonical() == Setting()
    assert Setting(rounding="gptq", damping=0.2).canonical().damping == 0.2
    assert Setting(method="rtn", rounding="gptq", n_calib=32).canonical().n_calib == 32


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_that_cannot_be_is_refused(damping: float) -> None:
    """In one line with what is allowed."""
    with pytest.raises(QuantizationError, match=r"^damping .* is outside 1e-06\.\.1e\+06$"):
        Setting(rounding="gptq", damping=damping)


def test_threads_do_not_change_the_codes() -> None:
    """The same seed, the same codes, on one and on two threads."""
    inputs, scheme = scaled_inputs(activations(400, INPUTS, 1)), SCHEMES[2]
    scaled = matrix(scheme, inputs, outputs=200)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(gptq([scaled], scheme, inputs, SETTING)[0].codes.codes)
    torch.set_num_threads(threads)
    assert torch.equal(*found)
