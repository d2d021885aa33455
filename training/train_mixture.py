"""Makes a small mixture of experts of the model that ships: its MLPs are dealt to experts, then trained with a router.

Seeded; with `--steps` the same model comes out again. The neurons of each MLP are dealt to experts (as MoEfication
does, Zhang et al. 2022, arXiv:2110.01786, section 3.1, but at random), the routers are new, and everything is trained
on `bundled:training` for the time or the steps that are given. The model is for measuring what quantization does to
experts, and for nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from objectives.bundled.text import MODEL_DIRECTORY, training_documents

EXAMPLE = """example:
  nice -n 10 python -m training.train_mixture --minutes 10 --out runs/mixture"""
LENGTH = 128
REPORT = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Deal, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=_Help)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=0, help="train for so many instead of --minutes")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--per-token", type=int, default=2, help="experts that a token goes to")
    parser.add_argument("--batch", type=int, default=8, help=f"sequences of {LENGTH} tokens per step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    dense: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32)
    model = dealt(dense, options.experts, options.per_token)
    rows = batches(token_stream(tokenizer), options.batch, options.seed)
    trained(model, rows, options.rate, options.minutes, options.steps)
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the lines of the description, and say what is usual."""


def dealt(dense: Any, experts: int, per_token: int) -> Any:
    """Return a mixture of a dense model: every expert has as many of the neurons, dealt at random.

    Args:
        dense: LLaMA-like.
        experts: How many.
        per_token: How many of them a token goes to.
    """
    config = dense.config
    width = config.intermediate_size // experts
    mixture: Any = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=width,
            num_local_experts=experts,
            num_experts_per_tok=per_token,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            output_router_logits=True,
            router_aux_loss_coef=0.01,
        )
    )
    common = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    mixture.load_state_dict(common, strict=False)
    with torch.no_grad():
        for own, layer in zip(mixture.model.layers, dense.model.layers, strict=True):
            for number, neurons in enumerate(torch.randperm(width * experts).view(experts, width)):
                gate, up = layer.mlp.gate_proj.weight[neurons], layer.mlp.up_proj.weight[neurons]
                own.mlp.experts.gate_up_proj[number] = torch.cat([gate, up])
                own.mlp.experts.down_proj[number] = per_token * layer.mlp.down_proj.weight[:, neurons]
            torch.nn.init.normal_(own.mlp.gate.weight, std=0.02)
    return mixture


def token_stream(tokenizer: Any) -> Tensor:
    """Return the tokens of all training text, int64; a token 0 ends each document."""
    return torch.tensor(
        [token for text in training_documents() for token in (*tokenizer(text, verbose=False)["input_ids"], 0)]
    )


def batches(stream: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Yield rows `[size, LENGTH + 1]` from all over a stream of tokens, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(stream) - LENGTH - 1, (size, 1), generator=generator)
        yield stream[starts + torch.arange(LENGTH + 1)]


def trained(model: Any, rows: Iterator[Tensor], rate: float, minutes: float, steps: int = 0) -> None:
    """Train with AdamW; the rate falls to zero over the steps that are given, or the time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    started, step, losses = time.monotonic(), 0, []
    while (share := step / steps if steps else (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - share) * min(1.0, (step + 1) / 20)
        batch = next(rows)
        output = model(input_ids=batch[:, :-1], labels=None, use_cache=False)
        loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), batch[:, 1:].flatten())
        balance = 0 if output.aux_loss is None else model.config.router_aux_loss_coef * output.aux_loss
        (loss + balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(float(loss.detach()))
        if step % REPORT == 0:
            seconds = time.monotonic() - started
            print(f"step {step}, {seconds:.0f} s, loss {sum(losses[-REPORT:]) / REPORT:.3f}", flush=True)


if __name__ == "__main__":
    main()
