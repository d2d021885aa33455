"""Bad input is refused at once, in one line that names what was received, where, and what is allowed."""

from dataclasses import replace

import pytest
import torch

from quant.errors import QuantizationError
from quant.layers import quantize_set
from quant.linears import LinearSet
from quant.methods import METHODS
from quant.setting import PRESETS, Setting
from tests.quant import synthetic

BROKEN = (float("nan"), float("inf"), float("-inf"))
GROUPS = {"group_size": 12}


@pytest.fixture
def attention() -> LinearSet:
    return synthetic.linear_set(synthetic.layers("attention", 0, torch.bfloat16))


def with_weight(linears: LinearSet, broken: dict[int, float]) -> LinearSet:
    """The same set with one element of the numbered Linears replaced."""
    changed = list(linears.linears)
    for number, value in broken.items():
        weight = changed[number].weight.clone()
        weight[1, 2] = value
        changed[number] = replace(changed[number], weight=weight)
    return replace(linears, linears=tuple(changed))


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scales", ["linear", "foldable"])
def test_weight_that_is_not_finite_is_refused(attention: LinearSet, value: float, method: str, scales: str) -> None:
    """A NaN or Inf in one weight is refused with the name of its layer alone."""
    with pytest.raises(QuantizationError, match="NaN or Inf in attention_1;"):
        quantize_set(with_weight(attention, {1: value}), Setting(method=method, scales=scales, **GROUPS))


def test_every_broken_layer_is_named(attention: LinearSet) -> None:
    """All layers of a set that are not finite are named together."""
    with pytest.raises(QuantizationError, match="attention_0, attention_2;") as caught:
        quantize_set(with_weight(attention, {0: BROKEN[0], 2: BROKEN[1]}), Setting(**GROUPS))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["gram", "magnitude"])
def test_input_statistics_that_are_not_finite_are_refused(attention: LinearSet, field: str) -> None:
    """A NaN in the statistics of an input is refused with the name of a layer that reads it."""
    values = getattr(attention.inputs, field).clone()
    values[0] = float("nan")
    with pytest.raises(QuantizationError, match="the input statistics of attention_0;"):
        quantize_set(replace(attention, inputs=replace(attention.inputs, **{field: values})), Setting(**GROUPS))


@pytest.mark.parametrize("field", ["mean", "square", "magnitude", "activated", "structural"])
def test_every_output_statistic_is_checked(attention: LinearSet, field: str) -> None:
    """Whichever statistic of an output is not a number is refused with its layer's name."""
    linear = attention.linears[2]
    values = getattr(linear.outputs, field).clone()
    values[1] = float("nan")
    broken = replace(linear, outputs=replace(linear.outputs, **{field: values}))
    with pytest.raises(QuantizationError, match="the output statistics of attention_2;"):
        quantize_set(replace(attention, linears=(*attention.linears[:2], broken)), Setting(**GROUPS))


