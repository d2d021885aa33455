"""What is tuned, as one vector of relative changes: group scales, norm weights, biases.

Responsible for the way from that vector to the weights that are stored, rounded as they will be, and for the way back
of their gradients, straight through the rounding. May assume a model that holds these codes; whoever calls puts its
weights back. Shape letters: `O` outputs, `I` inputs, `G` groups, `N` elements, `P` all that is tuned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from objectives.errors import InputError
from objectives.model.loading import Model
from objectives.model.roles import Block, LinearRole
from objectives.refined import tunable_vectors
from objectives.refinement_record import PARTS
from quant.plan import Plan
from quant.scheme import IntWeight, Scheme, grouped, loaded, stored_scale


class Part(Protocol):
    """A part of what is tuned: one matrix's scales, or one vector."""

    @property
    def parameter(self) -> nn.Parameter:
        """Return what it changes in the model."""

    @property
    def size(self) -> int:
        """Return how many numbers it has."""

    def write(self, change: Tensor) -> None:
        """Put what is stored under these changes, float32 `[size]`, into the model."""

    def pulled_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the changes, float32 `[size]`, from that of the parameter, which holds `write`'s."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The scales of one Linear: `s exp(x)` of the `s` that its codes were rounded with, in the type they are stored in.

    Attributes:
        linear: Whose weight it is.
        codes: Of the weight, on its device, or on the CPU where the weight is in memory only while it is used.
        scheme: What its scales can be.
    """

    linear: LinearRole
    codes: IntWeight
    scheme: Scheme

    @property
    def parameter(self) -> nn.Parameter:
        """Return the weight."""
        return self.linear.parameter

    @property
    def size(self) -> int:
        """Return the number of groups of all rows."""
        return self.codes.scale.numel()

    def stored(self, change: Tensor) -> IntWeight:
        """Return what is stored under these changes, float32 `[O * G]`."""
        codes = self.codes.to(change.device)
        scale = codes.scale.float() * change.view_as(codes.scale).exp()
        return replace(codes, scale=stored_scale(scale, self.scheme).to(self.scheme.scale_dtype))

    def write(self, change: Tensor) -> None:
        """Put `(codes - zeros) * scales` into the Linear."""
        self.linear.set_weight(loaded(self.stored(change)))

    def pulled_back(self, gradient: Tensor) -> Tensor:
        """Return `sum_group dL/dW W`: a weight is proportional to its scale."""
        product = self.linear.part_of(gradient).float() * self.linear.weight().float()
        return grouped(product, replace(self.scheme, group_size=self.codes.group_size)).sum(-1).flatten()


@dataclass(frozen=True, kw_only=True)
class Vector:
    """The weight of a norm, or a bias.

    Attributes:
        name: Of the parameter.
        module: Whose it is.
        start: float32 `[N]`, what it was.
        unit: What a change of 1 adds to it, float32 `[N]`: of a norm its gain, of a bias its mean size.
        dtype: The type it is stored in.
    """

    name: str
    module: nn.Module
    start: Tensor
    unit: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, module: nn.Module, offset: float | None, dtype: torch.dtype) -> "Vector":
        """Return a parameter of a module as what can be tuned; `offset` is that of a norm, None of a bias."""
        start = module.get_parameter(_leaf(name)).detach().float().clone()
        unit = start.abs().mean().expand_as(start) if offset is None else offset + start
        return cls(name=name, module=module, start=start, unit=unit, dtype=dtype)

    @property
    def parameter(self) -> nn.Parameter:
        """Return it, `[N]`."""
        return self.module.get_parameter(_leaf(self.name))

    @property
    def size(self) -> int:
        """Return the number of its elements."""
        return self.start.numel()

    def stored(self, change: Tensor) -> Tensor:
        """Return what is stored under these changes, float32 `[N]`."""
        return (self.start + self.unit * change).to(self.dtype)

    def write(self, change: Tensor) -> None:
        """Put it into the model."""
        self.parameter.copy_(self.stored(change))

    def pulled_back(self, gradient: Tensor) -> Tensor:
        """Return `dL/dv` times the unit."""
        return gradient.float() * self.unit


def require_tunable(model: Model, parts: Sequence[str]) -> None:
    """Refuse a model that has nothing of what is to be tuned.

    Raises:
        InputError: With what else there is.
    """
    if "scales" not in parts and not _vectors(model, parts):
        raise InputError(
            f"model {model.name} has no {' or '.join(parts)} to tune; add scales to --refine-parts {','.join(parts)}"
        )


def _vectors(model: Model, parts: Sequence[str]) -> dict[str, float | None]:
    """Return the offsets of the norms that are tuned, by name, and None for biases that are."""
    kinds = (
        (name, "biases" if offset is None else "norms", offset) for name, _, offset in tunable_vectors(model.module)
    )
    return {name: offset for name, kind, offset in kinds if kind in parts}


class Tuned:
    """All that is tuned of a model: `changes`, float32 `[P]` on its device, zero where nothing is changed yet."""

    def __init__(
        self,
        model: Model,
        blocks: Sequence[Block],
        codes: Mapping[str, IntWeight],
        plan: Plan,
        parts: Sequence[str] = PARTS,
    ) -> None:
        """Begin with nothing changed.

        Args:
            model: Holds the codes.
            blocks: All of its blocks, in order.
            codes: By name of the Linear.
            plan: What they were rounded by.
            parts: What is tuned, of `PARTS`; the model has some of it.
        """
        self._weights, self._blocks = model.weights, [block.name for block in blocks]
        offsets = _vectors(model, parts)
        of_block = {name: home for name in offsets for home in self._blocks if name.startswith(f"{home}.")}
        device = torch.device("cpu") if self._weights.streamed else model.device
        scales: list[tuple[str | None, Part]] = []
        with_scales = "scales" in parts
        vectors: dict[str, Part] = {}

        def begin(names: Iterable[str]) -> None:
            for name in names:
                owner = model.module.get_submodule(name.rpartition(".")[0])
                vectors[name] = Vector.of(name, owner, offsets[name], model.stored_dtype)

        for block in blocks:
            with self._weights.at_hand(block.name):
                for linear in block.linears:
                    if linear.name in codes and with_scales:
                        scheme = plan.setting_for(linear.name).scheme(model.stored_dtype)
                        part = Scales(linear=linear, codes=_own(codes[linear.name], device), scheme=scheme)
                        scales.append((block.name, part))
                begin(name for name, home in of_block.items() if home == block.name)
        begin(name for name in offsets if name not in of_block)
        # Each with the block that it is in, the same order wherever the weights are.
        homes = [*scales, *((of_block.get(name), vectors[name]) for name in offsets)]
        self._homes, self._parts = [home for home, _ in homes], [part for _, part in homes]
        self._sizes = [part.size for part in self._parts]
        self.changes = torch.zeros(sum(self._sizes), device=model.device)

    def slices(self, changes: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Yield each part with its share of a vector `[P]`."""
        return zip(self._parts, torch.split(changes, self._sizes), strict=True)

    def _of(self, home: str | None, changes: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Yield the parts that are in a block, or in none, with their shares."""
        return (share for where, share in zip(self._homes, self.slices(changes), strict=True) if where == home)

    @torch.no_grad()
    def write(self, changes: Tensor) -> None:
        """Put what is stored under these changes, `[P]`, into the model."""
        for home in (None, *self._blocks):
            with nullcontext() if home is None else self._weights.changing(home):
                for part, own in self._of(home, changes):
                    part.write(own)

    @torch.no_grad()
    def stored(self, changes: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is stored under these changes, on the CPU: scales by Linear, vectors by parameter."""
        scales: dict[str, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        for part, own in self.slices(changes):
            if isinstance(part, Scales):
                scales[part.linear.name] = part.stored(own).scale.cpu()
            elif isinstance(part, Vector):
                vectors[part.name] = part.stored(own).cpu()
        return scales, vectors

    @contextmanager
    def pulling_back(self, into: Tensor, block: str | None = None) -> Iterator[None]:
        """Add the gradients of the changes to `into` `[P]` whenever a backward pass reaches their parameters.

        No gradient of a whole weight outlives its block. Of weights that are in memory only while they are used those
        of a block are waited for alone, while it is at hand (`block`); without one all others are.
        """
        waited = self._of(block, into) if self._weights.streamed else self.slices(into)
        by_parameter: dict[nn.Parameter, list[tuple[Part, Tensor]]] = {}
        for part, own in waited:
            by_parameter.setdefault(part.parameter, []).append((part, own))
        handles = [
            parameter.requires_grad_(True).register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                _pull_back(own_parts)
            )
            for parameter, own_parts in by_parameter.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in by_parameter:
                parameter.requires_grad_(False)
                parameter.grad = None


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _pull_back(parts: Sequence[tuple[Part, Tensor]]) -> Callable[[Tensor], None]:
    @torch.no_grad()
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        for part, own in parts:
            own.add_(part.pulled_back(parameter.grad))
        parameter.grad = None

    return hook


def _own(weight: IntWeight, device: torch.device) -> IntWeight:
    """Return codes on a device, as tensors of their own: those of inference mode cannot take part in anything else."""
    zero = None if weight.zero is None else weight.zero.clone()
    return replace(weight, codes=weight.codes.clone(), scale=weight.scale.clone(), zero=zero).to(device)
