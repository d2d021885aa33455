"""Quantize a model once, write it in every format that is asked for, and prove each.

Responsible for the order of that: refuse, quantize, write all, load and score each as whoever deploys it would, and
only then let the directories appear. May assume that the bench was laid out for the model; `storage.model_directory`
makes directories whole or absent.
"""

from contextlib import ExitStack
from dataclasses import replace
from math import prod

from objectives.export.formats import Export, Format, Stored, find_format
from objectives.export.limits import quantized_linears
from objectives.export.manifest import Manifest, file_hashes, make_manifest, write_manifest
from objectives.export.proving import (
    Expected,
    expected_of,
    measured_now,
    noise_notes,
    proven_score,
    unfolded_perplexity,
)
from objectives.export.rescoring import rescore
from objectives.progress import Progress
from objectives.quantization import model_size
from objectives.trial import Bench, quantized
from quant.plan import Plan
from storage.files import write_file
from storage.model_directory import new_directories, require_room, require_vacant

CARD = "README.md"
COMPANION_BYTES = 32 * 2**20
"""For tokenizer, configuration and card."""


def write_model(export: Export, progress: Progress) -> dict[str, Manifest]:
    """Quantize a model and write it in every format of `export`; all directories appear, proven, or none does.

    Returns:
        The contents of `praqtune.json` by the name of the format.

    Raises:
        InputError: If a format cannot hold the plan, or the plan does not suit the model or the text.
        QuantizationError: If a weight is not finite.
        RunError: If a result does not hold or score what was measured.
        StorageError: If something is at a directory already, or the disk is full or refuses.
    """
    bench, plan = export.bench, export.plan
    forms = {name: find_format(name) for name in export.directories}
    for name, form in forms.items():
        form.require_holds(plan, bench)
        require_vacant(export.directories[name], 0)
    require_room({export.directories[name]: _needed_bytes(bench, plan, form) for name, form in forms.items()})
    proven = {name: form for name, form in forms.items() if form.proven}
    proof = export.proof
    assert proof is not None or not proven
    with ExitStack() as stack:
        stored: dict[str, Stored] = {}
        expected: dict[str, Expected] = {}
        with quantized(bench, plan, progress, with_codes=bool(proven)) as result:
            vacant = stack.enter_context(new_directories(list(export.directories.values())))
            places = dict(zip(export.directories, vacant, strict=True))
            measured = measured_now(bench.model, proof, progress) if proof is not None and proven else None
            for name, form in forms.items():
                phase = f"writing {export.directories[name]}"
                progress(phase, 0, 1)
                stored[name] = form.write(bench, plan, result.codes, places[name])
                progress(phase, 1, 1)
                if form.proven and proof is not None and measured is not None:
                    rounded = form.rounded(bench, plan, result.codes)
                    expected[name] = expected_of(rounded, measured, bench.model, proof, progress)
        manifests = {
            name: replace(make_manifest(bench, plan, result.layers, weights=name), notes=stored[name].notes)
            for name in forms
        }
        if proof is not None and proven:
            unfolded = unfolded_perplexity(bench, plan, result, proof.text, progress)
            loaders = {places[name]: form.loader() for name, form in proven.items()}
            reloaded = rescore(loaders, proof.text, bench.model, progress, proof.trust_remote_code)
            linears = len(quantized_linears(bench.blocks, plan))
            for name, form in proven.items():
                score = proven_score(
                    name, reloaded[places[name]], expected[name], unfolded, proof, linears, form.reader()
                )
                bits = _stored_bits(bench, plan, stored[name].linear_bytes)
                manifest = replace(manifests[name], stored_bits_per_weight=bits, proof=score)
                manifest = replace(manifest, notes=(*manifest.notes, *expected[name].notes, *noise_notes(score)))
                if export.card is not None:
                    write_file(places[name] / CARD, export.card(manifest).encode())
                manifests[name] = replace(manifest, files=file_hashes(places[name]))
        for name, manifest in manifests.items():
            write_manifest(places[name], manifest)
    return manifests


def _needed_bytes(bench: Bench, plan: Plan, form: Format) -> int:
    """Return what a directory takes at most: formats have up to two numbers of 16 bits for a group."""
    size = model_size(bench.model, bench.blocks, plan)
    weights = size.codes + 2 * size.scales + size.rest + size.outside
    if not form.proven:
        weights = sum(parameter.numel() * parameter.itemsize for parameter in bench.model.module.parameters())
    return int(weights) + COMPANION_BYTES


def _stored_bits(bench: Bench, plan: Plan, linear_bytes: int | None) -> float | None:
    """Return the bits for each weight of the decoder blocks, counted in the file; biases and norms are none of them."""
    if linear_bytes is None:
        return None
    uncovered = sum(size for block in bench.blocks for size in block.uncovered.values())
    covered = sum(prod(linear.shape) for block in bench.blocks for linear in block.linears)
    unpacked = uncovered + covered - sum(prod(linear.shape) for linear in quantized_linears(bench.blocks, plan))
    return (8 * linear_bytes + 8 * bench.model.stored_dtype.itemsize * unpacked) / (covered + uncovered)
