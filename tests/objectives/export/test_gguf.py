"""What a GGUF file holds is read by the package of that name, and what it cannot hold is refused in one line."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.errors import InputError
from objectives.export import gguf as format_gguf
from objectives.export.formats import find_format
from objectives.export.gguf import q4_blocks, row_order
from objectives.export.gguf_tokenizer import LLAMA3, QWEN2, require_tokenizer, splitting
from quant.plan import Plan
from quant.scheme import IntWeight, dequantize
from quant.setting import Setting
from tests.objectives import tiny
from tests.objectives.export.test_specification import weights

gguf = pytest.importorskip("gguf")
PLAN = Plan.uniform(Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5))
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(weight=weights(sizes=(32,)))
def test_every_code_is_read_by_the_package(weight: IntWeight) -> None:
    """Values are equal where the minimum is a float16 number, and less than a hundredth of a step apart elsewhere."""
    kind = gguf.GGMLQuantizationType.Q4_0 if weight.zero is None else gguf.GGMLQuantizationType.Q4_1
    values = gguf.quants.dequantize(q4_blocks(weight).numpy(), kind)
    steps = np.abs(values - dequantize(weight).numpy()) / weight.scale.float().abs().repeat_interleave(32, 1).numpy()
    assert steps.max() <= (0.01 if weight.zero is not None else 0)


def test_the_rows_of_a_head_are_paired() -> None:
    """Value i of the first half with value i of the second; without heads nothing moves."""
    assert row_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert row_order(3, None).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("before", "name"),
    [
        (BYTES | {"use_regex": True}, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True}], "smollm"),
        ([SPLIT | {"pattern": {"Regex": QWEN2}}, BYTES | {"use_regex": False}], "qwen2"),
        ([SPLIT | {"pattern": {"Regex": LLAMA3}}, BYTES | {"use_regex": False}], "llama-bpe"),
        ([SPLIT | {"pattern": {"Regex": " "}}, BYTES | {"use_regex": False}], None),
        (BYTES | {"use_regex": True, "add_prefix_space": True}, None),
        ({"type": "Metaspace"}, None),
        (None, None),
    ],
)
def test_how_text_is_split_has_a_name(before: Any, name: str | None) -> None:
    """As llama.cpp knows it; what it does not know has none."""
    steps = {"type": "Sequence", "pretokenizers": before} if isinstance(before, list) else before
    assert splitting({"pre_tokenizer": steps, "normalizer": None}) == name
    assert splitting({"pre_tokenizer": steps, "normalizer": {"type": "Lowercase"}}) is None


class Backend:
    """A tokenizer as tokenizer.json describes it."""

    def __init__(self, **changes: Any) -> None:
        described = json.loads((MODEL_DIRECTORY / "tokenizer.json").read_text(encoding="utf-8"))
        self.backend_tokenizer = SimpleNamespace(to_str=lambda: json.dumps(described | changes))

    def __len__(self) -> int:
        return 4096


def test_tokenizers_that_gguf_cannot_express_are_refused() -> None:
    """In one line with the format that needs not to."""
    require_tokenizer(Backend(), 4096)
    for tokenizer, said in (
        (Backend(model={"type": "Unigram"}), "byte-level BPE tokenizers, and this is another Unigram"),
        (Backend(model={"type": "BPE", "byte_fallback": True}), "byte-level BPE tokenizers, and this is another BPE"),
        (Backend(pre_tokenizer={"type": "Whitespace"}), "splits text as no tokenizer does that llama.cpp knows"),
        (SimpleNamespace(), "needs a tokenizer.json, and SimpleNamespace has none"),
    ):
        with pytest.raises(InputError, match=f"{said}.*; use --format compressed-tensors"):
            require_tokenizer(tokenizer, 4096)
    with pytest.raises(InputError, match="the tokenizer has 4096 tokens, and the model 96; use --format comp"):
        require_tokenizer(Backend(), 96)


def test_models_that_are_not_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other architectures, rotations and windows; and where a package is missing, what to install."""
    for layout, said in (("phi3", "this is phi3"), ("mistral", "a sliding window")):
        with pytest.raises(InputError, match=f"{said}.* use --format compressed-tensors"):
            find_format("gguf").require_holds(PLAN, tiny.bench(tiny.complete(layout), tmp_path))
    scaled = tiny.complete()
    scaled.module.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 10000.0}
    with pytest.raises(InputError, match="models with rotary positions of type 'yarn' are not written as gguf here"):
        find_format("gguf").require_holds(PLAN, tiny.bench(scaled, tmp_path))
    monkeypatch.setattr(format_gguf, "installed", lambda *_: False)
    with pytest.raises(InputError, match=r"needs the packages gguf and accelerate; pip install 'praqtune\[gguf\]'"):
        find_format("gguf").require_holds(PLAN)


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        (LlamaConfig(**tiny.GROUPED, attention_bias=True, mlp_bias=True), "attention_bias and mlp_bias"),
        (Qwen3Config(**tiny.GROUPED, head_dim=128, attention_bias=True), "attention_bias"),
        (MistralConfig(**tiny.GROUPED, sliding_window=None, hidden_act="gelu"), "the activation 'gelu'"),
        (Qwen2Config(**tiny.GROUPED, head_dim=32), "heads of 32 values"),
        (Qwen3Config(**tiny.GROUPED, head_dim=16), "heads of 16 values"),
        (LlamaConfig(**tiny.GROUPED, head_dim=32, hidden_act="swish"), None),
        (Qwen2Config(**tiny.GROUPED), None),
        (Qwen3Config(**tiny.GROUPED, head_dim=128), None),
    ],
)
def test_what_is_lost_where_the_file_is_read_is_refused(config: Any, lost: str | None, tmp_path: Path) -> None:
    """Before anything is quantized: the proof would fail without a remedy, or miss another activation."""
    config.vocab_size = 4096
    model = replace(tiny.model(config), tokenizer=AutoTokenizer.from_pretrained(MODEL_DIRECTORY))
    bench = tiny.bench(model, tmp_path)
    if lost is None:
        find_format("gguf").require_holds(PLAN, bench)
        return
    with pytest.raises(InputError) as caught:
        find_format("gguf").require_holds(PLAN, bench)
    remedy = "are not written as gguf here; use --format compressed-tensors"
    assert str(caught.value) == f"models with {lost} {remedy}"


