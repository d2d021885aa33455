"""The search for alpha: Gram losses are weighted output errors, and the choice among candidates is right."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.layers import quantize_set
from quant.linears import LinearSet
from quant.methods import METHODS
from quant.scaling.salience import error_weights, importance, input_salience, normalise
from quant.scaling.search import Problem, QuadraticForm, Rounding, candidate_scales, losses
from quant.scheme import Scheme, dequantize, effective_weight, quantize, round_nearest
from quant.setting import Setting
from tests.quant import reference, synthetic
from tests.quant.synthetic import seeded

GROUPS_OF_12 = partial(effective_weight, scheme=Scheme(group_size=12))


def exact_losses(rows: Tensor, problem: Problem, scales: list[Tensor], rounding: Rounding) -> Tensor:
    """The weighted mean squared output error of each candidate, float64, from the rows themselves."""
    found = []
    for scale in scales:
        errors = rows.double() @ (rounding(problem.weight, scale) - problem.weight).double().T
        found.append(errors.square().mean(0) @ problem.error_weights.double())
    return torch.stack(found)


def made_up(seed: int, tokens: int, outputs: int, inputs: int) -> tuple[Tensor, Problem, list[Tensor]]:
    """Rows with outlier channels, one Linear with unequal error weights, and AWQ's candidates."""
    rows = synthetic.activations(tokens, inputs, seed)
    random = seeded(seed)
    problem = Problem(
        weight=torch.randn(outputs, inputs, generator=random) / inputs**0.5,
        error_weights=outputs * torch.softmax(torch.rand(outputs, generator=random) * 3, 0),
    )
    return rows, problem, candidate_scales(normalise(rows.abs().mean(0), "mean"), 10)


@pytest.mark.parametrize("size", [1, 2, 191, 192, 193, 383, 384, 385, 577, 900])
def test_quadratic_form(size: int) -> None:
    """The form equals Δ G Δᵀ row by row, for sizes at, below and above those of its panels."""
    random = seeded(size)
    x = torch.randn(size + 5, size, generator=random)
    gram, delta = x.T @ x / len(x), torch.randn(2, 3, size, generator=random).bfloat16()
    expected = torch.stack([row @ gram.double() @ row for row in delta.double().flatten(0, 1)]).view(2, 3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        form = QuadraticForm(gram, dtype)
        found = form(delta.to(form.dtype))
        assert form.dtype == dtype
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)


def test_quadratic_form_needs_only_the_upper_triangle() -> None:
    """What stands below the diagonal of a Gram matrix is not read."""
    x = torch.randn(40, 30, generator=seeded(0))
    gram, delta = x.T @ x, torch.randn(3, 30, generator=seeded(1))
    assert torch.equal(QuadraticForm(gram.triu(), torch.float32)(delta), QuadraticForm(gram, torch.float32)(delta))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("symmetric", [True, False])
def test_gram_loss_is_the_output_error(seed: int, symmetric: bool) -> None:
    """On correlated inputs with outlier channels the Gram loss is the brute-force output error to 1e-4."""
    rows, problem, scales = made_up(seed, 200, 20, 60)
    rounding = partial(effective_weight, scheme=Scheme(group_size=16, symmetric=symmetric))
    [found] = losses([problem], QuadraticForm(synthetic.input_statistics(rows).gram, torch.float32), scales, rounding)
    assert found.dtype == torch.float64
    for scale, loss in zip(scales, found.tolist(), strict=True):
        delta = rounding(problem.weight, scale) - problem.weight
        assert loss == pytest.approx(
            reference.output_error(rows, delta, problem.error_weights.tolist()), rel=1e-4, abs=0
        )


@pytest.mark.parametrize("name", ["gate", "up"])
def test_gram_loss_is_the_output_error_of_a_real_layer(real_mlp: dict[str, Tensor], name: str) -> None:
    """On a real MLP input of the bundled model the Gram loss is the brute-force output error to 1e-4."""
    rows, weight = real_mlp["rows"], real_mlp[name]
    z = rows @ weight.T
    h = torch.nn.functional.silu(z).abs().mean(0)
    problem = Problem(weight=weight, error_weights=error_weights(Setting(tau=0.5), "mlp", h))
    statistics = synthetic.input_statistics(rows)
    scales = candidate_scales(normalise(statistics.magnitude, "mean"), 4)
    rounding = partial(effective_weight, scheme=Scheme(group_size=32, symmetric=False))
    [found] = losses([problem], QuadraticForm(statistics.gram, torch.float32), scales, rounding)
    for scale, loss in zip(scales, found.tolist(), strict=True):
        delta = rounding(weight, scale) - weight
        expected = reference.output_error(rows, delta, problem.error_weights.tolist())
        assert loss == pytest.approx(expected, rel=1e-4, abs=0)


