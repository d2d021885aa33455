"""Trains the model that ships with the project: corpus, tokenizer, weights, log and card, in one command.

Seeded and resumable: the plan (how many tokens) is fixed at the first start and stored, every batch is a
function of seed and step, and the same command goes on from the last checkpoint. CPU only.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from objectives.bundled.text import MODEL_DIRECTORY, held_out
from training.bundled_card import FAMILIES, TrainingFacts, export
from training.corpus import (
    CONTEXT,
    PACKAGES,
    VOCABULARY_SIZE,
    Streams,
    load_corpus,
    save_tokenizer,
    token_stream,
    train_tokenizer,
)
from training.evaluation import mean_loss, xz_bits_per_byte
from training.work_directory import Plan, Progress, WorkDirectory, logger

MEASURED_TO_REAL = 0.75
"""The optimizer, held-out losses, checkpoints and slower moments take the rest of the time."""

EXAMPLE = """example:
  python -m training.train_bundled --work-dir runs/bundled --minutes 75
  (stopped? the same command goes on where the last checkpoint was)"""


def model_config() -> LlamaConfig:
    """The architecture: every Linear reads 256 or 768 inputs, so groups of 32 to 256 all suit it."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_act="silu",
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def prepare_text(work: WorkDirectory, packages: list[str]) -> tuple[PreTrainedTokenizerFast, Streams, Plan | None]:
    """Tokenizer and token streams, from the work directory where they exist."""
    if not work.streams.exists():
        logger.info("reading and deduplicating the training text")
        corpus = load_corpus(packages)
        tokenizer = train_tokenizer(corpus)
        save_tokenizer(tokenizer, work.tokenizer)
        core, extra = token_stream(tokenizer, corpus.core), token_stream(tokenizer, corpus.extra)
        work.replace(work.streams, lambda path: _save_arrays(path, core=core, extra=extra))
        work.append(event="text", packages=packages, core_tokens=len(core), extra_tokens=len(extra))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(work.tokenizer))
    arrays = np.load(work.streams)
    plan = Plan(**json.loads(work.plan.read_text(encoding="utf-8"))) if work.plan.exists() else None
    share = plan.core_share if plan else Plan.core_share
    return tokenizer, Streams(core=arrays["core"], extra=arrays["extra"], core_share=share), plan


