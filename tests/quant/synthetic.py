"""Small made-up Linears with correlated inputs and outlier channels, for the reference and for the package alike."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import silu

from quant.linears import HeadTie, LinearInput, LinearSet
from quant.statistics import InputStatistics, InputSums, OutputStatistics, OutputSums
from tests.quant import reference

Layout = Literal["attention", "tied", "gate-up", "down"]
INPUTS = 36
TIE = (2, 3, 6)
ROLES: dict[Layout, tuple[tuple[reference.Role, int], ...]] = {
    "attention": (("attention", 7), ("attention", 4), ("attention", 4)),
    "tied": (("attention", 7),),
    "gate-up": (("gate", 7), ("up", 7)),
    "down": (("down", 7),),
}
CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def per_input(per_group: Tensor, group_size: int, inputs: int) -> Tensor:
    """What groups have, `[O, G, 1]`, for each of their inputs, `[O, I]`."""
    return per_group.expand(-1, -1, group_size).flatten(1)[:, :inputs]


def activations(tokens: int, inputs: int, seed: int) -> Tensor:
    """Float32 rows `[tokens, inputs]` with correlated channels of unequal size, every eighth an outlier."""
    random = seeded(seed)
    mix = torch.randn(inputs, inputs, generator=random) / inputs**0.5
    rows = torch.randn(tokens, inputs, generator=random) @ mix + 0.2 * torch.randn(inputs, generator=random)
    rows *= torch.randn(inputs, generator=random).exp()
    rows[:, torch.randperm(inputs, generator=random)[: inputs // 8]] *= 10
    return rows


def layers(layout: Layout, seed: int, dtype: torch.dtype) -> reference.Layers:
    """Linears of a layout with weights and inputs of `dtype`."""
    random = seeded(seed + 1)
    linears = [
        reference.Layer(
            name=f"{role}_{number}",
            role=role,
            weight=(torch.randn(outputs, INPUTS, generator=random) / INPUTS**0.5).to(dtype),
            bias=(0.1 * torch.randn(outputs, generator=random)).to(dtype),
        )
        for number, (role, outputs) in enumerate(ROLES[layout])
    ]
    return reference.Layers(
        layers=tuple(linears),
        inputs=activations(48, INPUTS, seed).to(dtype),
        activation=reference.silu,
        tie=TIE if layout == "tied" else None,
    )


def input_statistics(rows: Tensor) -> InputStatistics:
    sums = InputSums(rows.shape[1], CPU)
    sums.add(rows)
    return sums.means()


def output_statistics(z: Tensor, structural: Tensor, in_mlp: bool) -> OutputStatistics:
    """Statistics of outputs `z` `[N, O]`, of which the block computes `structural` `[N, O]`."""
    sums = OutputSums(z.shape[1], CPU)
    sums.add(z, silu if in_mlp else None)
    return OutputStatistics(tokens=len(z), structural=structural.abs().mean(0), **sums.means())


def linear_set(given: reference.Layers) -> LinearSet:
    """The same Linears as the package wants them."""
    in_mlp = given.layers[0].role != "attention"
    outputs = {layer.role: given.inputs.float() @ layer.weight.float().T + layer.bias.float() for layer in given.layers}
    linears = []
    for layer in given.layers:
        z = given.inputs.float() @ layer.weight.float().T + layer.bias.float()
        if layer.role == "gate":
            structural = silu(z)
        elif layer.role == "up":
            structural = silu(outputs["gate"]) * z
        else:
            structural = z
        linears.append(
            LinearInput(name=layer.name, weight=layer.weight, outputs=output_statistics(z, structural, in_mlp))
        )
    tie = None
    if given.tie is not None:
        kv_heads, repeats, head_dim = given.tie
        tie = HeadTie(kv_heads=kv_heads, repeats=repeats, head_dim=head_dim)
    return LinearSet(
        linears=tuple(linears), kind="mlp" if in_mlp else "attention", inputs=input_statistics(given.inputs), tie=tie
    )
