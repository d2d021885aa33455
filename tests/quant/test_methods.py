"""What the named methods are, what each reads of a setting, and how they relate to one another."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

import quant.layers
from quant.errors import QuantizationError
from quant.layers import QuantizedLinear, quantize_set
from quant.linears import LinearSet
from quant.methods import METHODS
from quant.scaling.salience import error_weights
from quant.setting import Setting
from tests.quant import reference, synthetic
from tests.quant.synthetic import Layout

LAYOUTS: tuple[Layout, ...] = ("attention", "tied", "gate-up", "down")
MIXED = ("awq-mixed", "praq-mixed", "praq-mixed-var")
RISK = {"beta_risk", "tau_risk", "noise_factor"}
SCALED = {"n_calib", "scales", "n_grid"}
READS = {
    "rtn": {"group_size"},
    "rtn-channel": set(),
    "awq": SCALED,
    "praq-real": SCALED | RISK,
    "gw-awq": SCALED | {"group_size"},
    "gw-praq": SCALED | {"group_size", "placement"},
    "gwh-praq-v1": SCALED | {"group_size", "placement"},
    "gwh-praq-v2": SCALED | {"group_size", "placement", "beta", "tau"},
    "awq-mixed": {"n_calib", "keep_ratio"},
    "praq-mixed": {"n_calib", "keep_ratio"} | RISK,
    "praq-mixed-var": {"n_calib", "keep_ratio", "variance_penalty"} | RISK,
}
"""Fields of a setting by the method that reads them, beyond the method itself and `symmetric`."""
OTHER = {
    "beta": 0.9,
    "tau": 0.3,
    "n_grid": 7,
    "n_calib": 64,
    "group_size": 9,
    "scales": "linear",
    "placement": "structural",
    "keep_ratio": 0.6,
    "beta_risk": -0.4,
    "tau_risk": 20.0,
    "noise_factor": 40.0,
    "variance_penalty": 3.0,
}
"""Another valid value of every field that not all methods read."""


@pytest.fixture(params=LAYOUTS)
def given_set(request: pytest.FixtureRequest) -> LinearSet:
    return synthetic.linear_set(synthetic.layers(request.param, 3, torch.bfloat16))


def same(first: list[QuantizedLinear], second: list[QuantizedLinear]) -> bool:
    """Whether two results are equal to the last bit."""

    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b if a is None or b is None else torch.equal(a, b)

    return all(
        equal(linear.weight, other.weight)
        and equal(linear.scale, other.scale)
        and (linear.alpha, linear.loss, linear.nearest_loss) == (other.alpha, other.loss, other.nearest_loss)
        for linear, other in zip(first, second, strict=True)
    )


# The table


def test_the_table() -> None:
    """The eleven methods, from the plainest to the most involved of each kind."""
    assert tuple(METHODS) == tuple(READS)
    assert all(METHODS[name].name == name and METHODS[name].summary for name in METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_reads(method: str) -> None:
    """A method declares its own parameters, and reads group size, calibration size, sharing and placement if it can."""
    found = METHODS[method]
    assert found.reads == READS[method] | {"method", "symmetric", "range_search", "rounding"}
    assert set(found.parameters) == READS[method] - {"group_size", "n_calib", "scales", "placement"}
    assert {field.name for field in fields(Setting)} == found.reads | set(OTHER) | {
        "alpha_proxy",
        "bit_budget",
        "bits",
        "damping",
        "full_range",
        "prefix",
    }


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("method", METHODS)
def test_canonical_keeps_what_is_read(method: str, name: str) -> None:
    """The canonical setting has a field as it was given where the method reads it, and at its default elsewhere."""
    setting = Setting(method=method, symmetric=False, **{name: OTHER[name]})
    canonical = setting.canonical()
    assert canonical == (setting if name in READS[method] else Setting(method=method, symmetric=False))
    assert canonical.canonical() == canonical


@pytest.mark.parametrize("method", METHODS)
def test_fields_that_are_not_read_change_nothing(method: str, given_set: LinearSet) -> None:
    """Two settings of one canonical form quantize alike, to the last bit."""
    base = {"group_size": 12, "n_grid": 4, "tau": 1.0, **{name: OTHER[name] for name in READS[method]}}
    unread = {name: value for name, value in OTHER.items() if name not in READS[method]}
    setting = Setting(method=method, **base)
    changed = replace(setting, **unread)
    assert changed.canonical() == setting.canonical()
    assert same(quantize_set(given_set, setting), quantize_set(given_set, changed))


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method in METHODS for name in sorted(READS[method] - {"n_calib"})]
)
def test_fields_that_are_read_change_something(method: str, name: str) -> None:
    """Each field that a method reads has an effect on some Linears under some values of the others."""
    # A threshold among the bounds of these outputs; far from them all the risk hardly depends on it.
    base = {"group_size": 12, "n_grid": 40, "tau": 1.0, "beta": 0.5, "keep_ratio": 0.4, "tau_risk": 15.0}
    setting = Setting(method=method, **base)
    changed = replace(setting, **{name: OTHER[name]})
    sets = (
        synthetic.linear_set(synthetic.layers(layout, seed, torch.float32)) for layout in LAYOUTS for seed in range(6)
    )
    assert any(not same(quantize_set(linear_set, setting), quantize_set(linear_set, changed)) for linear_set in sets)


def test_labels() -> None:
    """A label has the method and the parameters it reads, and nothing of the others."""
    assert Setting(method="rtn-channel", keep_ratio=0.5).label() == "rtn-channel"
    assert Setting(method="awq", n_grid=10).label() == "awq n_grid=10"
    assert Setting(method="awq-mixed", keep_ratio=0.25).label() == "awq-mixed keep_ratio=0.25"
    assert Setting(method="praq-mixed-var").label() == (
        "praq-mixed-var keep_ratio=0.2 beta_risk=3 tau_risk=-3 noise_factor=0.2 variance_penalty=0.5"
    )


def test_bits() -> None:
    """Every method reads them where they are not the usual four; left in 16 bit, nothing else is read."""
    four, eight, whole = (Setting(method="gw-awq", n_grid=7, bits=bits, scales="linear") for bits in (4, 8, 16))
    assert four.reads | {"bits"} == eight.reads
    assert (eight.scheme(torch.float16).bits, four.scheme(torch.float16).bits) == (8, 4)
    assert (four.label(), eight.label(), whole.label()) == ("gw-awq n_grid=7", "gw-awq n_grid=7 bits=8", "16 bit")
    assert eight.canonical() == eight
    assert whole.canonical() == Setting(bits=16)
    assert whole.is_unquantized
    assert not whole.scales_at_run_time
    assert Setting(method="awq-mixed", bits=16).kept_rows(100) == 0
    with pytest.raises(QuantizationError, match=r"16 bits are not among 2\.\.8"):
        whole.scheme(torch.float16)
    with pytest.raises(QuantizationError, match="bits 9 is none of 2, 3, 4, 5, 6, 7, 8, 16"):
        Setting(bits=9)


@pytest.mark.parametrize("method", METHODS)
def test_more_bits_lose_less(method: str, given_set: LinearSet) -> None:
    """By a factor of about sixteen for two bits."""
    losses = [
        sum(linear.loss for linear in quantize_set(given_set, Setting(method=method, group_size=12, bits=bits)))
        for bits in (3, 4, 6, 8)
    ]
    assert losses == sorted(losses, reverse=True)
    assert 4 < losses[1] / losses[2] < 64


# Relations between methods


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [0.25, 1024.0])
def test_constant_factor_on_error_weights_changes_nothing(
    given_set: LinearSet, monkeypatch: pytest.MonkeyPatch, method: str, factor: float
) -> None:
    """Multiplying a method's error weights by one number multiplies its losses and leaves all that it chose."""
    setting = Setting(method=method, group_size=12, n_grid=8)
    before = quantize_set(given_set, setting)
    monkeypatch.setattr(quant.layers, "error_weights", lambda *given: factor * error_weights(*given))
    for plain, scaled in zip(before, quantize_set(given_set, setting), strict=True):
        assert scaled.alpha == plain.alpha
        assert torch.equal(scaled.weight, plain.weight)
        assert (scaled.loss, scaled.nearest_loss) == (factor * plain.loss, factor * plain.nearest_loss)