def _save_arrays(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def make_loss(model: LlamaForCausalLM, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Mean next-token loss of rows `[B, T + 1]`, matrix products in bfloat16."""

    def loss(rows: Tensor) -> Tensor:
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    inner = torch.compile(loss, dynamic=False) if compiled else loss

    def autocast_loss(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return inner(rows)

    return autocast_loss


def make_optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms; their weights are float32.

    Muon (Jordan 2024) needs fewer tokens than AdamW for the same loss. Its updates are scaled to AdamW's size (Liu et
    al. 2025, arXiv:2502.16982), so both share one rate.
    """
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim > 1 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=plan.peak_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.peak_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def affordable_tokens(model: LlamaForCausalLM, loss: Callable[[Tensor], Tensor], minutes: float) -> int:
    """Tokens that `minutes` of training allow, by a short measurement on a quiet machine."""
    draft = Plan(tokens=0, seed=0)
    seconds_per_token = 0.0
    for length, share in ((draft.short_length, 1 - draft.long_share), (draft.long_length, draft.long_share)):
        rows = torch.randint(0, VOCABULARY_SIZE, (draft.batch_tokens // length, length + 1))
        times = []
        for _ in range(10):
            start = time.perf_counter()
            loss(rows).backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
        seconds_per_token += share * min(times) / draft.batch_tokens
    return int(minutes * 60 / seconds_per_token * MEASURED_TO_REAL)


def held_out_blocks(tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """32 blocks of 512 held-out tokens per family, to watch for overfitting; never trained on."""
    blocks: dict[str, Tensor] = {}
    for family in FAMILIES:
        stream = torch.from_numpy(token_stream(tokenizer, held_out(family)).astype(np.int64))
        count = len(stream) // CONTEXT
        chosen = stream[: count * CONTEXT].view(count, CONTEXT)
        blocks[family] = chosen[torch.linspace(0, count - 1, min(32, count)).long()]
    return blocks


def train(work: WorkDirectory, arguments: argparse.Namespace) -> None:
    """Train until the plan is fulfilled, starting from the last checkpoint if there is one."""
    tokenizer, streams, plan = prepare_text(work, arguments.packages)
    torch.manual_seed(arguments.seed)
    model = LlamaForCausalLM(model_config())
    compiled = not arguments.no_compile and shutil.which("g++") is not None
    loss = make_loss(model, compiled)
    if plan is None:
        tokens = arguments.tokens or affordable_tokens(model, loss, arguments.minutes)
        plan = Plan(tokens=tokens, seed=arguments.seed)
        text = json.dumps(asdict(plan), indent=1)
        work.replace(work.plan, lambda path: path.write_text(text, encoding="utf-8"))
        work.append(event="plan", step=0, **asdict(plan), steps=plan.steps, compiled=compiled)
    optimizers = make_optimizers(model, plan)
    progress = Progress()
    if work.checkpoint.exists():
        state = torch.load(work.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        progress = Progress(**state["progress"])
        work.rewind_log(progress.step)
        work.append(event="resume", step=progress.step)
    watched = held_out_blocks(tokenizer)
    last_checkpoint = time.monotonic()
    recent: list[float] = []
    while progress.step < plan.steps:
        start, cpu_start = time.perf_counter(), time.process_time()
        recent.append(_step(model, optimizers, loss, streams, plan, progress.step))
        progress.step += 1
        progress.seconds += time.perf_counter() - start
        progress.cpu_seconds += time.process_time() - cpu_start
        done = progress.step == plan.steps
        if progress.step % arguments.log_steps == 0 or done:
            _log_step(work, plan, progress, sum(recent) / len(recent))
            recent.clear()
        if progress.step % arguments.evaluate_steps == 0 or done:
            _watch(work, model, watched, progress)
        if time.monotonic() - last_checkpoint > arguments.checkpoint_seconds or done:
            _save(work, model, optimizers, progress)
            last_checkpoint = time.monotonic()


def _step(
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Callable[[Tensor], Tensor],
    streams: Streams,
    plan: Plan,
    step: int,
) -> float:
    """One optimizer step; returns its training loss."""
    length = plan.length(step)
    rows = torch.from_numpy(streams.batch(plan.seed, step, plan.batch_tokens // length, length))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = plan.rate(step)
    value = loss(rows)
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if not math.isfinite(value.item()):
        raise FloatingPointError(f"the training loss became {value.item()} at step {step}; lower the peak rate")
    return value.item()


def _log_step(work: WorkDirectory, plan: Plan, progress: Progress, loss: float) -> None:
    tokens = progress.step * plan.batch_tokens
    work.append(
        event="train",
        step=progress.step,
        tokens=tokens,
        loss=round(loss, 4),
        rate=round(plan.rate(progress.step - 1), 7),
        seconds=round(progress.seconds, 1),
        cpu_seconds=round(progress.cpu_seconds, 1),
        tokens_per_second=round(tokens / progress.seconds),
    )


def _watch(work: WorkDirectory, model: LlamaForCausalLM, watched: dict[str, Tensor], progress: Progress) -> None:
    """Log the held-out loss; nothing is chosen by it, so the figures in the card are of unseen text."""
    model.train(False)
    losses = {family: round(mean_loss(model, blocks), 4) for family, blocks in watched.items()}
    model.train(True)
    work.append(event="held_out", step=progress.step, **losses)


def _save(
    work: WorkDirectory, model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], progress: Progress
) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": states, "progress": asdict(progress)}
    work.replace(work.checkpoint, lambda path: torch.save(state, path))


def export_last(work: WorkDirectory, target: Path, packages: list[str], with_xz: bool) -> None:
    """Write the weights of the last checkpoint, the tokenizer, the log and the model card to `target`."""
    tokenizer, streams, plan = prepare_text(work, packages)
    if plan is None or not work.checkpoint.exists():
        raise FileNotFoundError(f"nothing to export in {work.path}: train first")
    state = torch.load(work.checkpoint, weights_only=True)
    model = LlamaForCausalLM(model_config())
    model.load_state_dict(state["model"])
    facts = TrainingFacts(
        packages={name: PACKAGES.get(name, "unknown") for name in packages},
        core_tokens=len(streams.core),
        core_share=streams.core_share,
        extra_tokens=len(streams.extra),
        tokens_seen=state["progress"]["step"] * plan.batch_tokens,
        tokens_planned=plan.steps * plan.batch_tokens,
        minutes=state["progress"]["seconds"] / 60,
        cpu_minutes=state["progress"]["cpu_seconds"] / 60,
        seed=plan.seed,
        xz_bits_per_byte=xz_figures(work, packages) if with_xz else {},
    )
    export(model=model, tokenizer=tokenizer, log=work.log, target=target, facts=facts)


def xz_figures(work: WorkDirectory, packages: list[str]) -> dict[str, float]:
    """What xz needs per byte of each held-out family; computed once per work directory."""
    if not work.xz.exists():
        training = load_corpus(packages).joined()
        figures = {
            family: round(xz_bits_per_byte(training, "\n\n".join(held_out(family)).encode()), 4) for family in FAMILIES
        }
        work.replace(work.xz, lambda path: path.write_text(json.dumps(figures), encoding="utf-8"))
    stored: dict[str, float] = json.loads(work.xz.read_text(encoding="utf-8"))
    return stored


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_bundled",
        description="Train the small language model that ships with praqtune.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints, plan and log of this run")
    parser.add_argument("--out", type=Path, default=MODEL_DIRECTORY, help="where to export (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=75, help="training time to plan for (default: 75)")
    parser.add_argument("--tokens", type=int, default=0, help="tokens to train on, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    parser.add_argument("--packages", nargs="*", default=list(PACKAGES), help="packages to read docstrings of")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile (slower)")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint and stop")
    parser.add_argument("--no-xz", action="store_true", help="leave the (slow) comparison with xz out of the card")
    parser.add_argument("--log-steps", type=int, default=50, help="steps between log lines (default: 50)")
    parser.add_argument("--evaluate-steps", type=int, default=500, help="steps between held-out losses (500)")
    parser.add_argument("--checkpoint-seconds", type=float, default=180, help="time between checkpoints (180)")
    return parser.parse_args()


def main() -> None:
    """Train and export."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    work = WorkDirectory(arguments.work_dir)
    if not arguments.export_only:
        train(work, arguments)
    export_last(work, arguments.out, arguments.packages, with_xz=not arguments.no_xz)


if __name__ == "__main__":
    main()
