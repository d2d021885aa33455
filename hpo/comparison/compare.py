"""Methods, what a study recommends and ready-made models side by side, straight through: lay out, measure, judge.

Responsible for measuring each row once, on the same token sequences; what the result store knows is not measured
again. Ready-made models are loaded one after the other, after the model that is quantized is let go. May assume that
settings were validated when they were made.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo.comparison.entries import Entry, Kind
from hpo.comparison.plan import ComparePlan
from hpo.comparison.verdict import Comparison, judge
from hpo.study.record import FULL_PRECISION, Measured, TrialRecord
from hpo.workers.measuring import measure
from objectives.errors import InputError, RunError
from objectives.evaluation import BenchPlan, LaidOut, lay_out, load_bench
from objectives.model.provenance import read_provenance
from objectives.progress import Progress
from objectives.quantization import stored_bytes
from objectives.suitability import require_suitable
from objectives.teacher import Original, original_of
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult
from quant.errors import QuantizationError
from quant.plan import Plan
from quant.recipes import recipe_name
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore

log = logging.getLogger(__name__)


def compare(plan: ComparePlan, paths: Paths, progress: Progress) -> Comparison:
    """Measure everything that is compared, and judge it.

    Raises:
        InputError: If the model, the text or a setting cannot be used, before anything is measured.
        RunError: If full precision cannot be measured.
        StorageError: If the disk is full or refuses.
    """
    store = ResultStore(paths.results)
    entries, texts, original, about, notes = _settings(plan, paths, store, progress)
    bench_plan = replace(plan.bench, model=replace(plan.bench.model, dtype=about["model"]["dtype"], revision=None))
    for name, directory in plan.models.items():
        try:
            entry, remarks = _model(name, directory, bench_plan, texts, original, paths, store, progress)
        except (InputError, RunError) as error:
            notes.append(f"{name} is left out: {error}")
        else:
            entries.append(entry)
            notes += remarks
    return judge(about, [text.source for text in texts], entries, notes)


def _settings(
    plan: ComparePlan, paths: Paths, store: ResultStore, progress: Progress
) -> tuple[list[Entry], list[Sequences], Original, dict[str, Any], list[str]]:
    """Measure the rows of the model itself. It is let go afterwards, so that there is room for others."""
    laid_out = lay_out(plan.bench, paths, progress)
    bench, texts = laid_out.bench, laid_out.data
    requested = list(_requested_rows(plan))
    for _, _, setting in requested:
        require_suitable(bench.blocks, Plan.uniform(setting), bench.allow_partial_groups)
        bench.calibration.first(setting.n_calib)
    notes = [*laid_out.notes, *_calibration_notes(laid_out), *_study_notes(plan, laid_out)]
    entries = [_entry("full precision", FULL_PRECISION, None, measure(bench, store, None, texts, progress))]
    for kind, measured, setting in requested:
        name = recipe_name(setting) if measured is None else measured.name
        try:
            results = measure(bench, store, setting, texts, progress)
        except (RunError, QuantizationError) as error:
            notes.append(f"{name} is left out: {error}")
        else:
            entries.append(_entry(kind, name, measured, results))
    original = original_of(bench.model, texts, [bench.teacher(text, progress) for text in texts])
    return entries, texts, original, _about(plan, laid_out), notes


def _requested_rows(plan: ComparePlan) -> Iterator[tuple[Kind, Measured | None, Setting]]:
    yield from (("method", None, setting) for setting in plan.settings)
    measured = plan.study_choice
    if measured is not None and measured.setting is not None:
        yield ("trial" if isinstance(measured, TrialRecord) else "method"), measured, measured.setting


def _entry(kind: Kind, name: str, measured: Measured | None, results: Sequence[TrialResult]) -> Entry:
    first = results[0]
    scores = tuple(result.score for result in results if result.score is not None)
    facts: dict[str, Any] = {
        "name": name,
        "setting": first.setting,
        "perplexity": scores[0].perplexity,
        "bits_per_weight": first.size.bits_per_weight,
        "model_bytes": first.size.model_bytes,
        "seconds": dict(first.seconds),
    }
    return Entry(
        kind=kind,
        measured=Measured(result=None, **facts) if measured is None else replace(measured, **facts),
        scores=scores,
        score_seconds=tuple(result.seconds["score"] for result in results),
        packed=first.setting is not None,
    )


def _model(
    name: str,
    directory: Path,
    plan: BenchPlan,
    texts: Sequence[Sequences],
    original: Original,
    paths: Paths,
    store: ResultStore,
    progress: Progress,
) -> tuple[Entry, list[str]]:
    """Measure the row of a ready-made model, and note what a reader must know of it.

    Its divergence is that from the model that is compared, not from what it may once have been itself.

    Raises:
        InputError: If it cannot be loaded, or reads the text as other tokens.
        RunError: If its values are not finite.
    """
    model = replace(plan.model, name=str(directory), accept_quantized=True)
    bench_plan = replace(plan, model=model, allow_partial=True)
    bench, own_texts = load_bench(bench_plan, paths, progress)
    differing = [
        text.source for text, tokens in zip(texts, own_texts, strict=True) if text.fingerprint() != tokens.fingerprint()
    ]
    if differing:
        raise InputError(
            f"its tokenizer reads {', '.join(differing)} as other tokens, and perplexities of different tokens cannot "
            "be compared"
        )
    bench = replace(bench, original=original)
    entry = _entry("model", name, None, measure(bench, store, None, texts, progress))
    facts = _packed_facts(directory) or _quantized_facts(bench)
    if facts is None:
        return entry, [f"{name}: its bits and bytes are those of its dense weights; {directory} says nothing else"]
    return replace(entry, measured=replace(entry.measured, **facts), packed=True), []


def _packed_facts(directory: Path) -> dict[str, Any] | None:
    """Read how a model that we wrote was quantized, and what it takes when packed; None for any other model."""
    provenance = read_provenance(directory)
    if provenance is None:
        return None
    try:
        parameters: dict[str, Any] = {**provenance.parameters, "method": provenance.method}
        return {
            "setting": Setting(**parameters),
            "bits_per_weight": provenance.bits_per_weight,
            "model_bytes": provenance.model_bytes,
        }
    except (TypeError, ValueError) as error:
        log.warning("%s says of itself what cannot be understood (%s)", directory, error)
        return None


def _quantized_facts(bench: Bench) -> dict[str, Any] | None:
    """Return what a model that others quantized takes, by its configuration, else by its files; None for any other."""
    quantized = bench.model.quantized
    if quantized is None:
        return None
    size = stored_bytes(bench.model)
    counted = 8 * size / sum(parameter.numel() for parameter in bench.model.module.parameters())
    return {"bits_per_weight": counted if quantized.bits is None else quantized.bits, "model_bytes": size}


def _calibration_notes(laid_out: LaidOut) -> Iterator[str]:
    source, first = laid_out.bench.calibration.text.source, laid_out.data[0].source
    if source != first:
        yield f"calibrated on {source}, so {first} is in-distribution in name only"


def _study_notes(plan: ComparePlan, laid_out: LaidOut) -> Iterator[str]:
    measured = plan.study_choice
    if plan.study is None or measured is None:
        return
    yield from plan.notes
    contract = plan.study.contract
    if contract.model.fingerprint != laid_out.bench.model.fingerprint:
        yield f"{measured.name} was found on {contract.model.name}, other weights or another type than these"
    tuned = contract.tuning.source
    if isinstance(measured, TrialRecord) and any(text.source == tuned for text in laid_out.data):
        label = plan.study.objective.label
        yield f"{measured.name} was chosen for its {label} on text of {tuned}, which flatters it there"


def _about(plan: ComparePlan, laid_out: LaidOut) -> dict[str, Any]:
    model, calibration = laid_out.bench.model, laid_out.bench.calibration
    text = calibration.text
    first = plan.bench.data[0]
    return {
        "model": {
            "name": model.name,
            "commit": model.commit,
            "fingerprint": model.fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "calibration": {
            "source": text.source,
            "samples": len(text),
            "fingerprint": text.fingerprint(),
            "route_all": calibration.route_all,
        },
        "datasets": [
            {
                "source": text.source,
                "sequences": len(text),
                "documents": len(set(text.clusters)),
                "fingerprint": text.fingerprint(),
            }
            for text in laid_out.data
        ],
        "protocol": first.protocol,
        "seq_len": first.length,
        "seed": plan.bench.seed,
    }
