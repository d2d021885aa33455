"""Layer roles: which Linears a decoder block has, what each is for, which share an input, and what folds.

Responsible for finding them by the tables of `layouts` and for handing them on as data; what the tables do not know
is listed as not covered. May assume a transformers model whose decoder blocks are one `nn.ModuleList`. Shape letters:
`O` outputs, `I` inputs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from objectives.errors import InputError
from objectives.model.layouts import (
    AFTER_LINEAR,
    FUSED,
    HEAD_NORMS,
    PRE_NORMS,
    SITES,
    STRUCTURE,
    SUPPORTED,
    WHOLE,
    HeadShape,
    Role,
    Structure,
    activation,
    activation_name,
    norm_offset,
)
from quant.layers import HeadTie
from quant.scaling.salience import Kind

MOST_UNCOVERED = 0.05
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


def find_blocks(module: Any, allow_partial: bool = False) -> list[Block]:
    """Return the decoder blocks of a causal language model.

    Args:
        module: A `PreTrainedModel`.
        allow_partial: Accept blocks of which more than 5 % of the weights stay in 16 bit.

    Raises:
        InputError: If the layout is not known, naming what is in the way.
    """
    config = module.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise InputError(f"{type(module).__name__} has no attention heads; {SUPPORTED}")
    shape = HeadShape(
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    prefix, layers = _decoder_layers(module, config.num_hidden_layers)
    find = partial(_block, shape=shape, config=config)
    blocks = [find(index, f"{prefix}.{index}", layer) for index, layer in enumerate(layers)]
    _require_coverage(blocks, allow_partial)
    return blocks


def _decoder_layers(module: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    lists = [
        (name, child)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if not lists:
        raise InputError(f"{type(module).__name__} has no list of {count} decoder blocks; {SUPPORTED}")
    return max(lists, key=lambda named: sum(parameter.numel() for parameter in named[1].parameters()))


def _block(index: int, name: str, layer: nn.Module, shape: HeadShape, config: Any) -> Block:
    conv = [child for child, module in layer.named_modules() if isinstance(module, Conv1D)]
    if conv:
        raise InputError(f"{name}.{conv[0]} is a Conv1D (GPT-2 layout), which is not supported; {SUPPORTED}")
    named = list(_linears(name, layer, shape))
    times = Counter(linear.role for linear in named)
    # Of several Linears of one role (routed experts) none reads what the block reads.
    by_role = {linear.role: linear for linear in named if times[linear.role] == 1}
    covered = {id(linear.module.weight) for linear in by_role.values()}
    uncovered = {
        f"{name}.{child}": parameter.numel()
        for child, parameter in layer.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in covered
    }
    sites = tuple(
        InputSite(
            name=f"{name}:{'+'.join(roles)}",
            kind=kind,
            linears=tuple(by_role[role] for role in roles if role in by_role),
            inputs=next(by_role[role].module.in_features for role in roles if role in by_role),
            producer=_linear_before(roles, by_role, layer, config)
            if roles in AFTER_LINEAR
            else None
            if uncovered
            else _norm_before(kind, name, layer, config),
            tie=shape.tie if roles == ("o",) else None,
        )
        for kind, roles in SITES
        if any(role in by_role for role in roles)
    )
    return Block(index=index, name=name, sites=sites, activation=activation(config), uncovered=uncovered)


def _linears(prefix: str, layer: nn.Module, shape: HeadShape) -> Iterator[LinearRole]:
    for path, module in layer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        name, leaf = f"{prefix}.{path}", path.rpartition(".")[2]
        if leaf in WHOLE:
            yield LinearRole(name=name, role=WHOLE[leaf], module=module)
        elif leaf in FUSED:
            for role, rows in FUSED[leaf](shape, module.out_features).items():
                yield LinearRole(name=f"{name}:{role}", role=role, module=module, rows=rows.to(module.weight.device))


def _linear_before(
    roles: tuple[Role, ...], linears: Mapping[Role, LinearRole], layer: nn.Module, config: Any
) -> LinearRole | None:
    """Return the Linear of the block whose rows can take the scale of what it feeds these with."""
    inner = {path.rpartition(".")[2] for path, _ in layer.named_modules() if "." in path and "norm" in path}
    # ReLU is positively homogeneous, relu(z / s) = relu(z) / s; other activations are not, and no norm is.
    passes = roles != ("fc2",) or activation_name(config) == "relu"
    return linears.get(AFTER_LINEAR[roles]) if passes and inner <= HEAD_NORMS else None


def _norm_before(kind: Kind, block: str, layer: nn.Module, config: Any) -> NormRole | None:
    """The norm that feeds the first Linears of attention or MLP and nothing else, if it has a weight to scale."""
    norms = {name: child for name, child in layer.named_children() if "norm" in name}
    # OPT can normalise after the residual sum; then the norm also feeds the residual and must not be rescaled.
    if not getattr(config, "do_layer_norm_before", True) or frozenset(norms) not in PRE_NORMS:
        return None
    name = PRE_NORMS[frozenset(norms)][kind]
    offset = norm_offset(norms[name])
    return None if offset is None else NormRole(name=f"{block}.{name}", module=norms[name], offset=offset)


def kept_in_16_bit(blocks: Sequence[Block]) -> str | None:
    """Return one line on the block weights that no setting quantizes; None where there are none."""
    uncovered = {name: size for block in blocks for name, size in block.uncovered.items()}
    if not uncovered:
        return None
    return f"{_share(blocks):.1%} of the block weights stay in 16 bit (largest: {_largest(uncovered)})"


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


def _share(blocks: Sequence[Block]) -> float:
    """Return the share of the block weights that is not quantized."""
    uncovered = sum(size for block in blocks for size in block.uncovered.values())
    covered = sum(prod(linear.shape) for block in blocks for linear in block.linears)
    return uncovered / max(1, covered + uncovered)


def _largest(uncovered: Mapping[str, int]) -> str:
    largest = sorted(uncovered.items(), key=lambda item: -item[1])[:LISTED]
    return ", ".join(f"{name} with {size} weights" for name, size in largest)


def _require_coverage(blocks: Sequence[Block], allow_partial: bool) -> None:
    uncovered = {name: size for block in blocks for name, size in block.uncovered.items()}
    none_covered = not any(True for block in blocks for _ in block.linears)
    if none_covered or (_share(blocks) > MOST_UNCOVERED and not allow_partial):
        raise InputError(
            f"{_share(blocks):.0%} of the block weights are not Linears that can be quantized (largest: "
            f"{_largest(uncovered)}); at most 5 % may stay in 16 bit unless --allow-partial is given"
        )
