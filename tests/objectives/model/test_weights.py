"""Fingerprints of weights: equal ones alone are equal."""

import pytest
import torch
from torch import nn

from objectives.model.weights import fingerprint


def modules() -> list[nn.Linear]:
    """Two Linears, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    made = [nn.Linear(6, 4, bias=bias).to(torch.bfloat16) for bias in (True, False)]
    for module in made:
        for parameter in module.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def test_equal_weights_have_equal_fingerprints_in_any_memory_layout() -> None:
    """Also where a module is named twice, as a fused one is for each of its roles."""
    transposed = modules()
    transposed[0].weight = nn.Parameter(transposed[0].weight.data.t().contiguous().t())
    first, second = modules()
    assert fingerprint(modules()) == fingerprint(transposed) == fingerprint([first, second, first])


@pytest.mark.parametrize("place", range(24))
def test_the_last_bit_of_any_weight_changes_the_fingerprint(place: int) -> None:
    """Whichever it is."""
    changed = modules()
    changed[1].weight.data.view(torch.int16).view(-1)[place] ^= 1
    assert fingerprint(changed) != fingerprint(modules())


def test_order_place_and_shape_count() -> None:
    """Exchanged modules, rows or columns, another shape of the same values, and other biases are other weights."""
    found = {fingerprint(modules()), fingerprint(modules()[::-1]), fingerprint([])}
    for dimension in (0, 1):
        rolled = modules()
        rolled[0].weight.data.copy_(rolled[0].weight.data.roll(1, dimension))
        found.add(fingerprint(rolled))
    reshaped = modules()
    reshaped[1].weight = nn.Parameter(reshaped[1].weight.data.view(6, 4))
    biased = modules()
    biased[0].bias.data[3] += 1
    assert len(found | {fingerprint(reshaped), fingerprint(biased)}) == 7


def test_random_changes_never_collide() -> None:
    """Thousands of matrices that differ in a few values from one another have as many fingerprints."""
    module = nn.Linear(16, 8, bias=False).to(torch.float16)
    generator, seen, made = torch.Generator().manual_seed(1), set(), set()
    for _ in range(2000):
        row, column = (int(torch.randint(size, (), generator=generator)) for size in (8, 16))
        module.weight.data[row, column] = torch.randn((), generator=generator)
        seen.add(fingerprint([module]))
        made.add(module.weight.detach().numpy().tobytes())
    assert len(seen) == len(made) > 1900
