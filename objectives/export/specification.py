"""Read what the GPTQ, AWQ and MLX formats store of one Linear, by their specifications.

Responsible for being a second opinion: written against the formats' documents, sharing nothing with what writes them,
and imported by the process alone that proves a directory. May assume the tensors of one Linear. Shape letters: `O`
outputs, `I` inputs, `G` groups.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

GPTQ, AWQ, MLX = "gptq", "awq", "mlx"
NIBBLES = 8
# In an AWQ word the lowest four bits are output 0, the next output 2, ...
AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)


def read_gptq(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the weights `[O, I]` of `qweight`, `qzeros`, `scales` and `g_idx`, float32.

    A word of `qweight` holds eight inputs of one output, a word of `qzeros` eight outputs of one group. In the first
    version of the format a zero point is stored as the number below it.
    """
    words = tensors["qweight"]
    inputs, outputs = NIBBLES * words.shape[0], words.shape[1]
    codes = torch.empty(inputs, outputs)
    zeros = torch.empty(len(tensors["qzeros"]), outputs)
    for place in range(NIBBLES):
        codes[place::NIBBLES] = _nibble(words, place)
        zeros[:, place::NIBBLES] = _nibble(tensors["qzeros"], place)
    if config.get("checkpoint_format", "gptq") == "gptq":
        zeros += 1
    group = tensors["g_idx"].long()
    return ((codes - zeros[group]) * tensors["scales"].float()[group]).T


def read_awq(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the weights `[O, I]` of `qweight`, `qzeros` and `scales` in the order of the GEMM version, float32."""
    words = tensors["qweight"]
    inputs, outputs = words.shape[0], NIBBLES * words.shape[1]
    codes, zeros = torch.empty(inputs, outputs), torch.empty(len(tensors["qzeros"]), outputs)
    for place, output in enumerate(AWQ_OUTPUTS):
        codes[:, output::NIBBLES] = _nibble(words, place)
        zeros[:, output::NIBBLES] = _nibble(tensors["qzeros"], place)
    group = torch.arange(inputs) // (inputs // len(zeros))
    return ((codes - zeros[group]) * tensors["scales"].float()[group]).T


def read_mlx(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the weights `[O, I]` of `weight`, `scales` and `biases`: a value is `code * scale + bias`, float32."""
    words = tensors["weight"].view(torch.int32)
    codes = torch.stack([_nibble(words, place) for place in range(NIBBLES)], dim=-1).flatten(1)
    group = torch.arange(codes.shape[1]) // int(config["group_size"])
    return codes * tensors["scales"].float()[:, group] + tensors["biases"].float()[:, group]


def read_steps(tensors: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """Return how far apart the values of neighbouring codes are, `[O, I]` float32, of the `scales` of GPTQ or AWQ."""
    steps = tensors["scales"].float().abs().T
    return steps.repeat_interleave(shape[1] // steps.shape[1], dim=1)


def _nibble(words: Tensor, place: int) -> Tensor:
    """Return four bits of every word, from the `place`-th four on."""
    return ((words.long() >> 4 * place) & 15).float()


Read = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor]
SPECIFICATIONS: Mapping[str, tuple[Read, str]] = {
    GPTQ: (read_gptq, "quantization_config"),
    AWQ: (read_awq, "quantization_config"),
    MLX: (read_mlx, "quantization"),
}
"""How a format is read, and which part of `config.json` tells how."""
