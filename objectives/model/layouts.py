"""What is known of the field's layouts: names of projections, ways to fuse them, how norms work, activations.

Responsible for the tables that `finding` reads a decoder block with; which of several ways a block follows it is asked
itself. May assume a transformers configuration.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from objectives.errors import InputError
from quant.linears import HeadTie
from quant.scaling.salience import Kind

# What code of other people raises where it is run otherwise than it was made for.
UNUSABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError)
Role = Literal["q", "k", "v", "q_a", "q_b", "kv_a", "kv_b", "o", "gate", "up", "down", "fc1", "fc2"]
Structure = Literal["activated", "gated product", "plain"]
SUPPORTED = "supported layouts are LLaMA-like, Gemma-like, OPT-like and GPT-NeoX-like, and fused experts in them"

STRUCTURE: Mapping[Role, Structure] = {
    "gate": "activated",
    "fc1": "activated",
    "up": "gated product",
}
"""What the block computes from a Linear's output; roles not named pass it on as it is."""


Rows = Mapping[Role, Tensor]
"""Which output rows of a fused Linear are those of each role, int64."""


def qkv_arrangements(outputs: int, inputs: int, head_dims: Sequence[int]) -> Iterator[Rows]:
    """Yield every way in which a fused projection of q, k and v may be arranged, the usual ones first.

    Args:
        outputs: Rows of the projection.
        inputs: What the output projection reads: the queries of all heads.
        head_dims: Widths that a head may have.
    """
    for width in head_dims:
        heads, rest = inputs // width, outputs - inputs
        if inputs % width or rest <= 0 or rest % (2 * width) or heads % (kv_heads := rest // (2 * width)):
            continue
        sizes: dict[Role, int] = {"q": heads // kv_heads, "k": 1, "v": 1}
        # One after the other (Phi-3), and for each key/value head its own (GPT-NeoX, Falcon).
        for groups in (1, kv_heads):
            for order in permutations(sizes):
                parts = [sizes[role] * width * kv_heads // groups for role in order]
                rows = torch.arange(outputs).view(groups, -1).split(parts, dim=1)  # type: ignore[no-untyped-call]
                yield {role: part.flatten() for role, part in sorted(zip(order, rows, strict=True), key=_as_computed)}


def _as_computed(item: tuple[Role, Tensor]) -> int:
    return "qkv".index(item[0])


def gate_up_arrangements(outputs: int) -> Iterator[Rows]:
    """Yield every way in which a fused projection of gate and up may be arranged: halves (Phi-3), or taking turns."""
    rows = torch.arange(outputs)
    for first, second in (rows.chunk(2), (rows[::2], rows[1::2])):
        yield {"gate": first, "up": second}
        yield {"gate": second, "up": first}


def head_dims(attention: nn.Module, config: Any) -> list[int]:
    """List how wide a head's values may be, the likeliest first: what the attention module says, then what is usual."""
    declared = [getattr(attention, name, None) for name in ("v_head_dim", "value_head_dim", "head_dim", "head_size")]
    usual = config.hidden_size // (getattr(config, "num_attention_heads", None) or 1)
    return list(dict.fromkeys(width for width in (*declared, usual) if isinstance(width, int) and width > 0))


def ties(inputs: int, values: int, head_dims: Sequence[int]) -> list[HeadTie | None]:
    """List which inputs of an output projection may have to share a scale, the likeliest first; none if none can fold.

    Args:
        inputs: What the output projection reads.
        values: What the value projection puts out; several query heads may share it.
        head_dims: Widths that a head's values may have.
    """
    if inputs == values:
        return [None]
    if inputs % values:
        return []
    widths = [width for width in head_dims if values % width == 0]
    return [HeadTie(kv_heads=values // width, repeats=inputs // values, head_dim=width) for width in widths]


WHOLE: Mapping[str, Role] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    # Attention through a narrow latent vector (DeepSeek-V2, arXiv:2405.04434, section 2.1).
    "q_a_proj": "q_a",
    "q_b_proj": "q_b",
    "kv_a_proj_with_mqa": "kv_a",
    "kv_b_proj": "kv_b",
    "o_proj": "o",
    "out_proj": "o",
    "dense": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "fc1": "fc1",
    "dense_h_to_4h": "fc1",
    "fc2": "fc2",
    "dense_4h_to_h": "fc2",
}
# What these are where no gate stands beside them.
UNGATED: Mapping[Role, Role] = {"up": "fc1", "down": "fc2"}
FUSED_QKV = {"qkv_proj", "query_key_value"}
FUSED_GATE_UP = {"gate_up_proj"}
SITES: tuple[tuple[Kind, tuple[Role, ...]], ...] = (
    ("attention", ("q", "k", "v")),
    ("attention", ("q_a", "kv_a")),
    ("attention", ("q_b",)),
    ("attention", ("kv_b",)),
    ("attention", ("o",)),
    ("mlp", ("gate", "up")),
    ("mlp", ("fc1",)),
    ("mlp", ("down",)),
    ("mlp", ("fc2",)),
)
# What produces the input of these, up to the attention's averaging and the activation.
AFTER_LINEAR: Mapping[tuple[Role, ...], Role] = {("o",): "v", ("down",): "up", ("fc2",): "fc1"}


def activation_name(config: Any) -> str:
    """Return what the configuration calls the activation.

    Raises:
        InputError: If it names none.
    """
    for key in ("hidden_act", "hidden_activation", "activation_function", "activation"):
        name = getattr(config, key, None)
        if isinstance(name, str) and name in ACT2FN:
            return name
    raise InputError(
        f"{config.model_type} is no supported layout: its configuration names no activation function, without which "
        f"nothing is known of its MLP; {SUPPORTED}, and --allow-partial does not help here"
    )


def activation(config: Any) -> Callable[[Tensor], Tensor]:
    """Return the MLP's activation function."""
    return ACT2FN[activation_name(config)]  # type: ignore[no-any-return]


def norm_offset(norm: nn.Module) -> float | None:
    """Return what a norm adds to its weight before it multiplies with it; None where it works otherwise.

    Asked by running it: some norms multiply with `1 + weight` (Gemma), and nothing but their code says so.
    """
    weight = getattr(norm, "weight", None)
    if weight is None or weight.dim() != 1:
        return None
    # Its own values are not asked for, so they may be elsewhere.
    device = torch.device("cpu") if weight.is_meta else weight.device
    # In float32 whatever the model's type: a few bits would not tell.
    probe = torch.linspace(-1, 2, weight.numel(), device=device)
    zeros = {name: torch.zeros(tensor.shape, device=device) for name, tensor in norm.named_parameters()}
    try:
        with torch.no_grad():
            zero, once, twice = (
                torch.func.functional_call(norm, {**zeros, "weight": torch.full_like(probe, gain)}, (probe,))
                for gain in (0.0, 1.0, 2.0)
            )
    except UNUSABLE:
        # It reads more than what it normalises: a gate, say.
        return None
    for offset in (0.0, 1.0):
        linear = torch.allclose((1 + offset) * twice, (2 + offset) * once)
        if linear and torch.allclose((1 + offset) * zero, offset * once):
            return offset
    return None
