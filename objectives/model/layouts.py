"""What is known of the field's layouts: names of projections, fused rows, norms and how they work, activations.

Responsible for the tables that `roles` reads a decoder block with. May assume a transformers
configuration. Shape letters: `O` outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from objectives.errors import InputError
from quant.layers import HeadTie
from quant.scaling.salience import Kind

Role = Literal["q", "k", "v", "o", "gate", "up", "down", "fc1", "fc2"]
Structure = Literal["activated", "gated product", "plain"]
SUPPORTED = "supported layouts are LLaMA-like, Gemma-like, OPT-like and GPT-NeoX-like"

STRUCTURE: Mapping[Role, Structure] = {
    "gate": "activated",
    "fc1": "activated",
    "up": "gated product",
}
"""What the block computes from a Linear's output; roles not named pass it on as it is."""


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """What the configuration says of attention heads."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def tie(self) -> HeadTie | None:
        """Return which inputs of the output projection must share a scale; None where every head has its own values."""
        repeats = self.heads // self.kv_heads
        return None if repeats == 1 else HeadTie(kv_heads=self.kv_heads, repeats=repeats, head_dim=self.head_dim)


Slices = Callable[[HeadShape, int], Mapping[Role, Tensor]]


def _concatenated(shape: HeadShape, outputs: int) -> Mapping[Role, Tensor]:
    """Return the rows of a fused `q | k | v` projection (Phi-3); none where the sizes tell another arrangement."""
    sizes = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    if outputs != sum(sizes):
        return {}
    q, k, v = torch.arange(outputs).split(sizes)  # type: ignore[no-untyped-call]
    return {"q": q, "k": k, "v": v}


def _per_head(shape: HeadShape, outputs: int) -> Mapping[Role, Tensor]:
    """Return the rows of a fused projection of q, k and v head by head (GPT-NeoX); none of another arrangement."""
    if outputs != 3 * shape.heads * shape.head_dim:
        return {}
    rows = torch.arange(outputs).view(shape.heads, 3, shape.head_dim)
    return {"q": rows[:, 0].flatten(), "k": rows[:, 1].flatten(), "v": rows[:, 2].flatten()}


def _halves(_: HeadShape, outputs: int) -> Mapping[Role, Tensor]:
    """Return the rows of a fused `gate | up` projection (Phi-3)."""
    gate, up = torch.arange(outputs).chunk(2)
    return {"gate": gate, "up": up}


WHOLE: Mapping[str, Role] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
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
FUSED: Mapping[str, Slices] = {"qkv_proj": _concatenated, "query_key_value": _per_head, "gate_up_proj": _halves}
SITES: tuple[tuple[Kind, tuple[Role, ...]], ...] = (
    ("attention", ("q", "k", "v")),
    ("attention", ("o",)),
    ("mlp", ("gate", "up")),
    ("mlp", ("fc1",)),
    ("mlp", ("down",)),
    ("mlp", ("fc2",)),
)
# What produces the input of these, up to the attention's averaging and the activation.
AFTER_LINEAR: Mapping[tuple[Role, ...], Role] = {("o",): "v", ("down",): "up", ("fc2",): "fc1"}
# Norms of a block in which the first Linears of attention and of the MLP each have a norm before them that feeds
# nothing else, and which those are. In other arrangements (parallel, or normalised after the sum) a norm cannot take
# an input scale.
PRE_NORMS: Mapping[frozenset[str], Mapping[Kind, str]] = {
    frozenset({"input_layernorm", "post_attention_layernorm"}): {
        "attention": "input_layernorm",
        "mlp": "post_attention_layernorm",
    },
    frozenset(
        {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}
    ): {"attention": "input_layernorm", "mlp": "pre_feedforward_layernorm"},
    frozenset({"self_attn_layer_norm", "final_layer_norm"}): {
        "attention": "self_attn_layer_norm",
        "mlp": "final_layer_norm",
    },
}
# Norms inside attention that no value passes on its way to the output projection.
HEAD_NORMS = {"q_norm", "k_norm"}


def activation_name(config: Any) -> str:
    """Return what the configuration calls the activation.

    Raises:
        InputError: If it names none.
    """
    for key in ("hidden_act", "hidden_activation", "activation_function"):
        name = getattr(config, key, None)
        if name:
            return str(name)
    raise InputError(f"the configuration of {config.model_type} names no activation function")


def activation(config: Any) -> Callable[[Tensor], Tensor]:
    """Return the MLP's activation function."""
    return ACT2FN[activation_name(config)]  # type: ignore[no-any-return]


def norm_offset(norm: nn.Module) -> float | None:
    """Return what a norm adds to its weight before it multiplies with it; None where it works otherwise.

    Asked by running it: some norms multiply with `1 + weight` (Gemma), and nothing but their code says so.
    """
    weight = getattr(norm, "weight", None)
    if weight is None:
        return None
    # In float32 whatever the model's type: a few bits would not tell.
    probe = torch.linspace(-1, 2, weight.numel(), device=weight.device)
    zeros = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in norm.named_parameters()}
    with torch.no_grad():
        zero, once, twice = (
            torch.func.functional_call(norm, {**zeros, "weight": torch.full_like(probe, gain)}, (probe,))
            for gain in (0.0, 1.0, 2.0)
        )
    for offset in (0.0, 1.0):
        linear = torch.allclose((1 + offset) * twice, (2 + offset) * once)
        if linear and torch.allclose((1 + offset) * zero, offset * once):
            return offset
    return None