@pytest.mark.parametrize("value", BROKEN)
def test_output_statistics_that_are_not_finite_are_refused(attention: LinearSet, value: float) -> None:
    """An importance that overflowed is refused with its layer's name; it would make every loss NaN and alpha 0."""
    linear = attention.linears[1]
    magnitude = linear.outputs.magnitude.clone()
    magnitude[0] = value
    broken = replace(linear, outputs=replace(linear.outputs, magnitude=magnitude))
    changed = replace(attention, linears=(attention.linears[0], broken, attention.linears[2]))
    with pytest.raises(QuantizationError, match="the output statistics of attention_1;"):
        quantize_set(changed, Setting(**GROUPS))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("method", "gptq", ("'gptq'", *METHODS)),
        ("beta", -0.1, ("beta", "-0.1", "0..1")),
        ("beta", 1.5, ("beta", "1.5", "0..1")),
        ("beta", float("nan"), ("beta", "nan", "0..1")),
        ("tau", 0.0, ("tau", "0.0", "0.001..inf")),
        ("tau", -2.0, ("tau", "-2.0", "0.001..inf")),
        ("tau", float("nan"), ("tau", "nan", "0.001..inf")),
        ("n_grid", True, ("n_grid", "True", "whole number")),
        ("n_grid", 2.5, ("n_grid", "2.5", "whole number")),
        ("n_grid", 0, ("n_grid", "0", "1..1048576")),
        ("n_calib", -16, ("n_calib", "-16", "1..1048576")),
        ("group_size", 0, ("group_size", "0", "1..1048576")),
        ("scales", "shared", ("scales", "'shared'", "linear", "foldable")),
        ("placement", "both", ("placement", "'both'", "original", "structural")),
        ("keep_ratio", -0.01, ("keep_ratio", "-0.01", "0..1")),
        ("keep_ratio", 1.01, ("keep_ratio", "1.01", "0..1")),
        ("keep_ratio", float("nan"), ("keep_ratio", "nan", "0..1")),
        ("beta_risk", float("inf"), ("beta_risk", "inf", "-1e+06..1e+06")),
        ("beta_risk", float("nan"), ("beta_risk", "nan", "-1e+06..1e+06")),
        ("tau_risk", float("-inf"), ("tau_risk", "-inf", "-1e+06..1e+06")),
        ("noise_factor", -0.1, ("noise_factor", "-0.1", "0..1e+06")),
        ("noise_factor", float("inf"), ("noise_factor", "inf", "0..1e+06")),
        ("variance_penalty", -1.0, ("variance_penalty", "-1.0", "0..100")),
        ("variance_penalty", float("nan"), ("variance_penalty", "nan", "0..100")),
    ],
)
def test_invalid_setting_is_refused(field: str, value: object, said: tuple[str, ...]) -> None:
    """Each field of a setting outside its range is refused in one line with its value and what is allowed."""
    with pytest.raises(QuantizationError) as caught:
        Setting(**{field: value})
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in said), message


def test_all_problems_of_a_setting_are_named_together() -> None:
    """Several invalid fields are reported in one line, and the valid ones are not mentioned."""
    with pytest.raises(QuantizationError) as caught:
        Setting(method="gptq", beta=2, tau=-1, n_grid=0, n_calib=0, group_size=0, scales="x", placement="y")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'gptq'", "beta 2", "tau -1", "n_grid 0", "n_calib 0", "group_size 0", "'x'", "'y'"):
        assert part in message
    with pytest.raises(QuantizationError) as caught:
        Setting(keep_ratio=2, beta_risk=float("inf"), tau_risk=float("nan"), noise_factor=-1, variance_penalty=-2)
    assert str(caught.value) == (
        "keep_ratio 2 is outside 0..1; beta_risk inf is outside -1e+06..1e+06; tau_risk nan is outside -1e+06..1e+06; "
        "noise_factor -1 is outside 0..1e+06; variance_penalty -2 is outside 0..100"
    )
    with pytest.raises(QuantizationError, match=r"^beta 3 is outside 0\.\.1; tau 0 is outside 0\.001\.\.inf$"):
        Setting(beta=3, tau=0)


def test_unknown_fields_are_refused() -> None:
    """A field that a setting does not have is refused, not ignored."""
    with pytest.raises(TypeError, match="alpha"):
        Setting(alpha=0.5)


def test_boundaries_are_allowed() -> None:
    """The ends of the ranges are valid, and every preset is."""
    Setting(beta=0, tau=1e-3, n_grid=1, n_calib=1, group_size=1)
    Setting(beta=1, tau=float("inf"))
    Setting(keep_ratio=0, noise_factor=0, variance_penalty=0, beta_risk=-3, tau_risk=0)
    Setting(keep_ratio=1, beta_risk=0)
    assert {preset.method for preset in PRESETS.values()} == {"gwh-praq-v2"}
    assert [(preset.beta, preset.tau) for preset in PRESETS.values()] == [
        *((0.5, 2), (0.3, 2.5), (0.7, 1.5), (0.4, 3)),
        (0, 5),
    ]
    assert {(preset.n_calib, preset.n_grid, preset.group_size) for preset in PRESETS.values()} == {(128, 20, 128)}


@pytest.mark.parametrize("method", METHODS)
def test_setting_survives_a_round_trip(method: str) -> None:
    """A setting equals the one made from its dictionary, and its label names what the method reads."""
    setting = Setting(method=method, beta=0.25, tau=0.75, n_grid=7, scales="linear", placement="structural")
    assert Setting(**setting.as_dict()) == setting
    assert setting.label().split()[0] == method
    assert [part.split("=")[0] for part in setting.label().split()[1:]] == list(METHODS[method].parameters)
