"""Quantize a model once, write it in every format that is asked for, and prove each.

Responsible for the order of that: refuse, quantize, write all, score each as whoever deploys it would, and only then
let the directories appear. May assume that the bench was laid out for the model; `storage.model_directory` makes a
directory whole or absent.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from objectives.errors import RunError
from objectives.export.formats import Export, Format, Proof, RoundedParts, Stored, find_format
from objectives.export.limits import quantized_linears
from objectives.export.manifest import Manifest, ProvenScore, file_hashes, make_manifest, write_manifest
from objectives.export.rescoring import rescore
from objectives.progress import Progress
from objectives.refined import owners
from objectives.scoring import score_all
from objectives.text.sequences import Sequences
from objectives.trial import Bench, Quantized, quantized
from quant.plan import Plan
from quant.scheme import loaded
from storage.files import write_file
from storage.model_directory import new_directory, require_vacant

CARD = "README.md"
MOST_APART = 1e-3
"""Of the perplexity that was measured: what a written model may score differently."""
MOST_APART_UNFOLDED = 5e-3
"""Of the perplexity without folded scales, which a 16-bit type computes with other roundings."""


def write_model(export: Export, progress: Progress) -> dict[str, Manifest]:
    """Quantize a model and write it in every format of `export`; all directories appear, proven, or none does.

    Returns:
        The contents of `praqtune.json` by the name of the format.

    Raises:
        InputError: If a format cannot hold the plan, or the plan does not suit the model or the text.
        QuantizationError: If a weight is not finite.
        RunError: If a result does not score what was measured.
        StorageError: If something is at a directory already, or the disk is full or refuses.
    """
    bench, plan, proof = export.bench, export.plan, export.proof
    forms = {name: find_format(name) for name in export.directories}
    for name, form in forms.items():
        form.require_holds(plan, bench)
        require_vacant(export.directories[name], _needed_bytes(bench, form))
    proven = any(form.proven for form in forms.values())
    assert proof is not None or not proven
    manifests: dict[str, Manifest] = {}
    with ExitStack() as stack:
        written: dict[str, tuple[Path, Stored]] = {}
        expected: dict[str, float] = {}
        differently: dict[str, str] = {}
        with quantized(bench, plan, progress, with_codes=proven) as result:
            measured = _measured(bench, proof, progress) if proof is not None and proven else None
            for name, form in forms.items():
                phase = f"writing {export.directories[name]}"
                progress(phase, 0, 1)
                place = stack.enter_context(new_directory(export.directories[name]))
                stored = form.write(bench, plan, result.codes, place)
                written[name] = place, stored
                progress(phase, 1, 1)
                if form.proven and proof is not None and measured is not None:
                    rounded = form.rounded(bench, plan, result.codes)
                    expected[name] = _expected(rounded, bench, proof, measured, progress)
                    differently |= {} if rounded is None else {name: rounded.parts}
        unfolded = (
            None if proof is None or not proven else unfolded_perplexity(bench, plan, result, proof.text, progress)
        )
        scores = {} if unfolded is None else _scores(forms, written, bench, proof, progress)
        for name, form in forms.items():
            place, stored = written[name]
            manifest = replace(make_manifest(bench, plan, result.layers, weights=name), notes=stored.notes)
            if name in scores and proof is not None and measured is not None and unfolded is not None:
                score = scores[name]
                _require_equal(name, score, expected[name])
                if name in differently:
                    note = _rounded_note(differently[name], expected[name], measured)
                    manifest = replace(manifest, notes=(*manifest.notes, note))
                _require_folds(name, score, unfolded)
                proven_score = ProvenScore(
                    source=proof.text.source,
                    sequences=len(proof.text),
                    measured=expected[name],
                    unfolded=unfolded,
                    packed=score,
                    reader=form.reader(),
                )
                bits = None if stored.linear_bytes is None else _stored_bits(bench, plan, stored.linear_bytes)
                manifest = replace(manifest, stored_bits_per_weight=bits, proof=proven_score)
                if export.card is not None:
                    write_file(place / CARD, export.card(manifest).encode())
                manifest = replace(manifest, files=file_hashes(place))
            write_manifest(place, manifest)
            manifests[name] = manifest
    return manifests


def _scores(
    forms: Mapping[str, Format],
    written: Mapping[str, tuple[Path, Stored]],
    bench: Bench,
    proof: Proof | None,
    progress: Progress,
) -> dict[str, float]:
    """Return the perplexities of what is proven, each as its format is loaded."""
    assert proof is not None
    loaders = {written[name][0]: form.loader() for name, form in forms.items() if form.proven}
    scores = rescore(loaders, proof.text, bench.model, progress, proof.trust_remote_code)
    return {name: scores[place].perplexity for name, (place, _) in written.items() if place in scores}


def _needed_bytes(bench: Bench, form: Format) -> int:
    parameters = list(bench.model.module.parameters())
    return sum(parameter.numel() * (1 if form.proven else parameter.itemsize) for parameter in parameters)


def _measured(bench: Bench, proof: Proof, progress: Progress) -> float:
    if proof.perplexity is not None:
        return proof.perplexity
    return score_all(bench.model.module, proof.text, f"scoring on {proof.text.source}", progress).perplexity


def _expected(rounded: RoundedParts | None, bench: Bench, proof: Proof, measured: float, progress: Progress) -> float:
    """Return what a file has to score: what was measured, or what is measured with values as it stores them."""
    if rounded is None:
        return measured
    with rounded.in_place:
        phase = f"scoring with rounded {rounded.parts} on {proof.text.source}"
        return score_all(bench.model.module, proof.text, phase, progress).perplexity


def _rounded_note(parts: str, expected: float, measured: float) -> str:
    return (
        f"{parts} are rounded, which no trial measured: perplexity {expected:.4f}, and {measured:.4f} with "
        f"them as they were ({expected / measured - 1:+.3%})"
    )


def _apart(measured: float, expected: float, most: float) -> float | None:
    """Return by which share perplexities are apart; None where that is at most `most`, which NaN never is."""
    apart = measured / expected - 1
    return None if abs(apart) <= most else apart


def _require_equal(name: str, measured: float, expected: float) -> None:
    apart = _apart(measured, expected, MOST_APART)
    if apart is not None:
        raise RunError(
            f"the {name} model has a perplexity of {measured:.4f} in a fresh process and {expected:.4f} was measured "
            f"({apart:+.2%}, at most {MOST_APART:.1%} is allowed); nothing was written"
        )


@torch.inference_mode()
def unfolded_perplexity(bench: Bench, plan: Plan, result: Quantized, text: Sequences, progress: Progress) -> float:
    """Score the quantized weights with every scale undone, in a model whose norms and biases were never touched.

    What folding broke is broken in the trial and in the directory alike, and here it is not.
    """
    linears, module = quantized_linears(bench.blocks, plan), bench.model.module
    weights, left = bench.model.weights, dict(result.unfolded_vectors)
    with weights.restored([*(linear.module for linear in linears), *owners(module, list(left))]):
        for block in bench.blocks:
            with weights.changing(block.name):
                for name in [name for name in left if name.startswith(f"{block.name}.")]:
                    module.get_parameter(name).copy_(left.pop(name))
                for linear in quantized_linears([block], plan):
                    weight = loaded(result.codes[linear.name]).to(bench.model.device)
                    linear.set_weight(result.folded[linear.name].undone(weight))
        for name, vector in left.items():
            module.get_parameter(name).copy_(vector)
        phase = f"scoring without folded scales on {text.source}"
        return score_all(bench.model.module, text, phase, progress).perplexity


def _require_folds(name: str, measured: float, unfolded: float) -> None:
    apart = _apart(measured, unfolded, MOST_APART_UNFOLDED)
    if apart is not None:
        raise RunError(
            f"the {name} model has a perplexity of {measured:.4f}, and its weights without the folded scales "
            f"{unfolded:.4f} ({apart:+.2%}, at most {MOST_APART_UNFOLDED:.1%} is allowed): a scale was folded through "
            "what changes it; nothing was written; use --format dense --scales linear"
        )


def _stored_bits(bench: Bench, plan: Plan, linear_bytes: int) -> float:
    """Return the bits for each weight of the decoder blocks, counted in the file; biases and norms are none of them."""
    uncovered = sum(size for block in bench.blocks for size in block.uncovered.values())
    covered = sum(prod(linear.shape) for block in bench.blocks for linear in block.linears)
    unpacked = uncovered + covered - sum(prod(linear.shape) for linear in quantized_linears(bench.blocks, plan))
    return (8 * linear_bytes + 8 * bench.model.stored_dtype.itemsize * unpacked) / (covered + uncovered)
