"""Write a quantized model as a GGUF file for llama.cpp: blocks of 32 codes in Q4_0, or in Q4_1 with zero points.

Responsible for the file's tensors and for what it says of the architecture; `gguf_tokenizer` adds the tokenizer. Uses
the package `gguf`, which is imported once the format is used. May assume codes of 4 bits. Shape letters: `O` outputs,
`I` inputs, `G` groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from objectives.errors import InputError
from objectives.export.companions import copy_companions
from objectives.export.formats import Stored
from objectives.export.gguf_tokenizer import add_tokenizer, require_tokenizer
from objectives.export.limits import Limits, quantized_linears
from objectives.export.reading import GGUF, GGUF_FILE, installed, versions_of
from objectives.export.runtime import RuntimeFormat
from objectives.export.tensors import (
    MIDDLE,
    configuration_kept,
    exact_offsets,
    half_scales,
    half_scales_note,
    module_codes,
    offsets_note,
    other_tensors,
)
from objectives.trial import Bench
from quant.errors import QuantizationError
from quant.plan import Plan
from quant.scheme import IntWeight

BLOCK = 32
PACKAGES = ("gguf", "accelerate")
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""What GGUF calls the model types that are written."""
PERMUTED = ("llama",)
"""Architectures whose queries and keys have the two halves of a rotation side by side."""
ROPE_TYPES = ("default",)
ACTIVATIONS = ("silu", "swish")
"""Names of what llama.cpp and transformers take the activation of these architectures to be."""
BIASES = {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}
"""Fields of configurations that add biases, by model type; transformers reads GGUF files as if they were off."""
QWEN3_HEAD = 128
"""The width of heads that transformers takes GGUF files of qwen3 to have."""
EMBEDDINGS = ("token_embd.weight", "output.weight")


class Gguf(RuntimeFormat):
    """The file format of llama.cpp."""

    limits = Limits(name="gguf", groups=(BLOCK,), per_row=False)
    # Writing needs the packages that read it.
    specification = GGUF
    runtime = GGUF
    packages = PACKAGES
    rounds = "minima"
    embeddings: ClassVar[str | None] = None
    """The type of embeddings and head in the file; None for that of the model."""

    def require_holds(self, plan: Plan, bench: Bench | None = None) -> None:
        """Refuse groups of other sizes, and models and tokenizers that GGUF is not written for here."""
        super().require_holds(plan, bench)
        if not installed(*PACKAGES):
            raise InputError(f"gguf needs the packages {' and '.join(PACKAGES)}; pip install 'praqtune[gguf]'")
        if bench is not None:
            _require_architecture(bench.model.module.config)
            require_tokenizer(bench.model.tokenizer, bench.model.module.config.vocab_size)

    def held(self, weight: IntWeight) -> tuple[Tensor, Tensor]:
        """Return scales, and minima in float16 where there are zero points; see `RuntimeFormat.held`."""
        scale, offset = super().held(weight)
        return scale, offset if weight.zero is None else exact_offsets(weight).half().float()

    def reader(self) -> str:
        """Return what reads the file for the proof: transformers, by the package gguf."""
        return versions_of("transformers", "gguf")

    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        """Write one file with tensors, configuration and tokenizer, and what stands beside it; see `Format.write`."""
        import gguf

        model = bench.model
        config = model.module.config
        with configuration_kept(model.module):
            config.save_pretrained(place)
            if model.module.generation_config is not None:
                model.module.generation_config.save_pretrained(place)
        model.tokenizer.save_pretrained(place)
        copy_companions(model, place)
        asymmetric = any(weight.zero is not None for weight in codes.values())
        writer = gguf.GGUFWriter(place / GGUF_FILE, ARCHITECTURES[config.model_type])
        _add_architecture(writer, config, model.name.rstrip("/").rpartition("/")[2])
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1 if asymmetric else gguf.LlamaFileType.MOSTLY_Q4_0)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, model.tokenizer, place, config.vocab_size)
        size = 0
        for name, data, kind in _tensors(bench, plan, codes, self.embeddings):
            writer.add_tensor(name, data.numpy(), raw_dtype=kind)
            size += data.nbytes if kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1) else 0
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        notes = half_scales_note(codes.values())
        if asymmetric:
            notes += offsets_note(codes.values(), torch.float16, "minima")
        return Stored(linear_bytes=size, notes=notes)


def _require_architecture(config: Any) -> None:
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"gguf is written for models of the types {', '.join(ARCHITECTURES)}, and this is {config.model_type}; use "
            "--format compressed-tensors"
        )
    parts = list(_not_written(config))
    if parts:
        raise InputError(
            f"models with {' and '.join(parts)} are not written as gguf here; use --format compressed-tensors"
        )


