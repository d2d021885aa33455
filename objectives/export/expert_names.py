"""What the files of a model call the matrices of its experts, which stand in a few tensors while the model runs.

Responsible for asking transformers, which takes experts apart when it saves a model and joins them when it loads
one; other runtimes read the same names. May assume a model whose experts `objectives.model.experts` knows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from objectives.model.roles import Block, LinearRole


def expert_names(module: Any, blocks: Sequence[Block]) -> dict[str, str]:
    """Return what files call the experts' matrices, without `.weight`, by the name of the Linear.

    Those of experts that transformers stores as it runs them are left out: nothing names them one by one.

    Args:
        module: A `PreTrainedModel`.
        blocks: Its roles.
    """
    linears = [linear for block in blocks for linear in block.linears if linear.expert is not None]
    parameters = {id(parameter): name for name, parameter in module.named_parameters()}
    marks: dict[str, Tensor] = {}
    for number, linear in enumerate(linears):
        name = parameters[id(linear.parameter)]
        mark = marks.setdefault(name, _unmarked(linear))
        mark[linear.expert.expert, _row(linear)] = number  # type: ignore[union-attr]
    names = {}
    for name, mark in revert_weight_conversion(module, marks).items():
        # What was taken apart is one matrix of one expert.
        if name not in marks and mark.numel() == 1:
            names[linears[int(mark)].name] = name.removesuffix(".weight")
    return names


def file_name(module: Any, parameter: str) -> str:
    """Return what files call a parameter that is stored as it is."""
    (name,) = revert_weight_conversion(module, {parameter: torch.zeros(1)})
    return str(name)


def _unmarked(linear: LinearRole) -> Tensor:
    """Return one number for each matrix that the parameter of a Linear holds, `[experts, matrices, 1]`."""
    assert linear.expert is not None
    outputs = linear.expert.of(linear.parameter).shape[0]
    rows = 1 if linear.rows is None else outputs // len(linear.rows)
    return torch.full((len(linear.parameter), rows, 1), -1)


def _row(linear: LinearRole) -> int:
    """Return which of the matrices of one expert a Linear is: the first, or the second of gate and up."""
    return 0 if linear.rows is None or int(linear.rows[0]) == 0 else 1
