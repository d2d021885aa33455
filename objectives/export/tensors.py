"""The tensors of a model as its files have them, and the files that stand beside them.

Responsible for what all formats share: the codes of whole modules, everything that is not quantized in the stored
type, configuration, tokenizer and companions. May assume a model whose weights are quantized at the moment, with scales
folded. Shape letters: `O` outputs, `G` groups.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives.export.companions import copy_companions
from objectives.export.expert_names import expert_names
from objectives.export.limits import quantized_linears, quantized_modules
from objectives.model.loading import Model
from objectives.model.roles import Block, LinearRole
from objectives.trial import Bench
from quant.errors import QuantizationError
from quant.packing import interleaved
from quant.plan import Plan
from quant.scheme import IntWeight
from storage.files import write_file
from storage.model_directory import tensor_bytes

MIDDLE = 8
"""The zero point of codes of 4 bits around zero, once they are counted from zero."""
Layout = Callable[[IntWeight], dict[str, Tensor]]
"""What a format stores of one Linear: its tensors by what their names end in."""


def module_codes(
    blocks: Sequence[Block], plan: Plan, codes: Mapping[str, IntWeight]
) -> Iterator[tuple[str, IntWeight]]:
    """Yield every quantized module with the codes of its Linear, or of its slices as one matrix."""
    for name, linears in quantized_modules(blocks, plan).items():
        yield name, _whole(linears, codes)


def other_tensors(model: Model, linears: Iterable[LinearRole]) -> dict[str, Tensor]:
    """Return every tensor of the model but the weights of Linears, on the CPU and in the stored type."""
    parameters = {id(linear.parameter) for linear in linears}
    quantized = {name for name, own in model.module.named_parameters(remove_duplicate=False) if id(own) in parameters}
    narrowed: dict[int | str, Tensor] = {}
    elsewhere = {name for name, own in model.module.named_parameters() if own.is_meta}
    tensors: dict[str, Tensor] = {}
    for name, read in model.weights.state(model.module):
        if name not in quantized:
            tensor = read()
            kept = tensor.to(model.stored_dtype) if tensor.dtype == model.dtype else tensor
            # Tied weights stay one tensor: that is how whoever saves them knows. One that was read has no name but its
            # own, and its memory may be that of the one before.
            owner = name if name in elsewhere else tensor.data_ptr()
            tensors[name] = narrowed.setdefault(owner, kept.cpu().clone())
    return tensors


def write_safetensors(
    bench: Bench,
    plan: Plan,
    codes: Mapping[str, IntWeight],
    layout: Layout,
    configuration: Mapping[str, Any],
    place: Path,
) -> int:
    """Write a directory as transformers does: tensors, `config.json`, tokenizer, generation configuration, companions.

    Args:
        bench: Model and roles.
        plan: How it was quantized.
        codes: Of its Linears.
        layout: What is stored of one of them.
        configuration: Entries of `config.json` that say how they are stored.
        place: An unfinished directory.

    Returns:
        The bytes of the quantized Linears in the files, without their biases.
    """
    model, names = bench.model, expert_names(bench.model.module, bench.blocks)
    tensors, modules = other_tensors(model, quantized_linears(bench.blocks, plan)), set()
    for name, weight in module_codes(bench.blocks, plan, codes):
        stored = names.get(name, name)
        modules.add(stored)
        tensors |= {f"{stored}.{part}": tensor.contiguous() for part, tensor in layout(weight).items()}
    with configuration_kept(model.module):
        model.module.save_pretrained(place, state_dict=tensors)
    model.tokenizer.save_pretrained(place)
    copy_companions(model, place)
    path = place / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"dtype": str(model.stored_dtype).removeprefix("torch."), **configuration}
    write_file(path, (json.dumps(config, indent=2) + "\n").encode())
    named = ((name.rpartition("."), size) for name, size in tensor_bytes(place).items())
    return sum(size for (module, _, part), size in named if module in modules and part != "bias")


def half_scales(weight: IntWeight) -> Tensor:
    """Return the scales `[O, G]` in float16, the only type that a format has for them.

    Raises:
        QuantizationError: If one is too large for it.
    """
    scale = weight.scale.to(torch.float16)
    if not scale.isfinite().all():
        largest = weight.scale.float().abs().max().item()
        raise QuantizationError(
            f"a group has a scale of {largest:g}, and float16 holds at most {torch.finfo(torch.float16).max:g}; use "
            "--format compressed-tensors"
        )
    return scale


def half_scales_note(codes: Iterable[IntWeight]) -> tuple[str, ...]:
    """Say how many scales are no float16 numbers, and by how much they were rounded; nothing where all are."""
    inexact, total, apart = 0, 0, 0.0
    for weight in codes:
        difference = (half_scales(weight).float() / weight.scale.float() - 1).abs()
        inexact, total = inexact + int((difference > 0).sum()), total + difference.numel()
        apart = max(apart, float(difference.max()))
    if not inexact:
        return ()
    return (f"{inexact} of {total} scales were rounded to float16, by at most {apart:.2g} of their value",)


def numbers(weight: IntWeight) -> Tensor:
    """Return the codes from zero on, int32 `[O, I]`."""
    return weight.codes.to(torch.int32) + (MIDDLE if weight.zero is None else 0)


def exact_offsets(weight: IntWeight) -> Tensor:
    """Return what is added to codes from zero on times their scale, float32 `[O, G]`: exact, before any rounding."""
    zero = MIDDLE if weight.zero is None else weight.zero.float()
    return -zero * weight.scale.float()


def offsets_note(codes: Iterable[IntWeight], dtype: torch.dtype, name: str) -> tuple[str, ...]:
    """Say how many offsets `dtype` rounds, and by how much of a step of the codes; nothing where it rounds none."""
    inexact, total, apart = 0, 0, 0.0
    for weight in codes:
        exact = exact_offsets(weight)
        steps = ((exact.to(dtype).float() - exact) / weight.scale.float()).abs()
        inexact, total = inexact + int((steps > 0).sum()), total + steps.numel()
        apart = max(apart, float(steps.max()))
    if not inexact:
        return ()
    kind = str(dtype).removeprefix("torch.")
    return (f"{inexact} of {total} {name} were rounded to {kind}, by at most {apart:.2g} of a step of their codes",)


@contextmanager
def configuration_kept(module: Any) -> Iterator[None]:
    """Undo what saving writes into the configuration of the model in memory: its type as text, its class."""
    before = dict(vars(module.config))
    try:
        yield
    finally:
        vars(module.config).clear()
        vars(module.config).update(before)


def _whole(linears: Sequence[LinearRole], codes: Mapping[str, IntWeight]) -> IntWeight:
    """Return the codes of a module, of one Linear or of its slices."""
    first = linears[0]
    # Gate and up of an expert are slices of one tensor, and two matrices in files.
    if first.rows is None or first.expert is not None:
        return codes[first.name]
    return interleaved([(linear.rows.cpu(), codes[linear.name]) for linear in linears if linear.rows is not None])
