"""Layer roles: which Linears a decoder block has, what each is for, which share an input, and what folds.

Responsible for these as data, and for saying what of a model is left out. May assume that `finding` made them. Shape
letters: `O` outputs, `I` inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

from torch import Tensor, nn

from objectives.model.layouts import STRUCTURE, Role, Structure
from quant.linears import HeadTie
from quant.scaling.salience import Kind

LISTED = 3


@dataclass(frozen=True, kw_only=True)
class ExpertMatrix:
    """Where a module of fused experts has a matrix of one of them.

    Attributes:
        expert: Its number.
        weight: Name of the parameter, `[experts, outputs, inputs]`.
        bias: Name of the biases, `[experts, outputs]`; None without.
        transposed: Whether the parameter is `[experts, inputs, outputs]`.
    """

    expert: int
    weight: str
    bias: str | None = None
    transposed: bool = False

    def of(self, stacked: Tensor) -> Tensor:
        """View its part, `[outputs, inputs]`, of something that is laid out as the parameter is."""
        return stacked[self.expert].T if self.transposed else stacked[self.expert]

    def bias_of(self, module: nn.Module) -> Tensor | None:
        """View its bias in `module`, `[outputs]`; None without."""
        return None if self.bias is None else cast(Tensor, getattr(module, self.bias))[self.expert]


@dataclass(frozen=True, kw_only=True)
class LinearRole:
    """One Linear, one slice of a fused one, or one matrix of one of many experts.

    Attributes:
        name: Qualified module name; slices append their role (`...qkv_proj:q`), experts have their number in it
            (`...experts.3.gate_proj`), also where their matrices are parts of one tensor.
        role: What it is for.
        module: The Linear, or the experts, that holds its weight.
        rows: Output rows of the matrix that are this slice's, int64; None for all.
        expert: Which matrix of the module; None for a Linear's own.
    """

    name: str
    role: Role
    module: nn.Module
    rows: Tensor | None = None
    expert: ExpertMatrix | None = None

    @property
    def structure(self) -> Structure:
        """Return what the block computes from its output."""
        return STRUCTURE.get(self.role, "plain")

    @property
    def owner(self) -> str:
        """Return what it is a part of: the qualified name of an attention, of an MLP, of one expert."""
        return self.name.partition(":")[0].rpartition(".")[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Return `(O, I)`, without the copy that `weight` makes of a slice."""
        outputs, inputs = self._matrix().shape
        return outputs if self.rows is None else len(self.rows), inputs

    @property
    def bias(self) -> Tensor | None:
        """Return the bias of all rows of its matrix, a view; None without."""
        if self.expert is not None:
            return self.expert.bias_of(self.module)
        return cast("Tensor | None", self.module.bias)

    def weight(self) -> Tensor:
        """Return its weight `[O, I]`; a view for a whole matrix, a copy for a slice."""
        return self.part_of(self.parameter)

    def set_weight(self, weight: Tensor) -> None:
        """Put `weight` `[O, I]` in its place."""
        matrix = self._matrix()
        if self.rows is None:
            matrix.copy_(weight)
        else:
            matrix[self.rows] = weight.to(matrix.dtype)

    @property
    def parameter(self) -> nn.Parameter:
        """Return the parameter that holds its weight, and maybe that of others."""
        return self.module.get_parameter("weight" if self.expert is None else self.expert.weight)

    def part_of(self, whole: Tensor) -> Tensor:
        """Return what of a tensor that is laid out as the parameter is belongs to this Linear, `[O, I]`."""
        matrix = whole if self.expert is None else self.expert.of(whole)
        return matrix if self.rows is None else matrix[self.rows]

    def _matrix(self) -> Tensor:
        return self.parameter if self.expert is None else self.expert.of(self.parameter)


@dataclass(frozen=True, kw_only=True)
class NormRole:
    """A norm that feeds sites and readers and nothing else: it outputs `(offset + weight) n`, plus a bias.

    Attributes:
        name: Qualified module name.
        module: Has the weight.
        offset: What is added to the weight.
        readers: Modules that read its output and stay in 16 bit, as routers do; each multiplies with its `weight`,
            `[..., I]`.
    """

    name: str
    module: nn.Module
    offset: float
    readers: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, kw_only=True)
class InputSite:
    """Linears with a common input.

    Attributes:
        name: Unique in the model: the block, or the expert, and the roles.
        kind: Attention or MLP.
        linears: In the model's order.
        inputs: Width of the common input.
        producer: What a scale of the input folds into: a norm, or the rows of another Linear of the block; None where
            nothing can take it.
        tie: Inputs that must share a scale for that.
        pool: What it has in common with the same Linears of the other experts, whose tokens are other ones; None for
            Linears that read every token.
    """

    name: str
    kind: Kind
    linears: tuple[LinearRole, ...]
    inputs: int
    producer: NormRole | LinearRole | None
    tie: HeadTie | None = None
    pool: str | None = None

    @property
    def folds(self) -> bool:
        """Return whether a scale of the input can be folded into what produces it."""
        return self.producer is not None


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One of many MLPs: `down` reads what its activation makes of `gate` times `up`, or something like it."""

    gate: LinearRole
    up: LinearRole
    down: LinearRole

    @property
    def name(self) -> str:
        """Return its name, with its number."""
        return self.down.owner


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts that one module holds, each a module of its own unless they are fused.

    Attributes:
        name: Qualified name of that module.
        experts: By number.
    """

    name: str
    experts: tuple[Expert, ...]


@dataclass(frozen=True, kw_only=True)
class FusedExperts(Experts):
    """Experts whose matrices are parts of a few tensors of one module.

    Attributes:
        module: Is called with tokens `[N, I]`, the numbers of each token's experts `[N, k]`, and their weights.
    """

    module: nn.Module


def scale_groups(sites: Sequence[InputSite]) -> list[tuple[InputSite, ...]]:
    """Return the sites by what takes their scale: those that one norm feeds share it, others are alone."""
    groups: dict[str, list[InputSite]] = {}
    for site in sites:
        key = site.producer.name if isinstance(site.producer, NormRole) else site.name
        groups.setdefault(key, []).append(site)
    return [tuple(group) for group in groups.values()]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One decoder block.

    Attributes:
        index: Its place in the model.
        name: Qualified module name.
        sites: Its Linears by common input.
        activation: The MLP's activation function.
        uncovered: Weights of two or more dimensions that are not quantized: name and number of elements.
        experts: Its experts, by what holds them.
    """

    index: int
    name: str
    sites: tuple[InputSite, ...]
    activation: Callable[[Tensor], Tensor]
    uncovered: Mapping[str, int]
    experts: tuple[Experts, ...] = ()

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
