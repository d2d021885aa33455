"""From a setting, chosen by a person or found by a study, to a model directory.

Responsible for refusing early what cannot be written, and for writing what a study measured as it was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from hpo.deploy.model_card import model_card
from hpo.deploy.refining import Refining, gain_lines, refined_bench, text_of, with_refining_text
from hpo.study.choosing import require_same_bench, require_same_text
from hpo.study.record import Measured
from hpo.study.scores import Scores
from hpo.verdict.snapshot import Study
from hpo.workers.planning import kept_plan, plan_of
from objectives.budget import Budget, allocate, possible_plans
from objectives.errors import InputError
from objectives.evaluation import BenchPlan, load_bench
from objectives.export.deployment import require_devices, require_split
from objectives.export.formats import Export, Format, Proof, find_format
from objectives.export.limits import unfit_for_budgets
from objectives.export.manifest import Manifest
from objectives.export.writing import write_model
from objectives.limits import length_note
from objectives.model.roles import kept_in_16_bit, quantized_part
from objectives.progress import Progress
from objectives.refinement.refine import forgotten_where_codes_differ, require_refinable
from objectives.results import load_result, measurement_key
from objectives.rounding_notes import rounding_notes
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.plan import Plan
from storage.model_directory import disk_bytes, require_vacant
from storage.paths import Paths
from storage.results import ResultStore


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What to write.

    Attributes:
        plan: How to quantize; with a budget, the recipe of every Linear.
        budget: What the bits of the recipe are allocated under; None where the plan says them.
        study: Whose setting it is; model and text must then be the study's. None for a person's choice.
        measured: The study's trial, or its reference.
    """

    plan: Plan
    budget: Budget | None = None
    study: Study | None = None
    measured: Measured | None = None

    @classmethod
    def of(cls, study: Study, measured: Measured) -> "Chosen":
        """Choose what a study measured, uniform or under a budget."""
        setting = measured.setting
        assert setting is not None
        budget = Budget(bits_per_weight=setting.bit_budget) if setting.is_allocated else None
        return cls(plan=Plan.uniform(setting.recipe), budget=budget, study=study, measured=measured)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A model directory that was written.

    Attributes:
        directory: Where it is.
        plan: How it was quantized.
        manifest: Its `praqtune.json`.
        disk_bytes: What its files take.
        notes: What a person should know besides.
    """

    directory: Path
    plan: Plan
    manifest: Manifest
    disk_bytes: int
    notes: list[str]


def deploy(
    plan: BenchPlan,
    chosen: Chosen,
    directories: Mapping[str, Path],
    paths: Paths,
    progress: Progress,
    refining: Refining | None = None,
    devices: int = 1,
) -> dict[str, Written]:
    """Write the model quantized by a plan, or under a budget, in one format or in several; it is quantized once.

    Args:
        plan: Model and text; the first data set is what a written model is scored on, where its format is proven.
        chosen: How to quantize.
        directories: By the name of a format in `objectives.export.formats`; they must not exist, or be empty. All
            appear, or none does.
        paths: Where calibration and results are kept.
        progress: Told how far each phase is.
        refining: How its codes, scales, norms and biases change before; None for as they were rounded.
        devices: How many a runtime has to be able to split every Linear over.

    Returns:
        What was written, by the name of the format.

    Raises:
        InputError: If model, text, plan, budget, study and formats do not suit each other.
        QuantizationError: If a format cannot hold a scale.
        RunError: If a model of a proven format does not score what was measured.
        StorageError: If something is at a directory already, or the disk is full or refuses.
    """
    forms, store = {name: find_format(name) for name in directories}, ResultStore(paths.results)
    require_devices(list(forms.values()), devices)
    decided = _decided_plan(chosen, store)
    for name, form in forms.items():
        require_vacant(directories[name], 0)
        if decided is not None:
            form.require_holds(decided)
        elif unfit := unfit_for_budgets(form.limits, f"--format {name}", "--format compressed-tensors"):
            raise InputError(*unfit)
    if refining is not None:
        require_refinable(chosen.plan)
    data = plan.data
    bench, texts = load_bench(plan if refining is None else with_refining_text(plan, refining), paths, progress)
    tuning = texts[0]
    if chosen.study is not None:
        require_same_bench(chosen.study.record, bench)
        if any(form.proven for form in forms.values()):
            require_same_text(chosen.study.record, tuning)
    learned_from = None if refining is None else text_of(bench, texts[-2], texts[-1], refining)
    if decided is not None:
        settled, notes = decided, list[str]()
    else:
        settled, notes = _allocated(bench, chosen, list(forms.values()), devices, store, progress)
    for form in forms.values():
        require_split(form, settled, bench, devices)
    if refining is not None and learned_from is not None:
        for form in forms.values():
            form.require_holds(settled, bench)
        judged = list(zip(data, texts, strict=False))
        bench = refined_bench(bench, settled, refining, learned_from, judged, store, progress)
    export = Export(bench=bench, plan=settled, directories=directories)
    if any(form.proven for form in forms.values()):
        export = _with_proof(export, chosen, tuning, store, plan.model.trust_remote_code)
    with forgotten_where_codes_differ(store):
        manifests = write_model(export, progress)
    common = [*notes, *_notes(bench, tuning, next(iter(manifests.values())))]
    return {
        name: Written(
            directory=directories[name],
            plan=settled,
            manifest=manifest,
            disk_bytes=disk_bytes(directories[name]),
            notes=[*common, *forms[name].notes(bench.blocks), *manifest.notes],
        )
        for name, manifest in manifests.items()
    }


def _notes(bench: Bench, tuning: Sequences, manifest: Manifest) -> list[str]:
    """Say what a person should know of the model, whatever its format."""
    model, blocks = bench.model, bench.blocks
    texts = [bench.calibration.text, tuning]
    remarks = (quantized_part(model.module, blocks), kept_in_16_bit(blocks), length_note(model.module, texts))
    notes = [*model.notes, *(note for note in remarks if note is not None), *rounding_notes(manifest.layers)]
    if manifest.refinement is not None:
        notes += [manifest.refinement.sentence(), *gain_lines(manifest.refinement.gains)]
    return notes


def _decided_plan(chosen: Chosen, store: ResultStore) -> Plan | None:
    """Return the plan to write; None where bits have to be allocated first."""
    if chosen.budget is None:
        return chosen.plan
    return None if chosen.measured is None else kept_plan(chosen.measured, store)


def _allocated(
    bench: Bench, chosen: Chosen, forms: Sequence[Format], devices: int, store: ResultStore, progress: Progress
) -> tuple[Plan, list[str]]:
    """Allocate the budget; return the plan, and what a person should know of how it came about."""
    recipe = chosen.plan.only
    assert recipe is not None
    assert chosen.budget is not None
    # Of every plan that may come, so that what a format cannot hold is known before hours of measuring.
    for plan, form in product(possible_plans(recipe, bench.blocks), forms):
        form.require_holds(plan, bench)
        require_split(form, plan, bench, devices)
    if chosen.study is not None and chosen.measured is not None:
        return plan_of(chosen.study.record, chosen.measured, bench, store, progress), []
    allocated = allocate(bench, recipe, chosen.budget, store, progress)
    return allocated.plan, [allocated.note]


def _with_proof(
    export: Export, chosen: Chosen, tuning: Sequences, store: ResultStore, trust_remote_code: bool
) -> Export:
    """Add what the model has to score, and its card, which says what was measured."""
    plan, study, measured = export.plan, chosen.study, chosen.measured
    # What a study measured is the model before it was refined.
    perplexity = measured.perplexity if measured is not None and export.bench.refined is None else None
    if measured is not None and perplexity is not None:
        score = _score_of(measured, tuning, store)
    else:
        score = _measured_before(export.bench, plan, tuning, store)
        perplexity = None if score is None else score.perplexity

    def card(manifest: Manifest) -> str:
        return model_card(manifest, plan, study, measured)

    proof = Proof(text=tuning, perplexity=perplexity, score=score, trust_remote_code=trust_remote_code)
    return replace(export, proof=proof, card=card)


def _score_of(measured: Measured, tuning: Sequences, store: ResultStore) -> Score | None:
    """Return what a study measured by sequence; None where that is not kept, or is not of all of the text."""
    scores = [score for _, score in Scores(store).readable([measured])]
    return next((score for score in scores if score.clusters.tolist() == list(tuning.clusters)), None)


def _measured_before(bench: Bench, plan: Plan, tuning: Sequences, store: ResultStore) -> Score | None:
    """Look up what the plan scored when it was measured to the end; None where it was not."""
    key = measurement_key(bench, plan, tuning)
    if key not in store:
        return None
    result = load_result(store, key)
    return result.score if result.outcome == "complete" else None
