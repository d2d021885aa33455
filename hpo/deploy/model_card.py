"""The model card of a packed model: what it is, how it came about, what it scores and how to load it.

Responsible for the Markdown alone. Everything it says was measured; what was not is not mentioned. May assume the
manifest of a packed model.
"""

from collections.abc import Iterator

from huggingface_hub import ModelCardData

from hpo.study.record import FULL_PRECISION, Measured, StudyRecord, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.snapshot import Study
from hpo.verdict.words import flips_text, kl_text, number
from objectives.errors import InputError
from objectives.export.deployment import Deployment
from objectives.export.formats import RUNTIMES
from objectives.export.manifest import Manifest
from objectives.rounding_notes import rounding_notes
from quant.plan import Plan

# By the name of a format: what transformers needs to load it, and what serves it.
LOADED_WITH = {"compressed-tensors": "compressed-tensors", "gptq": "gptqmodel and optimum", "awq": "gptqmodel"}
SERVED_BY = {
    "compressed-tensors": "vllm serve DIRECTORY",
    "gptq": "vllm serve DIRECTORY",
    "awq": "vllm serve DIRECTORY",
    "gguf": "llama-server -m DIRECTORY/model.gguf",
    "gguf-q8": "llama-server -m DIRECTORY/model.gguf",
    "mlx": "mlx_lm.server --model DIRECTORY",
}
# By the name of a format: the library that a hub offers to load it with, where that is not transformers.
LIBRARIES = {"gguf": "gguf", "gguf-q8": "gguf", "mlx": "mlx"}


def model_card(manifest: Manifest, plan: Plan, study: Study | None = None, measured: Measured | None = None) -> str:
    """Write the card, in Markdown with a YAML head.

    Args:
        manifest: The contents of `praqtune.json`.
        plan: How the model was quantized.
        study: The study that found the setting; None where a person gave it.
        measured: Its trial, or its reference.
    """
    lines = [*_head(manifest), *_what(manifest, plan), *_refinement(manifest), *_proof(manifest)]
    if study is not None and measured is not None:
        lines += [
            *_study(study.record, measured, manifest),
            *_ranked(measured, study),
            *_confirmed(study.record, measured),
        ]
    return "\n".join([*lines, *_loading(manifest, plan), *_origin(manifest)]) + "\n"


def _head(manifest: Manifest) -> Iterator[str]:
    name, published = manifest.model.name, manifest.model.commit is not None
    data = ModelCardData(
        # A directory of this machine is no name that anyone else can look up.
        base_model=name if published else None,
        library_name=LIBRARIES.get(manifest.weights, "transformers"),
        pipeline_tag="text-generation",
        tags=[manifest.weights, "int4"],
    )
    yield from ("---", data.to_yaml(), "---", "")
    yield from (f"# {name.rstrip('/').rpartition('/')[2]}, INT4", "")


def _what(manifest: Manifest, plan: Plan) -> Iterator[str]:
    quantized = [setting for setting in plan.settings if not setting.is_unquantized]
    scaled = any(setting.definition.salience is not None for setting in quantized)
    scales = ", input scales folded into what produces the inputs" if scaled else ""
    text = manifest.calibration
    read = any("n_calib" in setting.reads for setting in quantized)
    through = ", every token sent through every expert" if text.route_all else ""
    calibrated = f", calibrated on {text.samples} sequences of {text.source}{through}" if read else ""
    yield (
        f"The Linears of the decoder blocks in {_weights(plan)}, everything else in "
        f"{manifest.model.stored_as}. Method: `{plan.label()}`{scales}{calibrated}."
    )
    yield ""
    if plan.only is None:
        yield from ("| stored as | Linears |", "|---|---|")
        counts: dict[str, int] = {}
        for layer in manifest.layers:
            kind = plan.setting_for(layer.name).stored_as
            counts[kind] = counts.get(kind, 0) + 1
        yield from (f"| {kind} | {count} |" for kind, count in sorted(counts.items()))
        yield ""
    if manifest.part:
        yield from (f"Of this model, {manifest.part}.", "")
    for note in rounding_notes(manifest.layers):
        yield from (f"{note[0].upper()}{note[1:]}.", "")
    yield (
        f"{manifest.stored_bits_per_weight:.3f} bits per weight of the decoder blocks, counted in the file; the "
        f"whole model takes {manifest.model_bytes / 1e6:.1f} MB."
    )
    yield ""