@pytest.mark.parametrize("tau", [1e9, float("inf")])
def test_v2_without_praq_is_awq_with_soft_normalisation(
    given_set: LinearSet, monkeypatch: pytest.MonkeyPatch, tau: float
) -> None:
    """With beta 0 and no preference among outputs V2 is AWQ, but for how the salience is normalised."""
    soft = replace(METHODS["gw-awq"], name="soft-awq", normalisation="soft")
    monkeypatch.setitem(METHODS, "soft-awq", soft)
    common = {"group_size": 12, "n_grid": 8, "symmetric": False}
    v2 = quantize_set(given_set, Setting(method="gwh-praq-v2", beta=0, tau=tau, **common))
    for found, awq in zip(v2, quantize_set(given_set, Setting(method="soft-awq", **common)), strict=True):
        assert found.alpha == awq.alpha
        assert torch.equal(found.weight, awq.weight)
        assert found.loss == pytest.approx(awq.loss, rel=1e-6)


@pytest.mark.parametrize(("grouped", "per_row"), [("rtn", "rtn-channel"), ("gw-awq", "awq")])
def test_one_group_per_row_is_one_scale_per_row(given_set: LinearSet, grouped: str, per_row: str) -> None:
    """A method with one scale per row is its grouped form with groups as wide as the row."""
    wide = Setting(method=grouped, group_size=synthetic.INPUTS, n_grid=8)
    assert same(quantize_set(given_set, wide), quantize_set(given_set, Setting(method=per_row, n_grid=8)))


