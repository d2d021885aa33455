"""Experts: find them in a block, take those apart whose matrices are parts of a few tensors, compute what one reads.

Responsible for the fused experts of transformers 5 (`gate_up_proj` and `down_proj` of three dimensions), whichever way
round a matrix stands and its rows are arranged, and for lists of experts with Linears of their own. What it guesses of
fused ones is run against the module itself, and those that compute something else are none that it knows. May assume
a module in evaluation mode. Shape letters: `N` tokens, `H` hidden neurons, `I` inputs.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.conv import _ConvNd

from objectives.model.layouts import UNUSABLE, Role, Rows, gate_up_arrangements
from objectives.model.roles import Expert, ExpertMatrix, Experts, FusedExperts, InputSite, LinearRole

GATE_UP, DOWN = "gate_up_proj", "down_proj"
GATED: frozenset[Role] = frozenset({"gate", "up", "down"})
SEED, TOKENS = 1, 4
# Of what experts put out in float32.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Traced:
    """What an expert computes of `N` tokens: the outputs of its three Linears, and what `down` reads, `[N, H]`."""

    gate: Tensor
    up: Tensor
    hidden: Tensor
    down: Tensor


def find_experts(name: str, layer: nn.Module) -> Iterator[FusedExperts]:
    """Yield the fused experts of a block, but for those that compute something else than is known.

    Args:
        name: The block's.
        layer: The block, or a copy of it.
    """
    for path, module in layer.named_modules():
        shapes = [tuple(parameter.shape) for parameter in (getattr(module, GATE_UP, None), getattr(module, DOWN, None))
                  if isinstance(parameter, nn.Parameter) and parameter.dim() == 3]  # fmt: skip
        # Modules that follow transformers' common interface say how to combine gate and up.
        if len(shapes) == 2 and hasattr(module, "_apply_gate"):
            experts = _taken_apart(f"{name}.{path}", module)
            if experts is not None and _computes_the_same(experts):
                yield experts


def listed_experts(name: str, layer: nn.Module, linears: Sequence[LinearRole]) -> Iterator[Experts]:
    """Yield the experts of a block that are modules of their own, as code that comes with a model may have them.

    Args:
        name: The block's.
        layer: The block, or a copy of it.
        linears: Of the block.
    """
    by_owner: dict[str, dict[Role, LinearRole]] = {}
    for own in linears:
        by_owner.setdefault(own.owner, {})[own.role] = own
    for path, module in layer.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or len({type(child) for child in module}) > 1:
            continue
        held = [by_owner.get(f"{name}.{path}.{number}", {}) for number in range(len(module))]
        counts = [sum(isinstance(part, nn.Linear) for part in child.modules()) for child in module]
        if all(set(roles) == GATED for roles in held) and set(counts) == {len(GATED)}:
            experts = [Expert(gate=roles["gate"], up=roles["up"], down=roles["down"]) for roles in held]
            yield Experts(name=f"{name}.{path}", experts=tuple(experts))


def unknown_experts(name: str, layer: nn.Module, covered: Set[int]) -> str | None:
    """Say which experts of a block cannot be quantized, and why; None where there are none.

    Args:
        name: The block's.
        layer: The block.
        covered: The ids of parameters that can be.
    """
    for path, module in layer.named_modules():
        own = [key for key, parameter in module.named_parameters(recurse=False) if _is_stacked(parameter)]
        if any(id(module.get_parameter(key)) not in covered for key in own) and not isinstance(module, _ConvNd):
            return (
                f"{name}.{path} ({type(module).__name__}: {', '.join(own)}) has experts that compute something else "
                f"than is known, {GATE_UP} and {DOWN} with an activation between them"
            )
        if isinstance(module, nn.ModuleList) and len(module) > 1 and all(_is_mlp(child, covered) for child in module):
            return (
                f"{name}.{path} is a list of {len(module)} experts, and of such lists only those are known in which "
                "every expert has gate_proj, up_proj and down_proj, and no other Linear; where transformers has this "
                "family itself, leave out --trust-remote-code"
            )
    return None


def _is_stacked(parameter: Tensor) -> bool:
    return parameter.dim() == 3 and min(parameter.shape) > 1


def _is_mlp(module: nn.Module, covered: Set[int]) -> bool:
    """Return whether a module has Linears, more than one, of which none can be quantized."""
    weights = [id(child.weight) for child in module.modules() if isinstance(child, nn.Linear)]
    return len(weights) > 1 and covered.isdisjoint(weights)


def expert_sites(experts: Experts) -> tuple[list[InputSite], list[InputSite]]:
    """Return what gates and ups read, and what downs read, expert by expert."""
    firsts = [_site(experts, number, (expert.gate, expert.up)) for number, expert in enumerate(experts.experts)]
    seconds = [_site(experts, number, (expert.down,)) for number, expert in enumerate(experts.experts)]
    return firsts, seconds


def trace(experts: FusedExperts, number: int, x: Tensor) -> Traced:
    """Compute what one expert makes of the tokens `x` `[N, I]`, in the type of its weights."""
    expert = experts.experts[number]
    assert expert.gate.expert is not None
    gate_up = linear(x, expert.gate.expert.of(expert.gate.parameter), expert.gate.bias)
    hidden = cast(Any, experts.module)._apply_gate(gate_up)
    return Traced(
        gate=gate_up[:, expert.gate.rows],
        up=gate_up[:, expert.up.rows],
        hidden=hidden,
        down=linear(hidden, expert.down.weight(), expert.down.bias),
    )


def routed(numbers: Tensor, count: int) -> list[Tensor]:
    """Return which tokens go to each expert, int64, in their order.

    Args:
        numbers: Of the experts of each token, `[N, k]`; `count` and above are none.
        count: How many experts there are.
    """
    order = numbers.flatten().argsort(stable=True)
    # One transfer for all experts: a comparison for each would make a GPU wait for each.
    sizes = numbers.flatten().clamp(max=count).bincount(minlength=count + 1).tolist()
    return list(torch.split(order // numbers.shape[1], sizes)[:count])


def site_name(experts: Experts, number: int, *linears: LinearRole) -> str:
    """Return what the site is called that these Linears of one expert are."""
    return f"{experts.name}.{number}:{'+'.join(linear.role for linear in linears)}"


def _site(experts: Experts, number: int, linears: tuple[LinearRole, ...]) -> InputSite:
    return InputSite(
        name=site_name(experts, number, *linears),
        kind="mlp",
        linears=linears,
        inputs=linears[0].shape[1],
        producer=None,
        pool=f"{experts.name}:{'+'.join(linear.role for linear in linears)}",
    )


def _taken_apart(name: str, module: nn.Module) -> FusedExperts | None:
    """Return the experts of a module as their shapes have them; None where those are contradictory."""
    first, second = getattr(module, GATE_UP), getattr(module, DOWN)
    declared = getattr(module, "is_transposed", None)
    for transposed in (False, True) if declared is None else (bool(declared),):
        outputs, inputs = first.shape[:0:-1] if transposed else first.shape[1:]
        back, hidden = second.shape[:0:-1] if transposed else second.shape[1:]
        if len(first) == len(second) and back == inputs and outputs == 2 * hidden:
            rows = _gate_and_up(module, outputs)
            if rows is not None:
                return _experts(name, module, transposed, rows)
    return None


def _gate_and_up(module: nn.Module, outputs: int) -> Rows | None:
    """Return which rows are the gate's and which up's: what `down` reads is affine in those of up alone."""
    generator = torch.Generator().manual_seed(SEED)
    gate_up = torch.rand(TOKENS, outputs, generator=generator).sub(0.5)
    combine = cast(Any, module)._apply_gate
    for rows in gate_up_arrangements(outputs):
        changed = [gate_up.clone() for _ in range(3)]
        for values, factor in zip(changed, (-1.0, 0.0, 1.0), strict=True):
            values[:, rows["up"]] *= factor
        with torch.no_grad():
            below, middle, above = (combine(values) for values in changed)
        if torch.allclose(below + above, 2 * middle, atol=1e-5) and not torch.allclose(above, middle):
            return rows
    return None


def _experts(name: str, module: nn.Module, transposed: bool, rows: Rows) -> FusedExperts:
    count, device = len(cast(Tensor, getattr(module, GATE_UP))), cast(Tensor, getattr(module, GATE_UP)).device
    own = {role: part.to(device) for role, part in rows.items()}

    def matrix(number: int, weight: str) -> ExpertMatrix:
        bias = f"{weight}_bias"
        present = isinstance(getattr(module, bias, None), nn.Parameter)
        return ExpertMatrix(expert=number, weight=weight, bias=bias if present else None, transposed=transposed)

    def role(number: int, own_role: Any, leaf: str, weight: str) -> LinearRole:
        return LinearRole(
            name=f"{name}.{number}.{leaf}",
            role=own_role,
            module=module,
            rows=own.get(own_role),
            expert=matrix(number, weight),
        )

    experts = [
        Expert(
            gate=role(number, "gate", "gate_proj", GATE_UP),
            up=role(number, "up", "up_proj", GATE_UP),
            down=role(number, "down", "down_proj", DOWN),
        )
        for number in range(count)
    ]
    return FusedExperts(name=name, module=module, experts=tuple(experts))


def _computes_the_same(experts: FusedExperts) -> bool:
    """Return whether the module puts out what its experts, as they were taken apart, make of random tokens.

    Experts without data are taken as they are named.
    """
    weight = experts.experts[0].gate.weight()
    if weight.is_meta:
        return True
    x = torch.randn(TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(SEED)).to(weight)
    last = len(experts.experts) - 1
    with torch.no_grad():
        for number in {0, last}:
            chosen = torch.full((TOKENS, 1), number, device=weight.device)
            try:
                put_out = experts.module(x, chosen, torch.ones_like(chosen, dtype=weight.dtype))
            except UNUSABLE:
                return False
            expected = trace(experts, number, x).down
            if not isinstance(put_out, Tensor) or put_out.shape != expected.shape:
                return False
            if expected.isfinite().all() and not _close(put_out, expected):
                return False
    return True


def _close(put_out: Tensor, expected: Tensor) -> bool:
    rounding = TOLERANCE if expected.dtype == torch.float32 else 2.0**-5
    return bool((put_out - expected).abs().max() <= rounding * expected.abs().max())
