"""Processes that calibrate and die in the middle of it."""

import os
import signal
from pathlib import Path
from typing import Any

from objectives.calibration import calibration
from objectives.calibration.calibration import Calibration
from objectives.model.finding import find_blocks
from objectives.model.loading import ModelPlan, load_model
from objectives.progress import silent
from objectives.text.sequences import Sequences, TextPlan, prepare_text
from storage.cache import TensorCache
from storage.paths import Paths

COUNT = 8


def text_of(tokenizer: Any) -> Sequences:
    """Eight short sequences."""
    return prepare_text([TextPlan(source="bundled:docstrings", part="calibration", count=COUNT, length=64)], tokenizer)[
        0
    ]


def die_in_pass(home: Path, fatal: int) -> None:
    """Calibrate the bundled model block by block, and be killed when all text was read in pass `fatal` (from 0)."""
    begun = 0
    whole = calibration.record

    def deadly(*arguments: Any) -> Any:
        nonlocal begun
        begun += 1
        yield from whole(*arguments) if begun <= fatal else dying(whole(*arguments))

    def dying(recorded: Any) -> Any:
        next(recorded)
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    calibration.PASS_WORK = 0
    calibration.record = deadly
    model = load_model(ModelPlan(dtype="float32"))
    made = Calibration(model, find_blocks(model.module), text_of(model.tokenizer), TensorCache(Paths(home)))
    made.ensure([COUNT], silent)
