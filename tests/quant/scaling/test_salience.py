"""Importances, saliences, their normalisation and error weights, by their formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quant.linears import HeadTie
from quant.methods import METHODS
from quant.scaling.salience import (
    error_weights,
    importance,
    input_salience,
    kept_rows,
    normalise,
    post_activation_salience,
    risk,
    spread,
)
from quant.setting import Setting
from quant.statistics import InputStatistics, OutputStatistics
from tests.quant import reference, synthetic
from tests.quant.synthetic import seeded

VALUES = st.lists(st.floats(0, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=20)


def outputs_of(generator: torch.Generator, size: int) -> OutputStatistics:
    mean, square, magnitude, activated, structural = torch.rand(5, size, generator=generator)
    return OutputStatistics(
        tokens=8, mean=mean, square=square, magnitude=magnitude, activated=activated, structural=structural
    )


@pytest.fixture(scope="module")
def inputs() -> InputStatistics:
    return synthetic.input_statistics(synthetic.activations(32, 12, 0))


@pytest.fixture(scope="module")
def weights() -> list[Tensor]:
    return [torch.randn(outputs, 12, generator=seeded(outputs)) for outputs in (5, 3)]


@pytest.fixture(scope="module")
def importances() -> list[Tensor]:
    return [torch.rand(outputs, generator=seeded(outputs)) for outputs in (5, 3)]


@given(VALUES)
def test_soft_normalisation(values: list[float]) -> None:
    """`soft` maps the least value to 0.1 and the largest to 10, linearly, and a constant to ones."""
    found = normalise(torch.tensor(values), "soft")
    expected = torch.tensor(reference.soft(torch.tensor(values).tolist()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if len(set(values)) > 1 and max(values) > 1e-6:
        assert found.min() == pytest.approx(0.1, rel=1e-5)
        assert found.max() == pytest.approx(10, rel=1e-5)


@given(VALUES)
def test_mean_normalisation(values: list[float]) -> None:
    """`mean` divides by the mean of the values after raising them to at least 1e-8."""
    found = normalise(torch.tensor(values), "mean")
    expected = torch.tensor(reference.mean(torch.tensor(values).tolist()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-30)
    assert found.mean() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 1e6])
def test_constant_salience_becomes_ones(value: float) -> None:
    """A constant salience prefers no input, so both normalisations give ones, also for a constant zero."""
    constant = torch.full((7,), value)
    assert torch.equal(normalise(constant, "soft"), torch.ones(7))
    torch.testing.assert_close(normalise(constant, "mean"), torch.ones(7))


def measured(setting: Setting, kind: str, inputs: InputStatistics, outputs: OutputStatistics) -> Tensor:
    return importance(setting, kind, inputs, outputs, torch.ones(6, 12))


@pytest.mark.parametrize("method", METHODS)
def test_attention_outputs_count_by_magnitude(method: str, inputs: InputStatistics) -> None:
    """Whatever the method measures on the MLP, outputs of attention matter by their mean magnitude."""
    outputs = outputs_of(seeded(0), 6)
    for placement in ("original", "structural"):
        setting = Setting(method=method, placement=placement)
        assert torch.equal(measured(setting, "attention", inputs, outputs), outputs.magnitude)


@pytest.mark.parametrize("method", ["gw-praq", "gwh-praq-v1", "gwh-praq-v2"])
def test_importance_by_placement(method: str, inputs: InputStatistics) -> None:
    """MLP outputs count by the chosen placement of the activation."""
    outputs = outputs_of(seeded(0), 6)
    assert torch.equal(measured(Setting(method=method), "mlp", inputs, outputs), outputs.activated)
    structural = Setting(method=method, placement="structural")
    assert torch.equal(measured(structural, "mlp", inputs, outputs), outputs.structural)


def test_importance_by_method(inputs: InputStatistics) -> None:
    """On the MLP one mixed method goes by magnitude, one by risk, one by risk over a power of the deviation."""
    outputs = outputs_of(seeded(0), 6)
    of = {name: measured(Setting(method=name, variance_penalty=2), "mlp", inputs, outputs) for name in METHODS}
    at_risk = risk(Setting(), inputs, outputs, torch.ones(6, 12))
    assert torch.equal(of["awq-mixed"], outputs.magnitude)
    assert torch.equal(of["praq-mixed"], at_risk)
    assert torch.equal(of["praq-real"], at_risk)
    torch.testing.assert_close(of["praq-mixed-var"], at_risk / spread(outputs).clamp(min=1e-8).square())
    unpenalised = Setting(method="praq-mixed-var", variance_penalty=0)
    assert torch.equal(measured(unpenalised, "mlp", inputs, outputs), at_risk)


def test_risk_by_hand() -> None:
    """One output with E z = -1, std 0.5, E|z| = 1.1 at E|x| = 2 over all inputs and mean |W| = 3."""
    inputs = InputStatistics(
        tokens=1, gram=torch.eye(2), magnitude=torch.tensor([1.0, 3.0]), mean=torch.tensor([0.0, 0.0])
    )
    outputs = OutputStatistics(
        tokens=1,
        mean=torch.tensor([-1.0]),
        square=torch.tensor([1.25]),
        magnitude=torch.tensor([1.1]),
        activated=torch.zeros(1),
        structural=torch.zeros(1),
    )
    setting = Setting(beta_risk=0.5, tau_risk=0.2, noise_factor=0.1)
    # upper = -1 + 3 * 0.5 + 0.1 * 2 * 3 = 1.1; sigmoid(0.5 * (1.1 - 0.2)) = 0.610639; times 1.1 + 0.5.
    assert float(risk(setting, inputs, outputs, torch.tensor([[-2.0, 4.0]]))) == pytest.approx(0.977023, rel=1e-5)


def test_constant_output_has_no_spread_and_finite_importance(inputs: InputStatistics) -> None:
    """An output that never varies, where rounding may even leave a negative variance, gives numbers and no NaN."""
    zeros = torch.zeros(6)
    for mean, square in ((zeros, zeros), (torch.full((6,), 3.0), torch.full((6,), 8.9999))):
        outputs = OutputStatistics(tokens=1, mean=mean, square=square, magnitude=mean, activated=mean, structural=mean)
        assert torch.equal(spread(outputs), zeros)
        found = measured(Setting(method="praq-mixed-var"), "mlp", inputs, outputs)
        assert found.isfinite().all()


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=9), st.data())
def test_kept_rows(values: list[float], data: st.DataObject) -> None:
    """As many rows as asked for are kept, none less important than one that is not, and of equal ones the first."""
    count = data.draw(st.integers(0, len(values)))
    found = kept_rows(torch.tensor(values), count).tolist()
    best_first = sorted(range(len(values)), key=lambda row: (-values[row], row))
    assert [row for row, is_kept in enumerate(found) if is_kept] == sorted(best_first[:count])


def test_post_activation_salience_sums_over_all_linears(weights: list[Tensor], importances: list[Tensor]) -> None:
    """p sums `h_o |W_oj|` over the outputs of every Linear that shares the input."""
    found = post_activation_salience(weights, importances)
    expected = reference.post_activation(weights, [h.tolist() for h in importances])
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_beta_zero_is_soft_activation_salience(
    kind: str, inputs: InputStatistics, weights: list[Tensor], importances: list[Tensor]
) -> None:
    """V2 with beta 0 is steered by the input magnitudes alone."""
    found = input_salience(Setting(beta=0), kind, inputs, weights, importances)
    assert torch.equal(found, normalise(inputs.magnitude, "soft"))


def test_beta_one_is_post_activation_salience_on_the_mlp_only(
    inputs: InputStatistics, weights: list[Tensor], importances: list[Tensor]
) -> None:
    """V2 with beta 1 is steered by p on the MLP and still by the input magnitudes in attention."""
    p = normalise(post_activation_salience(weights, importances), "soft")
    soft = normalise(inputs.magnitude, "soft")
    assert torch.equal(input_salience(Setting(beta=1), "mlp", inputs, weights, importances), p)
    assert torch.equal(input_salience(Setting(beta=1), "attention", inputs, weights, importances), soft)
    assert not torch.allclose(p, soft)
    blend = input_salience(Setting(beta=0.25), "mlp", inputs, weights, importances)
    torch.testing.assert_close(blend, 0.75 * soft + 0.25 * p)


@pytest.mark.parametrize("method", ["awq", "gw-awq", "gwh-praq-v1"])
def test_awq_salience_is_mean_normalised(
    method: str, inputs: InputStatistics, weights: list[Tensor], importances: list[Tensor]
) -> None:
    """AWQ and V1 are steered by the input magnitudes over their mean, whatever beta says."""
    found = input_salience(Setting(method=method, beta=1), "mlp", inputs, weights, importances)
    assert torch.equal(found, normalise(inputs.magnitude, "mean"))


@pytest.mark.parametrize("method", ["gw-praq", "praq-real"])
def test_praq_salience_is_soft_normalised(
    method: str, inputs: InputStatistics, weights: list[Tensor], importances: list[Tensor]
) -> None:
    """PRAQ is steered by p on the MLP and by the input magnitudes in attention, whatever beta says."""
    p = normalise(post_activation_salience(weights, importances), "soft")
    setting = Setting(method=method, beta=0)
    assert torch.equal(input_salience(setting, "mlp", inputs, weights, importances), p)
    soft = normalise(inputs.magnitude, "soft")
    assert torch.equal(input_salience(setting, "attention", inputs, weights, importances), soft)


@pytest.mark.parametrize("method", ["rtn", "rtn-channel", "awq-mixed", "praq-mixed", "praq-mixed-var"])
def test_method_without_salience_has_none(
    method: str, inputs: InputStatistics, weights: list[Tensor], importances: list[Tensor]
) -> None:
    """Asking for the salience of a method that scales no inputs is a mistake and is named as one."""
    with pytest.raises(ValueError, match=f"{method} scales no inputs"):
        input_salience(Setting(method=method), "mlp", inputs, weights, importances)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mlp", "attention"])
@given(seed=st.integers(0, 99), tau=st.floats(0.1, 5))
def test_error_weights_equal_reference(method: str, kind: str, seed: int, tau: float) -> None:
    """Error weights have mean 1 and follow the method: uniform, importance over its mean, or its softmax."""
    h = 3 * torch.rand(9, generator=seeded(seed))
    found = error_weights(Setting(method=method, tau=tau), kind, h)
    expected = torch.tensor(reference.error_weights(method, tau, kind == "mlp", h.tolist()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_large_temperature_makes_error_weights_uniform(scale: float) -> None:
    """As tau grows the softmax weights approach one, monotonically, and reach it at infinity."""
    h = scale * torch.rand(9, generator=seeded(1))
    gaps = [float((error_weights(Setting(tau=tau), "mlp", h) - 1).abs().max()) for tau in (0.1, 10, 1e3, 1e9)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5
    assert gaps[-1] < 1e-5
    assert torch.equal(error_weights(Setting(tau=float("inf")), "mlp", h), torch.ones(9))


def test_huge_importances_stay_finite() -> None:
    """A softmax of importances far beyond the exponent's range is finite and keeps mean 1."""
    found = error_weights(Setting(tau=0.1), "mlp", torch.tensor([1e4, 9.9e3, 0.0]))
    torch.testing.assert_close(found, torch.tensor([3.0, 0.0, 0.0]))


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_head_tie_averages_over_query_heads(kv_heads: int, repeats: int, head_dim: int, seed: int) -> None:
    """A tie gives every input the mean over the tied query heads, equal among them, and once is enough."""
    values = torch.rand(kv_heads * repeats * head_dim, generator=seeded(seed))
    tie = HeadTie(kv_heads=kv_heads, repeats=repeats, head_dim=head_dim)
    found = tie.average(values)
    expected = torch.tensor(reference.tied(values.tolist(), (kv_heads, repeats, head_dim)))
    torch.testing.assert_close(found, expected)
    heads = found.view(kv_heads, repeats, head_dim)
    assert torch.equal(heads, heads[:, :1].expand_as(heads))
    torch.testing.assert_close(tie.average(found), found, rtol=3e-7, atol=0)
