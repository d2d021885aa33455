"""From a setting, chosen by a person or found by a study, to a model directory.

Responsible for refusing early what cannot be written, and for making sure that a trial is written as it was measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.record import StudyRecord
from hpo.trials import require_same_bench
from objectives.evaluation import BenchPlan, load_bench
from objectives.export import write_quantized
from objectives.progress import Progress
from objectives.roles import kept_in_16_bit
from quant.methods import Setting
from storage.model_directory import require_vacant
from storage.paths import Paths


@dataclass(frozen=True, kw_only=True)
class Written:
    """A model directory that was written.

    Attributes:
        directory: Where it is.
        record: Its `praqtune.json`.
        disk_bytes: What its files take: the weights are dense.
        notes: What a person should know besides.
    """

    directory: Path
    record: dict[str, Any]
    disk_bytes: int
    notes: list[str]


def deploy(
    plan: BenchPlan, setting: Setting, directory: Path, study: StudyRecord | None, paths: Paths, progress: Progress
) -> Written:
    """Write the model quantized by `setting` to `directory`.

    Args:
        plan: Model and text.
        setting: How to quantize.
        directory: Must not exist, or be empty.
        study: Whose trial the setting is; model and calibration text must then be the study's.
        paths: Where calibration is kept.
        progress: Told how far each phase is.

    Raises:
        InputError: If model, text, setting and study do not suit each other.
        StorageError: If something is at `directory` already, or the disk is full or refuses.
    """
    require_vacant(directory, 0)
    bench, _ = load_bench(plan, paths)
    if study is not None:
        require_same_bench(study, bench)
    record = write_quantized(bench, setting, directory, progress)
    kept = kept_in_16_bit(bench.blocks)
    return Written(
        directory=directory,
        record=record,
        disk_bytes=sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
        notes=[kept] if kept else [],
    )
