"""Random models of a few thousand weights, one per layout, with a bench of random tokens; no tokenizer is needed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.calibration.calibration import Calibration
from objectives.model.finding import find_blocks
from objectives.model.loading import Model
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from storage.cache import TensorCache
from storage.paths import Paths

VOCABULARY, HIDDEN, MLP, HEADS, KV_HEADS, LAYERS, CONTEXT = 96, 64, 128, 4, 2, 2, 64
HEAD = HIDDEN // HEADS
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    **TOKENS,
}
GROUPED = {**COMMON, "num_key_value_heads": KV_HEADS}
GEMMA = {**GROUPED, "head_dim": HEAD}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "ffn_dim": MLP,
    "word_embed_proj_dim": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "dropout": 0.0,
    **TOKENS,
}

LAYOUTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=16),
    "gemma": lambda: GemmaConfig(**GEMMA),
    "gemma2": lambda: Gemma2Config(**GEMMA, query_pre_attn_scalar=HEAD, sliding_window=16, final_logit_softcapping=2.0),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=HEAD, sliding_window=16),
    "opt": lambda: OPTConfig(**OPT),
    "opt-post-norm": lambda: OPTConfig(**{**OPT, "word_embed_proj_dim": HIDDEN // 2}, do_layer_norm_before=False),
    "gpt-neox": lambda: GPTNeoXConfig(**COMMON),
    "phi3": lambda: Phi3Config(**GROUPED),
}

EXPERTS, EXPERT_MLP = 4, 32
ROUTED = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": EXPERT_MLP}
MIXTURES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: MixtralConfig(**GROUPED, num_local_experts=EXPERTS),
    "qwen3-moe": lambda: Qwen3MoeConfig(**GEMMA, **ROUTED),
    # Its first block is dense, and the second has an expert that reads every token.
    "qwen2-moe": lambda: Qwen2MoeConfig(
        **GROUPED, **ROUTED, shared_expert_intermediate_size=MLP, mlp_only_layers=[0], decoder_sparse_step=1
    ),
    "deepseek-v3": lambda: DeepseekV3Config(
        **{**COMMON, "num_key_value_heads": HEADS},
        n_routed_experts=EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=EXPERT_MLP,
        n_group=2,
        topk_group=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=HEAD,
        first_k_dense_replace=1,
    ),
    # Biases, rows of gate and up in turns, matrices the other way round.
    "gpt-oss": lambda: GptOssConfig(**GEMMA, num_local_experts=EXPERTS, num_experts_per_tok=2, rope_parameters=ROPE),
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def module(config: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of `config`: every weight and bias is drawn, so that none is zero or one by construction.

    As loading has it, `dtype` is that of the weights alone: rotary frequencies stay in float32.
    """
    torch.manual_seed(seed)
    made: Any = AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else 0.08)
        parameter.data = parameter.data.to(dtype)
    return made.eval().requires_grad_(False)


def model(config: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """`module` as what `load_model` returns."""
    made = module(config, seed, dtype)
    return Model(
        name="tiny",
        commit=None,
        module=made,
        tokenizer=None,
        device=torch.device("cpu"),
        fingerprint=f"{config.model_type}-{seed}-{dtype}",
    )


def complete(layout: str = "llama", dtype: torch.dtype = torch.float32, tied: bool = False) -> Model:
    """A model with the bundled tokenizer, as something that is written to a directory must have one."""
    config = LAYOUTS[layout]()
    if layout == "llama":
        config.tie_word_embeddings = tied
    return replace(model(config, dtype=dtype), tokenizer=AutoTokenizer.from_pretrained(MODEL_DIRECTORY))


def sequences(lengths: Sequence[int], seed: int = 0, unscored: Sequence[int] = ()) -> Sequences:
    """Random tokens, never 0 or 1; the positions in `unscored` count as targets in no sequence."""
    generator = torch.Generator().manual_seed(seed)
    scored = [torch.ones(length, dtype=torch.bool) for length in lengths]
    for mask in scored:
        mask[[0, *(position for position in unscored if position < len(mask))]] = False
    return Sequences(
        source=f"random-{seed}",
        ids=tuple(torch.randint(2, VOCABULARY, (length,), generator=generator) for length in lengths),
        scored=tuple(scored),
        clusters=tuple(range(len(lengths))),
    )


def bench(made: Model, directory: Path, allow_partial: bool = False, route_all: bool = False) -> Bench:
    """A bench for `made` that calibrates on eight random sequences of different lengths."""
    blocks = find_blocks(made.module, allow_partial)
    text = sequences([24, 17, 24, 9, 31, 24, 2, 12], seed=1)
    calibration = Calibration(made, blocks, text, TensorCache(Paths(directory)), route_all=route_all)
    return Bench(model=made, blocks=blocks, calibration=calibration)


def state(made: Any) -> dict[str, Tensor]:
    """A copy of every weight."""
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states hold the same bytes."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(-1).view(torch.uint8), second[name].view(-1).view(torch.uint8)) for name in first
    )
