"""Corrected weights come nearest to the outputs that the Linear had, and stay as they are where nothing changed."""

import numpy as np
import pytest
import torch

from quant.propagation import corrected

OUTPUTS, INPUTS, TOKENS = 5, 12, 200


def drawn(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight `[O, I]`, exact inputs and changed ones `[N, I]`."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
    exact = torch.randn(TOKENS, INPUTS, generator=generator) @ torch.randn(INPUTS, INPUTS, generator=generator)
    return weight, scale * exact, scale * (exact + 0.3 * torch.randn(TOKENS, INPUTS, generator=generator))


def statistics(exact: torch.Tensor, changed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return changed.T @ changed / len(changed), (exact - changed).T @ changed / len(changed)


def lost(weight: torch.Tensor, other: torch.Tensor, exact: torch.Tensor, changed: torch.Tensor) -> float:
    return float((exact @ weight.T - changed @ other.T).square().sum())


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_without_damping_it_is_the_least_squares_solution(scale: float) -> None:
    """Of `W x = W' x~` over all tokens, whatever the size of the inputs is."""
    weight, exact, changed = drawn(scale)
    solved, *_ = np.linalg.lstsq(changed.double().numpy(), (exact.double() @ weight.double().T).numpy(), rcond=None)
    torch.testing.assert_close(
        corrected(weight, *statistics(exact, changed), 1e-9), torch.tensor(solved.T).float(), rtol=1e-3, atol=1e-3
    )


def test_damping_draws_it_towards_the_weight() -> None:
    """More of it corrects less; any of these is nearer to the outputs than the weight itself."""
    weight, exact, changed = drawn()
    by_damping = [corrected(weight, *statistics(exact, changed), damping) for damping in (0.01, 0.1, 1.0)]
    moved = [float((other - weight).norm()) for other in by_damping]
    assert moved == sorted(moved, reverse=True)
    losses = [lost(weight, other, exact, changed) for other in (*by_damping, weight)]
    assert losses == sorted(losses)


def test_nothing_changed_changes_nothing() -> None:
    """Equal inputs, dead ones and a matrix of one token leave the weight as it is, or finite."""
    weight, exact, changed = drawn()
    assert torch.equal(corrected(weight, *statistics(exact, exact), 0.05), weight)
    dead = torch.zeros(INPUTS, INPUTS)
    assert torch.equal(corrected(weight, dead, dead, 0.05), weight)
    assert corrected(weight, *statistics(exact[:1], changed[:1]), 1e-6).isfinite().all()