def _refinement(manifest: Manifest) -> Iterator[str]:
    """Say what was tuned after rounding, on what, and what that changed on other text."""
    refinement = manifest.refinement
    if refinement is None:
        return
    sentence = refinement.sentence()
    yield from ("## Refined", "", f"{sentence[0].upper()}{sentence[1:]}.", "")
    if refinement.trials:
        yield from (
            "| steps for codes | drift | tuned | rate | tokens a step | passes | steps | KL held back |",
            "|---|---|---|---|---|---|---|---|",
        )
        for trial in refinement.trials:
            ended = ", pruned" if trial.pruned else "" if trial.finished else ", ended by its time"
            taken = f"{trial.steps}{ended}"
            codes = f"{trial.code_steps} | {trial.code_drift:g}" if trial.code_steps else "0 | – "
            tuned = f"{', '.join(trial.parts)} | {trial.rate:.2g} | {trial.batch_tokens} | {trial.passes}"
            yield f"| {codes} | {tuned} | {taken} | {trial.kl:.4f} |"
        yield ""
    if refinement.gains:
        yield "On text that had no part in it, per token, with paired 95 % intervals:"
        yield ""
        yield from ("| text | measure | before, after, difference | |", "|---|---|---|---|")
        for gain in refinement.gains:
            for name, change in (("KL, nats", gain.kl), ("NLL, nats", gain.nll), ("share of flips", gain.flips)):
                yield f"| {gain.source} ({gain.part}) | {name} | {change} | {change.verdict} |"
        yield ""


def _weights(plan: Plan) -> str:
    """Say what weights are stored as, in words where all are alike."""
    setting = plan.only
    if setting is None:
        return "packed weights of several kinds"
    scheme = "symmetric" if setting.symmetric else "asymmetric"
    groups = "one scale per output row" if setting.definition.per_row else f"groups of {setting.group_size} inputs"
    return f"packed {setting.bits}-bit weights ({scheme}, {groups})"


def _proof(manifest: Manifest) -> Iterator[str]:
    proof = manifest.proof
    if proof is None:
        return
    yield (
        f"Perplexity on {proof.sequences} sequences of {proof.source}: {proof.packed:.4f}, loaded from these "
        f"files by {proof.reader} in a fresh process; {proof.measured:.4f} was measured when it was quantized."
    )
    yield ""
    if proof.tensors is not None:
        yield (
            f"All {proof.tensors} tensors that were loaded there are equal, bit for bit, to those of the quantized "
            f"model, the codes of its {proof.linears} quantized Linears among them."
        )
        yield ""
    for note in manifest.notes:
        yield from (f"{note[0].upper()}{note[1:]}.", "")


def _study(study: StudyRecord, measured: Measured, manifest: Manifest) -> Iterator[str]:
    tuning = study.contract.tuning
    subject = measured.name.capitalize() if isinstance(measured, TrialRecord) else f"The reference {measured.name}"
    yield from ("## The study", "")
    yield (
        f"{subject} of the study `{study.name}`, which measured {len(study.complete)} settings to the "
        f"end and gave {len(study.pruned)} up, on {tuning.sequences} sequences of {tuning.seq_len} tokens of "
        f"{tuning.source} ({tuning.protocol})."
    )
    if manifest.refinement is not None:
        yield "It measured the model before refinement."
    yield ""


