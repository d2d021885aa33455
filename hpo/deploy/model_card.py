"""The model card of a packed model: what it is, how it came about, what it scores and how to load it.

Responsible for the Markdown alone. Everything it says was measured; what was not is not mentioned. May assume the
manifest that `objectives.export.packed` makes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from hpo.study.record import FULL_PRECISION, StudyRecord, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.snapshot import Study
from hpo.verdict.words import interval_text, percent_text
from quant.setting import Setting


def model_card(
    manifest: Mapping[str, Any], setting: Setting, study: Study | None = None, trial: TrialRecord | None = None
) -> str:
    """Write the card, in Markdown with a YAML head.

    Args:
        manifest: The contents of `praqtune.json`.
        setting: How the model was quantized.
        study: The study that found the setting; None where a person gave it.
        trial: Its trial.
    """
    lines = [*_head(manifest), *_what(manifest, setting), *_proof(manifest)]
    if study is not None and trial is not None:
        lines += [*_study(study.record, trial), *_ranked(trial, study.rankings), *_confirmed(study.record, trial)]
    return "\n".join([*lines, *_loading(), *_origin(manifest)]) + "\n"


def _head(manifest: Mapping[str, Any]) -> Iterator[str]:
    name, published = manifest["model"]["name"], manifest["model"]["commit"] is not None
    data = ModelCardData(
        # A directory of this machine is no name that anyone else can look up.
        base_model=name if published else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["compressed-tensors", "int4"],
    )
    yield from ("---", data.to_yaml(), "---", "")
    yield from (f"# {name.rstrip('/').rpartition('/')[2]}, INT4", "")


def _what(manifest: Mapping[str, Any], setting: Setting) -> Iterator[str]:
    scheme = "symmetric" if setting.symmetric else "asymmetric"
    groups = "one scale per output row" if setting.definition.per_row else f"groups of {setting.group_size} inputs"
    scaled = setting.definition.salience is not None
    scales = ", input scales folded into what produces the inputs" if scaled else ""
    source = manifest["calibration"]
    read = "n_calib" in setting.reads
    calibrated = f", calibrated on {source['samples']} sequences of {source['source']}" if read else ""
    yield (
        f"The Linears of the decoder blocks in packed 4-bit weights ({scheme}, {groups}), everything else in "
        f"{manifest['model']['stored_as']}. Method: `{setting.label()}`{scales}{calibrated}."
    )
    yield ""
    if manifest.get("part"):
        yield from (f"Of this model, {manifest['part']}.", "")
    yield (
        f"{manifest['stored_bits_per_weight']:.3f} bits per weight of the decoder blocks, counted in the file; the "
        f"whole model takes {manifest['model_bytes'] / 1e6:.1f} MB."
    )
    yield ""


def _proof(manifest: Mapping[str, Any]) -> Iterator[str]:
    proof = manifest["proof"]
    yield (
        f"Perplexity on {proof['sequences']} sequences of {proof['source']}: {proof['packed']:.4f}, loaded from these "
        f"files by transformers in a fresh process; {proof['measured']:.4f} was measured when it was quantized."
    )
    yield ""


def _study(study: StudyRecord, trial: TrialRecord) -> Iterator[str]:
    tuning = study.contract.tuning
    yield from ("## The study", "")
    yield (
        f"{trial.name.capitalize()} of the study `{study.name}`, which measured {len(study.complete)} settings to the "
        f"end and gave {len(study.pruned)} up, on {tuning.sequences} sequences of {tuning.seq_len} tokens of "
        f"{tuning.source} ({tuning.protocol})."
    )
    yield ""


def _ranked(trial: TrialRecord, rankings: Sequence[SizeClassRanking]) -> Iterator[str]:
    ranking = next((ranking for ranking in rankings if ranking.size_class == trial.size_class), None)
    own_row = None if ranking is None else next((row for row in ranking.rows if _is(row, trial)), None)
    if ranking is None or own_row is None:
        return
    rows = [
        row
        for row in ranking.rows
        if row is own_row or row is ranking.best or not isinstance(row.measured, TrialRecord)
    ]
    yield f"{ranking.title}, perplexity above the best with paired 95 % intervals:"
    yield ""
    yield from ("| setting | perplexity | above the best |", "|---|---|---|")
    for row in rows:
        name = f"**{_name_and_label(row)}**" if row is own_row else _name_and_label(row)
        above = "best" if row is ranking.best else percent_text(row.difference)
        yield f"| {name} | {row.score.perplexity:.3f} | {above} |"
    yield ""
    yield from (ranking.verdict(), "")


def _is(row: Ranked, trial: TrialRecord) -> bool:
    return isinstance(row.measured, TrialRecord) and row.measured.number == trial.number


def _name_and_label(row: Ranked) -> str:
    return f"{row.measured.name} ({row.measured.label})"


def _confirmed(study: StudyRecord, trial: TrialRecord) -> Iterator[str]:
    """Say what held-out text showed, where it is this trial that was confirmed."""
    confirmation = study.confirmation
    if confirmation is None or confirmation.winner != trial.name:
        return
    yield from (confirmation.sentence, "")
    yield from ("| held-out text | setting | perplexity |", "|---|---|---|")
    for row in confirmation.rows:
        if row.name in (trial.name, FULL_PRECISION):
            yield f"| {row.dataset} | {row.name} | {row.perplexity:.3f} |"
    yield ""
    yield from ("| held-out text | compared | perplexity | p after Holm |", "|---|---|---|---|")
    for compared in confirmation.comparisons:
        percent = interval_text(**vars(compared.percent))
        yield f"| {compared.dataset} | against {compared.against} | {percent} | {compared.holm:.4f} |"
    yield ""


def _loading() -> Iterator[str]:
    yield from ("## Loading", "")
    yield from ("```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield 'model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype="auto")  # needs compressed-tensors'
    yield from ("tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)", "```", "")
    yield from ("```bash", "vllm serve DIRECTORY", "```", "")


def _origin(manifest: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{package} {version}" for package, version in manifest["versions"].items())
    yield f"Made with {versions}; `praqtune.json` has every setting and what was chosen for each Linear."