def test_the_file_says_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    """Architecture, tokens with their kinds, merges; tensors by the names and in the types of the format."""
    config = tiny.LAYOUTS["llama"]()
    config.vocab_size, config.tie_word_embeddings = 4100, True
    model = replace(tiny.model(config, dtype=torch.bfloat16), tokenizer=AutoTokenizer.from_pretrained(MODEL_DIRECTORY))
    bench = tiny.bench(model, tmp_path / "home")
    from objectives.trial import quantized

    with quantized(bench, PLAN, with_codes=True) as result:
        find_format("gguf").write(bench, PLAN, result.codes, tmp_path)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")

    def of(name: str) -> Any:
        return reader.fields[name].contents()

    assert (of("general.architecture"), of("llama.block_count"), of("llama.attention.head_count_kv")) == ("llama", 2, 2)
    assert (of("tokenizer.ggml.model"), of("tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    tokens, kinds = of("tokenizer.ggml.tokens"), of("tokenizer.ggml.token_type")
    assert (len(tokens), tokens[0], tokens[4096], kinds[0], kinds[1], kinds[4096]) == (
        4100, "<|endoftext|>", "[PAD4096]", gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED,
    )  # fmt: skip
    assert len(of("tokenizer.ggml.merges")) == 3839
    kinds_of = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds_of["blk.1.attn_q.weight"] == "Q4_0"
    assert kinds_of["blk.0.attn_norm.weight"] == "F32"
    assert kinds_of["token_embd.weight"] == "BF16"
    assert "output.weight" not in kinds_of