def _ranked(measured: Measured, study: Study) -> Iterator[str]:
    ranking = next((ranking for ranking in _leading_first(study) if _row(ranking, measured) is not None), None)
    if ranking is None:
        return
    own_row, chosen = _row(ranking, measured), study.recommended(ranking)
    rows = [
        row
        for row in ranking.rows
        if row is own_row or row is ranking.best or not isinstance(row.measured, TrialRecord)
    ]
    yield f"{ranking.title}, {ranking.objective.label} above the best with paired 95 % intervals:"
    yield ""
    yield from ("| setting | perplexity | above the best | KL, nats per token | flips, % |", "|---|---|---|---|---|")
    for row in rows:
        name = f"**{_name_and_label(row)}**" if row is own_row else _name_and_label(row)
        above = "best" if row is ranking.best else ranking.objective.change_text(row.difference)
        yield f"| {name} | {row.score.perplexity:.3f} | {above} | {kl_text(row.kl)} | {flips_text(row.flips)} |"
    yield ""
    yield from (chosen.verdict, "", chosen.sentence(), "")


def _leading_first(study: Study) -> list[SizeClassRanking]:
    return sorted(study.rankings, key=lambda ranking: ranking is not study.lead)


def _row(ranking: SizeClassRanking, measured: Measured) -> Ranked | None:
    """Find what was measured among the rows; results have keys of their own."""
    return next((row for row in ranking.rows if row.measured.result == measured.result), None)


def _name_and_label(row: Ranked) -> str:
    return f"{row.measured.name} ({row.measured.label})"


def _confirmed(study: StudyRecord, measured: Measured) -> Iterator[str]:
    """Say what held-out text showed, where it scored this setting."""
    confirmation = study.confirmation
    if confirmation is None:
        return
    rows = [row for row in confirmation.rows if row.name in (measured.name, confirmation.winner, FULL_PRECISION)]
    comparisons = confirmation.comparisons
    if confirmation.size_class != measured.size_class or all(row.name != measured.name for row in confirmation.rows):
        full = [row for row in rows if row.name == FULL_PRECISION]
        members = [member for member in confirmation.front if member.size_class == measured.size_class]
        member = next((member for member in members if member.name == measured.name), None)
        if member is None:
            return
        rows, comparisons = [*full, *member.rows], member.comparisons
    yield from (confirmation.sentence, "")
    yield from ("| held-out text | setting | perplexity | KL, nats per token | flips, % |", "|---|---|---|---|---|")
    for row in rows:
        measures = f"{row.perplexity:.3f} | {number(row.kl, 4)} | {number(row.flips, 1)}"
        yield f"| {row.dataset} | {row.name} | {measures} |"
    yield ""
    yield from (f"| held-out text | compared | {study.objective.short} | p after Holm |", "|---|---|---|---|")
    for compared in comparisons:
        change = study.objective.interval_text(compared.change)
        yield f"| {compared.dataset} | {compared.name} against {compared.against} | {change} | {compared.holm:.4f} |"
    yield ""


def _loading(manifest: Manifest, plan: Plan) -> Iterator[str]:
    yield from ("## Loading", "")
    needed = LOADED_WITH.get(manifest.weights)
    if needed is not None:
        yield from ("```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
        yield f'model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype="auto")  # needs {needed}'
        yield from ("tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)", "```", "")
    if manifest.weights in SERVED_BY and _is_served(manifest, plan):
        yield from ("```bash", SERVED_BY[manifest.weights], "```", "")


def _is_served(manifest: Manifest, plan: Plan) -> bool:
    """Return whether the runtime of a format has kernels for the plan; what is written need not be served by it."""
    for runtime, form in RUNTIMES.items():
        if form == manifest.weights:
            try:
                Deployment(runtime=runtime).require_kernels(plan)
            except InputError:
                return False
    return True


def _origin(manifest: Manifest) -> Iterator[str]:
    versions = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
    yield f"Made with {versions}; `praqtune.json` has every setting and what was chosen for each Linear."
