"""Layer roles: which Linears a decoder block has, what each is for, which share an input, and what folds.

Responsible for these as data, and for saying what of a model is left out. May assume that `finding` made them. Shape
letters: `O` outputs, `I` inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from objectives.model.layouts import STRUCTURE, Role, Structure
from quant.layers import HeadTie
from quant.scaling.salience import Kind

LISTED = 3


@dataclass(frozen=True, kw_only=True)
class LinearRole:
    """One Linear, or one slice of a fused one.

    Attributes:
        name: Qualified module name; slices append their role (`...qkv_proj:q`).
        role: What it is for.
        module: The Linear that holds its weight.
        rows: Output rows of the module that are this slice's, int64; None for all.
    """

    name: str
    role: Role
    module: nn.Linear
    rows: Tensor | None = None

    @property
    def structure(self) -> Structure:
        """Return what the block computes from its output."""
        return STRUCTURE.get(self.role, "plain")

    @property
    def shape(self) -> tuple[int, int]:
        """Return `(O, I)`, without the copy that `weight` makes of a slice."""
        outputs = self.module.out_features if self.rows is None else len(self.rows)
        return outputs, self.module.in_features

    def weight(self) -> Tensor:
        """Return its weight `[O, I]`; a view for a whole Linear, a copy for a slice."""
        return self.module.weight if self.rows is None else self.module.weight[self.rows]

    def set_weight(self, weight: Tensor) -> None:
        """Put `weight` `[O, I]` in its place."""
        if self.rows is None:
            self.module.weight.copy_(weight)
        else:
            self.module.weight[self.rows] = weight.to(self.module.weight.dtype)


@dataclass(frozen=True, kw_only=True)
class NormRole:
    """A norm that feeds one site and nothing else: it outputs `(offset + weight) n`, plus a bias where it has one."""

    name: str
    module: nn.Module
    offset: float


@dataclass(frozen=True, kw_only=True)
class InputSite:
    """Linears with a common input.

    Attributes:
        name: Unique in the model: the block and the roles.
        kind: Attention or MLP.
        linears: In the model's order.
        inputs: Width of the common input.
        producer: What a scale of the input folds into: a norm, or the rows of another Linear of the block; None where
            nothing can take it.
        tie: Inputs that must share a scale for that.
    """

    name: str
    kind: Kind
    linears: tuple[LinearRole, ...]
    inputs: int
    producer: NormRole | LinearRole | None
    tie: HeadTie | None = None

    @property
    def folds(self) -> bool:
        """Return whether a scale of the input can be folded into what produces it."""
        return self.producer is not None


@dataclass(frozen=True, kw_only=True)
class Block:
    """One decoder block.

    Attributes:
        index: Its place in the model.
        name: Qualified module name.
        sites: Its Linears by common input.
        activation: The MLP's activation function.
        uncovered: Weights of two or more dimensions that are not quantized: name and number of elements.
    """

    index: int
    name: str
    sites: tuple[InputSite, ...]
    activation: Callable[[Tensor], Tensor]
    uncovered: Mapping[str, int]

    @property
    def linears(self) -> Iterator[LinearRole]:
        """Return all its Linears and slices, site by site."""
        return (linear for site in self.sites for linear in site.linears)


def kept_in_16_bit(blocks: Sequence[Block]) -> str | None:
    """Return one line on the block weights that no setting quantizes; None where there are none."""
    uncovered = {name: size for block in blocks for name, size in block.uncovered.items()}
    if not uncovered:
        return None
    return (
        f"{uncovered_share(blocks):.1%} of the block weights stay in 16 bit (largest: {largest_uncovered(uncovered)})"
    )


def quantized_part(module: nn.Module, blocks: Sequence[Block]) -> str | None:
    """Say which part of a model of several is quantized; None where the decoder blocks are all there is beside text.

    A model with an image or audio encoder has matrices outside the decoder that are neither embeddings nor head.
    """
    if not blocks:
        return None
    prefix = blocks[0].name.rpartition(".")[0]
    kept = {id(parameter) for parameter in module.get_submodule(prefix).parameters()}
    for name in ("get_input_embeddings", "get_output_embeddings"):
        embedding = getattr(module, name)()
        kept |= set() if embedding is None else {id(parameter) for parameter in embedding.parameters()}
    root = prefix.rpartition(".")[0]
    others = {
        name: parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in kept and not name.startswith(f"{root}.")
    }
    if not others:
        return None
    return (
        f"the decoder blocks ({prefix}) are quantized; the other parts of the model stay as they are (largest: "
        f"{largest_uncovered(others)})"
    )


def unscaled_inputs(blocks: Sequence[Block]) -> str | None:
    """Name the inputs whose scale nothing can take, so that `foldable` leaves them alone; None without."""
    sites = [site for block in blocks for site in block.sites]
    fixed = [site for site in sites if not site.folds]
    if not fixed:
        return None
    kinds = dict.fromkeys("+".join(linear.role for linear in site.linears) for site in fixed)
    return (
        f"foldable scales are 1 for {len(fixed)} of {len(sites)} inputs, that of {', '.join(kinds)}: what produces "
        "them cannot take a scale"
    )


def uncovered_share(blocks: Sequence[Block]) -> float:
    """Return the share of the block weights that is not quantized."""
    uncovered = sum(size for block in blocks for size in block.uncovered.values())
    covered = sum(prod(linear.shape) for block in blocks for linear in block.linears)
    return uncovered / max(1, covered + uncovered)


def largest_uncovered(uncovered: Mapping[str, int]) -> str:
    """Name the largest of the weights that are not quantized, with their sizes."""
    largest = sorted(uncovered.items(), key=lambda item: -item[1])[:LISTED]
    return ", ".join(f"{name} with {size} weights" for name, size in largest)
