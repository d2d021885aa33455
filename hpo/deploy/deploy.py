"""From a setting, chosen by a person or found by a study, to a model directory.

Responsible for refusing early what cannot be written, and for writing what a study measured as it was measured.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from hpo.deploy.model_card import model_card
from hpo.deploy.refining import Refining, gain_lines, refined_bench, with_refining_text
from hpo.study.choosing import require_same_bench, require_same_text
from hpo.study.record import Measured
from hpo.verdict.snapshot import Study
from objectives.evaluation import BenchPlan, load_bench
from objectives.export.formats import Export, Proof, find_format
from objectives.export.manifest import Manifest
from objectives.limits import length_note
from objectives.model.roles import kept_in_16_bit, quantized_part
from objectives.progress import Progress
from objectives.quantization import rounding_notes
from objectives.refinement.options import RefinementText
from objectives.refinement.refine import require_refinable
from objectives.results import load_result, measurement_key
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from storage.model_directory import disk_bytes, require_vacant
from storage.paths import Paths
from storage.results import ResultStore


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What to write.

    Attributes:
        setting: How to quantize.
        study: Whose setting it is; model and text must then be the study's. None for a person's choice.
        measured: The study's trial, or its reference.
    """

    setting: Setting
    study: Study | None = None
    measured: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """A model directory that was written.

    Attributes:
        directory: Where it is.
        manifest: Its `praqtune.json`.
        disk_bytes: What its files take.
        notes: What a person should know besides.
    """

    directory: Path
    manifest: Manifest
    disk_bytes: int
    notes: list[str]


def deploy(
    plan: BenchPlan,
    chosen: Chosen,
    directory: Path,
    name: str,
    paths: Paths,
    progress: Progress,
    refining: Refining | None = None,
) -> Written:
    """Write the model quantized by a setting to `directory`.

    Args:
        plan: Model and text; the first data set is what a written model is scored on, where its format is proven.
        chosen: How to quantize.
        directory: Must not exist, or be empty.
        name: The name of a format in `objectives.export.formats`.
        paths: Where calibration and results are kept.
        progress: Told how far each phase is.
        refining: How its scales, norms and biases are tuned before; None for as they were rounded.

    Raises:
        InputError: If model, text, setting, study and format do not suit each other.
        RunError: If a model of a proven format does not score what was measured.
        StorageError: If something is at `directory` already, or the disk is full or refuses.
    """
    form, settled = find_format(name), Plan.uniform(chosen.setting)
    require_vacant(directory, 0)
    form.require_holds([], settled)
    if refining is not None:
        require_refinable(settled)
    data = plan.data
    bench, texts = load_bench(plan if refining is None else with_refining_text(plan, refining), paths, progress)
    tuning = texts[0]
    if chosen.study is not None:
        require_same_bench(chosen.study.record, bench)
    if refining is not None:
        form.require_holds(bench.blocks, settled)
        *_, training, validation = texts
        text = RefinementText(training=training, validation=validation)
        judged, store = list(zip(data, texts, strict=False)), ResultStore(paths.results)
        bench = refined_bench(bench, chosen.setting, refining, text, judged, store, progress)
    export = Export(bench=bench, plan=settled, directory=directory)
    if form.proven:
        export = _with_proof(export, chosen, tuning, ResultStore(paths.results), plan.model.trust_remote_code)
    manifest = form.write(export, progress)
    model, blocks = bench.model, bench.blocks
    remarks = (
        quantized_part(model.module, blocks),
        kept_in_16_bit(blocks),
        length_note(model.module, [bench.calibration.text, tuning]),
    )
    notes = [*model.notes, *(note for note in remarks if note is not None), *rounding_notes(manifest.layers)]
    if manifest.refinement is not None:
        notes += [manifest.refinement.sentence(), *gain_lines(manifest.refinement.gains)]
    return Written(
        directory=directory,
        manifest=manifest,
        disk_bytes=disk_bytes(directory),
        notes=[*notes, *form.notes(blocks)],
    )


def _with_proof(
    export: Export, chosen: Chosen, tuning: Sequences, store: ResultStore, trust_remote_code: bool
) -> Export:
    """Add what the model has to score, and its card, which says what was measured."""
    setting, study, measured = chosen.setting, chosen.study, chosen.measured
    if study is not None:
        require_same_text(study.record, tuning)
    # What a study measured is the model before it was refined.
    perplexity = measured.perplexity if measured is not None and export.bench.refined is None else None
    if perplexity is None:
        perplexity = _measured_before(export.bench, setting, tuning, store)

    def card(manifest: Manifest) -> str:
        return model_card(manifest, setting, study, measured)

    proof = Proof(text=tuning, perplexity=perplexity, trust_remote_code=trust_remote_code)
    return replace(export, proof=proof, card=card)


def _measured_before(bench: Bench, setting: Setting, tuning: Sequences, store: ResultStore) -> float | None:
    """Look up what the setting scored when it was measured to the end; None where it was not."""
    key = measurement_key(bench, Plan.uniform(setting), tuning)
    if key not in store:
        return None
    result = load_result(store, key)
    return None if result.score is None or result.outcome != "complete" else result.score.perplexity
