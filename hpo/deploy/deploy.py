"""From a setting, chosen by a person or found by a study, to a model directory.

Responsible for refusing early what cannot be written, and for making sure that a trial is written as it was measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpo.deploy.model_card import model_card
from hpo.study.choosing import require_same_bench, require_same_text
from hpo.study.record import TrialRecord
from hpo.verdict.snapshot import Study
from objectives.errors import InputError
from objectives.evaluation import BenchPlan, load_bench
from objectives.export.dense import write_quantized
from objectives.export.packed import Proof, require_packable, write_packed
from objectives.model.roles import kept_in_16_bit, unscaled_inputs
from objectives.progress import Progress
from objectives.results import measurement_key, recall_result
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from storage.model_directory import disk_bytes, require_vacant
from storage.paths import Paths
from storage.results import ResultStore

Format = Literal["dense", "packed"]
FORMATS: tuple[Format, ...] = ("dense", "packed")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What to write.

    Attributes:
        setting: How to quantize.
        study: Whose trial the setting is; model and text must then be the study's. None for a person's choice.
        trial: The trial.
    """

    setting: Setting
    study: Study | None = None
    trial: TrialRecord | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """A model directory that was written.

    Attributes:
        directory: Where it is.
        record: Its `praqtune.json`.
        disk_bytes: What its files take.
        notes: What a person should know besides.
    """

    directory: Path
    record: dict[str, Any]
    disk_bytes: int
    notes: list[str]


def deploy(plan: BenchPlan, chosen: Chosen, directory: Path, form: str, paths: Paths, progress: Progress) -> Written:
    """Write the model quantized by a setting to `directory`.

    Args:
        plan: Model and text; the first data set is what a packed model is scored on.
        chosen: How to quantize.
        directory: Must not exist, or be empty.
        form: `dense`: 4-bit values in the model's own type. `packed`: INT4, and proven to score what was measured.
        paths: Where calibration and results are kept.
        progress: Told how far each phase is.

    Raises:
        InputError: If model, text, setting, study and format do not suit each other.
        RunError: If a packed model does not score what was measured.
        StorageError: If something is at `directory` already, or the disk is full or refuses.
    """
    if form not in FORMATS:
        raise InputError(f"format {form!r} is unknown; choose {' or '.join(FORMATS)}")
    require_vacant(directory, 0)
    if form == "packed":
        require_packable([], Plan.uniform(chosen.setting))
    bench, (tuning, *_) = load_bench(plan, paths)
    if chosen.study is not None:
        require_same_bench(chosen.study.record, bench)
    if form == "packed":
        record = _packed(plan, bench, tuning, chosen, directory, ResultStore(paths.results), progress)
    else:
        record = write_quantized(bench, Plan.uniform(chosen.setting), directory, progress)
    found = (kept_in_16_bit(bench.blocks), unscaled_inputs(bench.blocks) if form == "packed" else None)
    return Written(
        directory=directory,
        record=record,
        disk_bytes=disk_bytes(directory),
        notes=[note for note in found if note is not None],
    )


def _packed(
    plan: BenchPlan,
    bench: Bench,
    tuning: Sequences,
    chosen: Chosen,
    directory: Path,
    store: ResultStore,
    progress: Progress,
) -> dict[str, Any]:
    setting, study, trial = chosen.setting, chosen.study, chosen.trial
    if study is not None:
        require_same_text(study.record, tuning)
    perplexity = trial.perplexity if trial is not None else None
    proof = Proof(
        text=tuning,
        perplexity=_known(bench, setting, tuning, store) if perplexity is None else perplexity,
        trust_remote_code=plan.model.trust_remote_code,
    )

    def card(record: Any) -> str:
        return model_card(record, setting, study, trial)

    return write_packed(bench, Plan.uniform(setting), directory, proof, card, progress)


def _known(bench: Bench, setting: Setting, tuning: Sequences, store: ResultStore) -> float | None:
    """What the setting scored when it was measured to the end; None where it was not."""
    key = measurement_key(bench, Plan.uniform(setting), tuning)
    if key not in store:
        return None
    result = recall_result(store, key)
    return None if result.score is None or result.outcome != "complete" else result.score.perplexity
