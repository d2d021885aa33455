"""Responsible for what a training run decides once, where it stands, and the files it keeps.

May assume one process per work directory. Importing this loads no model and no text.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("train_bundled")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines the weights, fixed at the first start of a work directory."""

    tokens: int
    seed: int
    batch_tokens: int = 4096
    short_length: int = 256
    long_length: int = 512
    long_share: float = 0.3
    peak_rate: float = 3e-3
    final_rate: float = 1e-5
    warmup_share: float = 0.02
    weight_decay: float = 0.1
    core_share: float = 0.12

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return max(1, self.tokens // self.batch_tokens)

    def length(self, step: int) -> int:
        """Tokens per row: short rows are cheaper, the last ones teach the long context."""
        return self.short_length if step < self.steps * (1 - self.long_share) else self.long_length

    def rate(self, step: int) -> float:
        """Learning rate: linear warmup, then cosine decay."""
        warmup = max(1, round(self.steps * self.warmup_share))
        if step < warmup:
            return self.peak_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.final_rate + (self.peak_rate - self.final_rate) * (1 + math.cos(math.pi * done)) / 2


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; stored with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class WorkDirectory:
    """Owns every path of one training run. One process at a time; files appear whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.tokenizer = path / "tokenizer"
        self.streams = path / "streams.npz"
        self.checkpoint = path / "checkpoint.pt"
        self.xz = path / "xz.json"
        self.log = path / "training_log.jsonl"
        path.mkdir(parents=True, exist_ok=True)

    def replace(self, target: Path, write: Callable[[Path], Any]) -> None:
        """Let `write` fill a temporary file, then give it the name `target`."""
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        write(temporary)
        os.replace(temporary, target)

    def append(self, **entry: Any) -> None:
        """Add one line to the training log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        logger.info(json.dumps(entry))

    def rewind_log(self, step: int) -> None:
        """Drop log lines of steps after the checkpoint; they will be made again."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True) if self.log.exists() else []
        kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
        self.replace(self.log, lambda path: path.write_text("".join(kept), encoding="utf-8"))
