"""The model card of a packed model: what it is, how it came about, what it scores and how to load it.

Responsible for the Markdown alone. Everything it says was measured; what was not is not mentioned. May assume the
record that `objectives.export.packed` makes.
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
    record: Mapping[str, Any], setting: Setting, study: Study | None = None, trial: TrialRecord | None = None
) -> str:
    """The card, in Markdown with a YAML head.

    Args:
        record: The contents of `praqtune.json`.
        setting: How the model was quantized.
        study: The study that found the setting; None where a person gave it.
        trial: Its trial.
    """
    lines = [*_head(record), *_what(record, setting), *_proof(record)]
    if study is not None and trial is not None:
        lines += [*_study(study.record, trial), *_ranked(trial, study.ranking), *_confirmed(study.record, trial)]
    return "\n".join([*lines, *_loading(), *_origin(record)]) + "\n"


def _head(record: Mapping[str, Any]) -> Iterator[str]:
    name, published = record["model"]["name"], record["model"]["commit"] is not None
    data = ModelCardData(
        # A directory of this machine is no name that anyone else can look up.
        base_model=name if published else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["compressed-tensors", "int4"],
    )
    yield from ("---", data.to_yaml(), "---", "")
    yield from (f"# {name.rstrip('/').rpartition('/')[2]}, INT4", "")


def _what(record: Mapping[str, Any], setting: Setting) -> Iterator[str]:
    grid = "symmetric" if setting.symmetric else "asymmetric"
    groups = "one scale per output row" if setting.definition.per_row else f"groups of {setting.group_size} inputs"
    scaled = setting.definition.salience is not None
    scales = ", input scales folded into what produces the inputs" if scaled else ""
    source = record["calibration"]
    read = "n_calib" in setting.reads
    calibrated = f", calibrated on {source['samples']} sequences of {source['source']}" if read else ""
    yield (
        f"The Linears of the decoder blocks in packed 4-bit weights ({grid}, {groups}), everything else in "
        f"{record['model']['stored_as']}. Method: `{setting.label()}`{scales}{calibrated}."
    )
    yield ""
    yield (
        f"{record['stored_bits_per_weight']:.3f} bits per weight of the decoder blocks, counted in the file; the "
        f"whole model takes {record['model_bytes'] / 1e6:.1f} MB."
    )
    yield ""


def _proof(record: Mapping[str, Any]) -> Iterator[str]:
    proof = record["proof"]
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


def _ranked(trial: TrialRecord, levels: Sequence[SizeClassRanking]) -> Iterator[str]:
    level = next((level for level in levels if level.size_class == trial.size_class), None)
    own = None if level is None else next((row for row in level.rows if _is(row, trial)), None)
    if level is None or own is None:
        return
    shown = [row for row in level.rows if row is own or row is level.best or not isinstance(row.measured, TrialRecord)]
    yield f"{level.title}, perplexity above the best with paired 95 % intervals:"
    yield ""
    yield from ("| setting | perplexity | above the best |", "|---|---|---|")
    for row in shown:
        name = f"**{_named(row)}**" if row is own else _named(row)
        above = "best" if row is level.best else percent_text(row.difference)
        yield f"| {name} | {row.score.perplexity:.3f} | {above} |"
    yield ""
    yield from (level.verdict(), "")


def _is(row: Ranked, trial: TrialRecord) -> bool:
    return isinstance(row.measured, TrialRecord) and row.measured.number == trial.number


def _named(row: Ranked) -> str:
    return f"{row.measured.name} ({row.measured.label})"


def _confirmed(study: StudyRecord, trial: TrialRecord) -> Iterator[str]:
    """What held-out text said, where it is this trial that was confirmed."""
    found = study.confirmation
    if found is None or found["winner"] != trial.name:
        return
    yield from (found["sentence"], "")
    yield from ("| held-out text | setting | perplexity |", "|---|---|---|")
    for row in found["rows"]:
        if row["name"] in (trial.name, FULL_PRECISION):
            yield f"| {row['dataset']} | {row['name']} | {row['perplexity']:.3f} |"
    yield ""
    yield from ("| held-out text | compared | perplexity | p after Holm |", "|---|---|---|---|")
    for row in found["comparisons"]:
        yield f"| {row['dataset']} | against {row['against']} | {interval_text(**row['percent'])} | {row['holm']:.4f} |"
    yield ""


def _loading() -> Iterator[str]:
    yield from ("## Loading", "")
    yield from ("```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield 'model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype="auto")  # needs compressed-tensors'
    yield from ("tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)", "```", "")
    yield from ("```bash", "vllm serve DIRECTORY", "```", "")


def _origin(record: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    yield f"Made with {versions}; `praqtune.json` has every setting and what was chosen for each Linear."
