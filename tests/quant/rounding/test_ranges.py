"""Ranges that are searched lose less where it matters; those that are not are the scheme's own."""

import pytest
import torch

from quant import matmul
from quant.rounding import ranges as module
from quant.rounding.ranges import SHARES, find_ranges
from quant.scheme import Ranges, Scheme, dequantize, group_ranges, grouped, quantize
from tests.quant.rounding.test_gptq import INPUTS, SCHEMES, scaled_inputs
from tests.quant.synthetic import activations, seeded

SEARCHES = ("diagonal", "block")


def weight() -> torch.Tensor:
    """Heavy tails, so that most groups have a weight that is better cut off."""
    normal = torch.randn(12, INPUTS, generator=seeded(0))
    return normal * normal.abs().pow(1.5)


def group_losses(ranges: Ranges, scheme: Scheme, gram: torch.Tensor, search: str) -> torch.Tensor:
    """Loss of nearest rounding by its definition, `[O, G]`."""
    delta = (dequantize(quantize(weight(), scheme, ranges)) - weight()).double()
    size = scheme.group_size or INPUTS
    losses = []
    for start in range(0, INPUTS, size):
        part, errors = gram[start : start + size, start : start + size].double(), delta[:, start : start + size]
        curvature = part.diagonal().diag() if search == "diagonal" else part
        losses.append(((errors @ curvature) * errors).sum(1))
    return torch.stack(losses, dim=1)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_group_loses_more(scheme: Scheme, search: str) -> None:
    """The range that holds every weight is a candidate; some groups lose less."""
    inputs = scaled_inputs(activations(400, INPUTS, 1))
    whole = group_losses(group_ranges(grouped(weight(), scheme), scheme), scheme, inputs.gram, search)
    found = group_losses(find_ranges(weight(), scheme, inputs, search), scheme, inputs.gram, search)
    assert (found <= whole * (1 + 1e-5)).all()
    assert found.sum() < 0.95 * whole.sum()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_least_loss_is_found(search: str, symmetric: bool) -> None:
    """Of all shares, and of the zero points beside the exact one, by trying each on the whole matrix."""
    inputs, scheme = scaled_inputs(activations(400, INPUTS, 1)), Scheme(group_size=16, symmetric=symmetric)
    groups = grouped(weight(), scheme)
    whole = group_ranges(groups, scheme)
    scales = [(whole.scale * share).to(scheme.scale_dtype).float() for share in SHARES]
    if symmetric:
        candidates = [Ranges(scale=scale, zero=None) for scale in scales]
    else:
        exact = -groups.amin(-1, keepdim=True).clamp(max=0) / whole.scale
        zeros = [torch.clamp(zero, 0, 15) for zero in (exact.floor(), exact.ceil())]
        candidates = [Ranges(scale=scale, zero=zero) for scale in scales for zero in zeros]
    least = torch.stack([group_losses(candidate, scheme, inputs.gram, search) for candidate in candidates]).amin(0)
    found = group_losses(find_ranges(weight(), scheme, inputs, search), scheme, inputs.gram, search)
    torch.testing.assert_close(found, least, rtol=1e-4, atol=0)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_one_candidate_is_no_search(scheme: Scheme, search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the whole range alone everything is as in the scheme; on an asymmetric one zero points may still move."""
    monkeypatch.setattr(module, "SHARES", (1.0,))
    inputs = scaled_inputs(activations(400, INPUTS, 1))
    found = find_ranges(weight(), scheme, inputs, search)
    assert torch.equal(found.scale, group_ranges(grouped(weight(), scheme), scheme).scale)
    if scheme.symmetric:
        assert torch.equal(quantize(weight(), scheme, found).codes, quantize(weight(), scheme).codes)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_without_a_search_ranges_are_the_scheme_s(scheme: Scheme) -> None:
    """They hold every weight."""
    found = find_ranges(weight(), scheme, scaled_inputs(activations(400, INPUTS, 1)), "none")
    assert torch.equal(quantize(weight(), scheme, found).codes, quantize(weight(), scheme).codes)


@pytest.mark.parametrize("search", SEARCHES)
def test_pieces_change_nothing(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a matter of speed."""
    inputs, scheme = scaled_inputs(activations(400, INPUTS, 1)), SCHEMES[3]
    usual = find_ranges(weight(), scheme, inputs, search)
    monkeypatch.setattr(matmul, "CPU_PIECE", 1)
    other = find_ranges(weight(), scheme, inputs, search)
    assert torch.equal(quantize(weight(), scheme, usual).codes, quantize(weight(), scheme, other).codes)


@pytest.mark.parametrize("search", SEARCHES)
def test_zeros_and_inputs_that_never_come_are_fine(search: str) -> None:
    """Nothing is divided by nothing."""
    inputs = scaled_inputs(torch.zeros(4, INPUTS))
    for matrix in (weight(), torch.zeros(3, INPUTS)):
        found = find_ranges(matrix, SCHEMES[3], inputs, search)
        assert dequantize(quantize(matrix, SCHEMES[3], found)).isfinite().all()