def _not_written(config: Any) -> Iterator[str]:
    """Yield what of a model is lost in the file, or where transformers reads that."""
    rotation = config.rope_parameters.get("rope_type", "default")
    if rotation not in ROPE_TYPES:
        yield f"rotary positions of type {rotation!r}"
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        yield "a sliding window"
    yield from (name for name in BIASES.get(config.model_type, ()) if getattr(config, name, False))
    if config.hidden_act not in ACTIVATIONS:
        yield f"the activation {config.hidden_act!r}"
    read = {"qwen2": config.hidden_size // config.num_attention_heads, "qwen3": QWEN3_HEAD}
    width = _head_width(config)
    if width != read.get(config.model_type, width):
        yield f"heads of {width} values"


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_architecture(writer: Any, config: Any, name: str) -> None:
    width = _head_width(config)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)


def _tensors(
    bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], embeddings: str | None
) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield every tensor of the file: its name, its values or its bytes, and its type."""
    import gguf

    kinds, config = gguf.GGMLQuantizationType, bench.model.module.config
    names = gguf.get_tensor_name_map(_architecture(config), config.num_hidden_layers)
    heads = _permuted_heads(config)
    for module, weight in module_codes(bench.blocks, plan, codes):
        blocks = q4_blocks(_with_rows(weight, row_order(weight.codes.shape[0], heads.get(module.rpartition(".")[2]))))
        kind = kinds.Q4_0 if weight.zero is None else kinds.Q4_1
        yield f"{_name(names, module)}.weight", blocks, kind
    tied = config.tie_word_embeddings
    for name, tensor in other_tensors(bench.model, quantized_linears(bench.blocks, plan)).items():
        module, _, part = name.rpartition(".")
        if tied and module == "lm_head":
            continue
        order = row_order(len(tensor), heads.get(module.rpartition(".")[2]) if part == "bias" else None)
        stored = f"{_name(names, module)}.{part}"
        if embeddings is not None and stored in EMBEDDINGS:
            kind = kinds[embeddings]
            yield stored, torch.from_numpy(gguf.quants.quantize(tensor.float().numpy(), kind)), kind
        else:
            yield stored, *_wide(tensor[order], kinds)


def _wide(tensor: Tensor, kinds: Any) -> tuple[Tensor, Any]:
    """Return a tensor that is not quantized: vectors in float32, which llama.cpp asks for, matrices in their type."""
    if tensor.dim() == 1 or tensor.dtype == torch.float32:
        return tensor.float(), kinds.F32
    if tensor.dtype == torch.float16:
        return tensor, kinds.F16
    return tensor.contiguous().view(torch.uint8), kinds.BF16


def _architecture(config: Any) -> Any:
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return numbers[ARCHITECTURES[config.model_type]]


def _name(names: Any, module: str) -> str:
    name = names.get_name(module)
    if name is None:
        raise QuantizationError(f"GGUF has no name for {module}; use --format compressed-tensors")
    return str(name)


def _permuted_heads(config: Any) -> Mapping[str, int]:
    """Return how many heads the projections have whose rows are in another order."""
    if ARCHITECTURES[config.model_type] not in PERMUTED:
        return {}
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}


def row_order(outputs: int, heads: int | None) -> Tensor:
    """Return where the rows of a projection come from, int64 `[O]`; None heads leave them as they are.

    Transformers rotates value i of a head with value i of its second half, llama.cpp with its neighbour.
    """
    rows = torch.arange(outputs)
    return rows if heads is None else rows.reshape(heads, 2, -1).transpose(1, 2).flatten()


def _with_rows(weight: IntWeight, order: Tensor) -> IntWeight:
    zero = None if weight.zero is None else weight.zero[order]
    return IntWeight(
        codes=weight.codes[order], scale=weight.scale[order], zero=zero, group_size=weight.group_size, bits=weight.bits
    )


def q4_blocks(weight: IntWeight) -> Tensor:
    """Return the blocks of one Linear, uint8 `[O, G * 18]` in Q4_0 and `[O, G * 20]` in Q4_1.

    A block is its scale in float16, in Q4_1 its minimum in float16, and 16 bytes: code j in the low half of byte j,
    code j + 16 in the high half. A value of Q4_0 is `(code - 8) * scale`, one of Q4_1 `code * scale + minimum`.
    """
    outputs, groups = weight.scale.shape
    numbers = weight.codes.to(torch.int32) + (MIDDLE if weight.zero is None else 0)
    halves = numbers.reshape(outputs, groups, 2, BLOCK // 2).to(torch.uint8)
    head: Sequence[Tensor] = (half_scales(weight),)
    if weight.zero is not None:
        head = (*head, exact_offsets(weight).half())
    parts = [part.unsqueeze(-1).contiguous().view(torch.uint8) for part in head]
    return torch.cat([*parts, halves[:, :, 0] | (halves[:, :, 1] << 4)], dim=-1).flatten(1)
