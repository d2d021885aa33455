"""Processes that quantize and die in the middle of it."""

import os
import signal
from math import inf
from pathlib import Path

from objectives import kept_blocks
from objectives.calibration.calibration import Calibration
from objectives.model.finding import find_blocks
from objectives.model.loading import ModelPlan, load_model
from objectives.trial import Bench, quantized
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths
from tests.objectives.calibration.workers import COUNT, text_of

PLANS = {
    "folded": Plan.uniform(Setting(method="gw-awq", group_size=32, n_calib=COUNT, n_grid=3)),
    "prefix": Plan.uniform(
        Setting(method="gw-awq", group_size=32, n_calib=COUNT, n_grid=3, rounding="gptq", prefix="quantized")
    ),
}


def bundled_bench(home: Path, memory: int | None) -> Bench:
    """The bundled model in float32, whose blocks are streamed where it is given little memory (bytes)."""
    plan = ModelPlan(dtype="float32", device_memory=memory, offload=str(home / "offload"))
    model = load_model(plan)
    blocks = find_blocks(model.module, weights=model.weights)
    return Bench(
        model=model,
        blocks=blocks,
        calibration=Calibration(model, blocks, text_of(model.tokenizer), TensorCache(Paths(home))),
    )


def die_after_blocks(home: Path, plan: str, memory: int | None, fatal: int) -> None:
    """Quantize the bundled model, and be killed when `fatal` blocks were quantized."""
    kept_blocks.LONG_SECONDS, kept_blocks.WRITING_SHARE = 0.0, inf

    def deadly(phase: str, done: int, _: int) -> None:
        if phase.startswith("quantizing") and done == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    with quantized(bundled_bench(home, memory), PLANS[plan], deadly, with_codes=True):
        raise AssertionError("it was to be killed")