def test_bfloat16_product_chooses_well_on_a_real_layer(real_mlp: dict[str, Tensor]) -> None:
    """On a real MLP input the bfloat16 product chooses a scale within 1e-3 of the best."""
    rows, weight = real_mlp["rows"], real_mlp["gate"]
    problem = Problem(weight=weight, error_weights=torch.ones(len(weight)))
    statistics = synthetic.input_statistics(rows)
    scales = candidate_scales(normalise(statistics.magnitude, "mean"), 20)
    rounding = partial(effective_weight, scheme=Scheme(group_size=32))
    exact = exact_losses(rows, problem, scales, rounding)
    [found] = losses([problem], QuadraticForm(statistics.gram, torch.bfloat16), scales, rounding)
    assert exact[found.argmin()] <= exact.min() * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_bfloat16_product_chooses_well(seed: int) -> None:
    """The exact loss of the scale chosen with a bfloat16 product is within 1e-3 of the best candidate's."""
    rows, problem, scales = made_up(seed, 400, 64, 200)
    rounding = partial(effective_weight, scheme=Scheme(group_size=32))
    gram = synthetic.input_statistics(rows).gram
    exact = exact_losses(rows, problem, scales, rounding)
    [found] = losses([problem], QuadraticForm(gram, torch.bfloat16), scales, rounding)
    assert exact[found.argmin()] <= exact.min() * (1 + 1e-3)
    assert exact.max() > exact.min() * 1.1