# Kept rows


@pytest.mark.parametrize("method", MIXED)
@pytest.mark.parametrize("symmetric", [True, False])
def test_keeping_no_rows_is_simple_int4(given_set: LinearSet, method: str, symmetric: bool) -> None:
    """A mixed method that keeps nothing is nearest rounding with one scale per row, to the last bit."""
    mixed = Setting(method=method, keep_ratio=0, symmetric=symmetric)
    simple = Setting(method="rtn-channel", symmetric=symmetric)
    assert same(quantize_set(given_set, mixed), quantize_set(given_set, simple))


@pytest.mark.parametrize("method", MIXED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_keeping_all_rows_is_full_precision(method: str, dtype: torch.dtype) -> None:
    """A mixed method that keeps everything leaves the weights as they are, to the last bit, and loses nothing."""
    given = synthetic.linear_set(synthetic.layers("gate-up", 0, dtype))
    for linear, found in zip(given.linears, quantize_set(given, Setting(method=method, keep_ratio=1)), strict=True):
        assert torch.equal(found.weight, linear.weight)
        assert found.weight.data_ptr() != linear.weight.data_ptr()
        assert found.loss == 0 < found.nearest_loss


@pytest.mark.parametrize("method", MIXED)
@pytest.mark.parametrize("keep_ratio", [0.2, 0.5, 0.8])
def test_kept_rows_are_whole_and_the_rest_is_simple_int4(given_set: LinearSet, method: str, keep_ratio: float) -> None:
    """As many rows as promised are untouched, all others are those of simple INT4, and the loss is that of the rest."""
    setting = Setting(method=method, keep_ratio=keep_ratio)
    simple = quantize_set(given_set, Setting(method="rtn-channel"))
    for linear, found, plain in zip(given_set.linears, quantize_set(given_set, setting), simple, strict=True):
        kept = (found.weight == linear.weight).all(1)
        assert int(kept.sum()) == setting.kept_rows(len(linear.weight))
        assert torch.equal(found.weight[~kept], plain.weight[~kept])
        assert found.nearest_loss == plain.loss
        assert 0 < found.loss < found.nearest_loss
        assert (found.scale, found.alpha) == (None, 0)


@pytest.mark.parametrize(
    ("keep_ratio", "outputs", "kept"),
    [(0.2, 7, 1), (0.2, 8, 2), (0.5, 5, 3), (0.5, 7, 4), (0.29, 100, 29), (0.05, 9, 0), (0.95, 9, 9), (1, 9, 9)],
)
def test_the_number_of_kept_rows(keep_ratio: float, outputs: int, kept: int) -> None:
    """The share of the rows is rounded to the nearest whole number, halves up."""
    assert Setting(method="awq-mixed", keep_ratio=keep_ratio).kept_rows(outputs) == kept
    assert Setting(method="awq", keep_ratio=keep_ratio).kept_rows(outputs) == 0


def test_mixed_methods_choose_differently() -> None:
    """By magnitude, by risk and by risk over spread other rows are kept, so comparing the methods means something."""
    common = {"beta": 0.5, "tau": 2.0, "n_grid": 2, "group_size": 12, "symmetric": True, "sharing": "linear"}
    risky = {"keep_ratio": 0.4, "tau_risk": 15.0, "variance_penalty": 2.0}
    chosen = [
        [set(reference.kept(layer, given, reference.Rules(method=method, **common, **risky))) for method in MIXED]
        for given in (synthetic.layers("gate-up", seed, torch.float32) for seed in range(6))
        for layer in given.layers
    ]
    assert any(magnitude != risk for magnitude, risk, _ in chosen)
    assert any(risk != steady for _, risk, steady in chosen)
