"""What refining made of a quantized model: other scales for its codes, other norms and biases, and what that gained.

Responsible for these as a value, and for putting it into a model that was just quantized as it had been. May assume
that the value was made for these codes, which is checked. Shape letters: `O` outputs, `G` groups, `N` elements.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from objectives.errors import RunError
from objectives.model.layouts import norm_offset
from objectives.model.loading import Model
from objectives.model.roles import Block, LinearRole, NormRole
from objectives.quantized_blocks import FoldedScales
from objectives.refinement_record import Refinement
from quant.plan import Plan
from quant.scheme import IntWeight, loaded

VECTORS = ("weight", "bias")


class OtherCodesError(RunError):
    """What was refined were other codes; `key` is the refinement's, of which nothing fits."""

    def __init__(self, key: str) -> None:
        super().__init__(
            "quantizing gave other codes than those that were refined, as other versions or another number of threads "
            "may; give the command again to refine these"
        )
        self.key = key


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A plan's codes, of which some moved, with other scales, and the vectors beside them.

    Attributes:
        plan: Whose codes they are; to any other plan nothing of this applies.
        key: Says which refinement it is.
        codes: Hash of the codes.
        moves: Which codes moved by a step (`moves_between`), by name of the Linear; only those where some did.
        scales: `[O, G]` in the type they are stored in, by name of the Linear, on the CPU; none where they stayed.
        vectors: Norm weights and biases, `[N]` in the type they are stored in, by name of the parameter, on the CPU.
        refinement: How they came about.
    """

    plan: Plan
    key: str
    codes: str
    scales: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]
    refinement: Refinement
    moves: Mapping[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def put_into(self, model: Model, blocks: Sequence[Block], codes: Mapping[str, IntWeight]) -> dict[str, IntWeight]:
        """Change a model that holds the codes with the scales they were rounded with; returns them with ours.

        Raises:
            OtherCodesError: If the codes are others than those that were refined.
        """
        if hash_of_codes(codes) != self.codes:
            raise OtherCodesError(self.key)
        refined = {
            name: moved(replace(weight, scale=self.scales.get(name, weight.scale)), self.moves.get(name))
            for name, weight in codes.items()
        }
        left = dict(self.vectors)
        for block in blocks:
            with model.weights.changing(block.name):
                put_codes(block, refined)
                for name in [name for name in left if name.startswith(f"{block.name}.")]:
                    model.module.get_parameter(name).copy_(left.pop(name))
        for name, vector in left.items():
            model.module.get_parameter(name).copy_(vector)
        return refined

    def unfolded(self, blocks: Sequence[Block], folded: Mapping[str, FoldedScales]) -> dict[str, Tensor]:
        """Return the vectors as they are in a model whose scales were not folded, float32 by name."""
        vectors = {name: vector.float().clone() for name, vector in self.vectors.items()}
        for norm, scale in _scales_of_norms(blocks, folded):
            weight, bias = f"{norm.name}.weight", f"{norm.name}.bias"
            if weight in vectors:
                vectors[weight] = (norm.offset + vectors[weight]) * scale - norm.offset
            if bias in vectors:
                vectors[bias] *= scale
        for linear in coded(blocks, folded):
            bias, divisor = _bias_name(linear), folded[linear.name].outputs
            if divisor is not None and bias in vectors:
                rows = slice(None) if linear.rows is None else linear.rows.cpu()
                vectors[bias][rows] *= divisor.cpu()
        return vectors


def _scales_of_norms(blocks: Sequence[Block], folded: Mapping[str, FoldedScales]) -> Iterator[tuple[NormRole, Tensor]]:
    """Yield every norm that a scale was folded into, once, with the scale `[N]` on the CPU; experts share both."""
    norms: dict[str, tuple[NormRole, Tensor]] = {}
    for site in (site for block in blocks for site in block.sites):
        first = site.linears[0].name
        scale = folded[first].inputs if first in folded else None
        if scale is not None and isinstance(site.producer, NormRole):
            norms.setdefault(site.producer.name, (site.producer, scale.cpu()))
    return iter(norms.values())


@torch.no_grad()
def put_codes(block: Block, codes: Mapping[str, IntWeight]) -> None:
    """Put codes, by name of the Linear, into the weights of one block, which are at hand."""
    for linear in coded([block], codes):
        linear.set_weight(loaded(codes[linear.name]).to(linear.parameter.device))


def coded(blocks: Sequence[Block], named: Container[str]) -> Iterator[LinearRole]:
    """Yield the Linears that are stored as codes; others may stay in 16 bit."""
    return (linear for block in blocks for linear in block.linears if linear.name in named)


def _bias_name(linear: LinearRole) -> str:
    return f"{linear.name.partition(':')[0]}.bias"


def moves_between(before: IntWeight, after: IntWeight) -> Tensor:
    """Return which codes differ by a step, int32 `[M]`: places in the matrix from 1 on, negative where it is down."""
    change = after.codes.flatten().short() - before.codes.flatten().short()
    places = change.nonzero()[:, 0]
    return ((places + 1) * change[places].long()).int()


def moved(weight: IntWeight, moves: Tensor | None) -> IntWeight:
    """Return a weight with codes moved as `moves_between` says; None moves none."""
    if moves is None:
        return weight
    codes = weight.codes.flatten().clone()
    places = moves.abs().long() - 1
    codes[places] = (codes[places].short() + moves.sign().short()).to(codes.dtype)
    return replace(weight, codes=codes.view_as(weight.codes))


def hash_of_codes(codes: Mapping[str, IntWeight]) -> str:
    """Hash codes, scales and zero points to 128 bits, by name."""
    digest = xxhash.xxh3_128()
    for name in sorted(codes):
        weight = codes[name]
        digest.update(name.encode())
        for tensor in (weight.codes, weight.scale, weight.zero):
            if tensor is not None:
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return str(digest.hexdigest())


def tunable_vectors(module: Any) -> Iterator[tuple[str, nn.Parameter, float | None]]:
    """Yield the norm weights and biases of a model's body: name, `[N]`, and a norm's offset; None for a bias.

    The head's own stay: full precision's distribution is computed by it. So do norms that work in ways of their own.
    """
    head = module.get_output_embeddings()
    of_head = set() if head is None else {id(parameter) for parameter in head.parameters()}
    body = {id(parameter) for parameter in module.base_model.parameters()} - of_head
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if name not in VECTORS or parameter.dim() != 1 or id(parameter) not in body:
                continue
            offset = norm_offset(owner) if name == "weight" else None
            if name == "bias" or offset is not None:
                yield f"{path}.{name}" if path else name, parameter, offset


def owners(module: Any, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules that hold the parameters of these names."""
    return [module.get_submodule(name.rpartition(".")[0]) for name in names]