def test_default_product_is_the_devices_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an operand type the product takes the one the device is fastest in."""
    rows, problem, scales = made_up(0, 64, 8, 36)
    gram = synthetic.input_statistics(rows).gram
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("quant.scaling.search.fast_dtype", lambda device_type, dtype=dtype: dtype)
        expected = losses([problem], QuadraticForm(gram, dtype), scales, GROUPS_OF_12)
        assert torch.equal(losses([problem], QuadraticForm(gram), scales, GROUPS_OF_12), expected)


def test_losses_do_not_depend_on_how_rows_are_cut() -> None:
    """A Linear with more rows than are tried at once has the loss of its rows handed in piece by piece."""
    rows, problem, scales = made_up(0, 64, 600, 1024)
    gram, tried = synthetic.input_statistics(rows).gram, scales[:3]
    pieces = [
        Problem(weight=weight, error_weights=weights)
        for weight, weights in zip(problem.weight.split(100), problem.error_weights.split(100), strict=True)
    ]
    rounding = partial(effective_weight, scheme=Scheme(group_size=64))
    [whole] = losses([problem], QuadraticForm(gram, torch.float32), tried, rounding)
    parts = losses(pieces, QuadraticForm(gram, torch.float32), tried, rounding)
    assert parts.shape == (6, 3)
    torch.testing.assert_close(whole, parts.sum(0), rtol=1e-6, atol=0)


def test_rounding_is_exchangeable() -> None:
    """The search takes any rounding: one that changes nothing has no loss, a shift by one has the sum of G."""
    rows, problem, scales = made_up(0, 64, 5, 24)
    gram = synthetic.input_statistics(rows).gram
    assert not losses([problem], QuadraticForm(gram, torch.float32), scales, lambda weight, scale: weight.clone()).any()
    shifted = losses([problem], QuadraticForm(gram, torch.float32), scales, lambda weight, scale: weight + 1)
    expected = float(gram.double().sum() * problem.error_weights.double().sum())
    assert shifted[0].tolist() == pytest.approx([expected] * len(scales), rel=1e-5)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=8), st.integers(1, 40))
def test_candidates_are_powers_of_the_salience(salience: list[float], n_grid: int) -> None:
    """Candidates run from ones in `n_grid` steps to the salience itself, never below 1e-5."""
    found = candidate_scales(torch.tensor(salience), n_grid)
    assert len(found) == n_grid + 1
    assert torch.equal(found[0], torch.ones(len(salience)))
    for k, scale in enumerate(found):
        expected = [max(value ** (k / n_grid), 1e-5) for value in torch.tensor(salience).tolist()]
        assert scale.tolist() == pytest.approx(expected, rel=1e-4)


def test_ties_go_to_the_smaller_alpha() -> None:
    """Where no candidate is better than another, as without any input, inputs stay unscaled."""
    given_set = synthetic.linear_set(synthetic.layers("gate-up", 0, torch.bfloat16))
    silent = synthetic.input_statistics(torch.zeros(4, synthetic.INPUTS))
    silent = type(silent)(tokens=4, gram=silent.gram, magnitude=given_set.inputs.magnitude, mean=silent.mean)
    quiet = LinearSet(linears=given_set.linears, kind="mlp", inputs=silent)
    for found in quantize_set(quiet, Setting(method="gw-awq", group_size=12)):
        assert found.alpha == 0
        assert found.loss == found.nearest_loss == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=20)
@given(seed=st.integers(0, 99), group_size=st.sampled_from([5, 12, 64]))
def test_loss_is_never_above_nearest_rounding(method: str, symmetric: bool, seed: int, group_size: int) -> None:
    """Alpha 0 is the identity, so no Linear of its own and no set that shares a scale does worse than nearest."""
    given_set = synthetic.linear_set(synthetic.layers("gate-up", seed, torch.bfloat16))
    setting = Setting(method=method, n_grid=4, symmetric=symmetric, group_size=group_size, scales="linear")
    own = quantize_set(given_set, setting)
    shared = quantize_set(given_set, Setting(**setting.as_dict() | {"scales": "foldable"}))
    assert all(found.loss <= found.nearest_loss for found in own)
    assert sum(found.loss for found in shared) <= sum(found.nearest_loss for found in shared)
    assert [found.nearest_loss for found in own] == [found.nearest_loss for found in shared]


def test_alpha_zero_is_nearest_rounding() -> None:
    """The first candidate gives exactly the nearest rounding and its loss."""
    given_set = synthetic.linear_set(synthetic.layers("down", 2, torch.bfloat16))
    weight = given_set.linears[0].weight.float()
    scheme = Setting(group_size=12).scheme(torch.bfloat16)
    first = candidate_scales(given_set.inputs.magnitude, 20)[0]
    assert torch.equal(effective_weight(weight, first, scheme), round_nearest(weight, scheme))
    [nearest] = quantize_set(given_set, Setting(method="rtn", group_size=12))
    [awq] = quantize_set(given_set, Setting(method="gw-awq", group_size=12))
    assert torch.equal(nearest.weight, round_nearest(weight, scheme).bfloat16())
    assert nearest.alpha == 0
    assert nearest.scale is None
    assert nearest.loss == nearest.nearest_loss == awq.nearest_loss


@pytest.mark.parametrize("factor", [2.0**-20, 1e-3, 7.0, 1e4])
@pytest.mark.parametrize("seed", range(4))
def test_constant_factor_on_error_weights_changes_no_choice(seed: int, factor: float) -> None:
    """Multiplying all error weights by one number multiplies the losses and leaves the choice."""
    rows, problem, scales = made_up(seed, 100, 12, 48)
    gram = synthetic.input_statistics(rows).gram
    scaled = Problem(weight=problem.weight, error_weights=problem.error_weights * factor)
    pair = losses([problem, scaled], QuadraticForm(gram, torch.float32), scales, GROUPS_OF_12)
    assert pair[0].argmin() == pair[1].argmin()
    torch.testing.assert_close(pair[1], pair[0] * factor, rtol=1e-6, atol=0)


def test_error_weights_decide_the_choice() -> None:
    """Error weights on different outputs lead to different choices, so they are not ignored."""
    chosen = set()
    for seed in range(6):
        rows, problem, scales = made_up(seed, 100, 12, 48)
        gram = synthetic.input_statistics(rows).gram
        alone = [Problem(weight=problem.weight, error_weights=weights) for weights in 12 * torch.eye(12)]
        chosen |= {int(row.argmin()) for row in losses(alone, QuadraticForm(gram, torch.float32), scales, GROUPS_OF_12)}
    assert len(chosen) > 2


@pytest.mark.parametrize("method", ["gw-awq", "gwh-praq-v1", "gwh-praq-v2"])
def test_leaving_out_the_inverse_scale_is_a_catastrophe(method: str) -> None:
    """Q(W S) without the division by S has a hundred times the loss, and is not the weight that comes out."""
    given_set = synthetic.linear_set(synthetic.layers("gate-up", 1, torch.float32))
    setting = Setting(method=method, tau=0.5, group_size=12, symmetric=False, scales="linear")
    for linear, found in zip(given_set.linears, quantize_set(given_set, setting, torch.float32), strict=True):
        h = importance(setting, "mlp", given_set.inputs, linear.outputs, linear.weight)
        weights = error_weights(setting, "mlp", h)
        salience = input_salience(setting, "mlp", given_set.inputs, [linear.weight], [h])
        form = QuadraticForm(given_set.inputs.gram, torch.float32)
        assert found.alpha > 0
        torch.testing.assert_close(found.scale, salience.pow(found.alpha))
        without = round_nearest(linear.weight * found.scale, setting.scheme(torch.float32))
        catastrophe = float(form(without - linear.weight) @ weights)
        assert catastrophe > 100 * found.loss
        assert catastrophe > 50 * found.nearest_loss
        assert not torch.allclose(found.weight, without, rtol=0.1)
        torch.testing.assert_close(found.weight, without / found.scale)
        assert float(form(found.weight - linear.weight) @ weights) == pytest.approx(found.loss, rel=1e-4)


@pytest.mark.parametrize("scales", ["linear", "foldable"])
def test_chosen_scale_reproduces_the_weight_from_its_codes(scales: str) -> None:
    """Codes of W S dequantize to the weight that reads divided inputs, and divided by S to the effective weight."""
    given_set = synthetic.linear_set(synthetic.layers("gate-up", 4, torch.bfloat16))
    setting = Setting(method="gw-awq", group_size=12, symmetric=False, scales=scales)
    for linear, found in zip(given_set.linears, quantize_set(given_set, setting), strict=True):
        stored = dequantize(quantize(linear.weight.float() * found.scale, setting.scheme(torch.bfloat16)))
        assert torch.equal((stored if scales == "foldable" else stored / found.scale).bfloat16(), found.weight)
        assert (found.codes is None) == (scales == "linear")
