"""Write a quantized model as packed INT4, in the `pack-quantized` format of compressed-tensors.

Responsible for the tensors, for the configuration that tells transformers and vLLM how to read them, and for the
proof: nothing appears at the place asked for before a fresh process has loaded it and scored what was measured. May
assume that the bench was laid out for the model; `storage.model_directory` makes the directory whole or absent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from objectives.errors import InputError, RunError
from objectives.export.companions import copy_companions
from objectives.export.dense import configuration_kept
from objectives.export.formats import Export
from objectives.export.manifest import Manifest, ProvenScore, make_manifest, write_manifest
from objectives.export.rescoring import rescore
from objectives.model.loading import Model
from objectives.model.roles import Block, LinearRole, unscaled_inputs
from objectives.model.sites import find_sites
from objectives.model.weights import weights_restored
from objectives.progress import Progress
from objectives.refined import owners
from objectives.scoring import Score, score_all
from objectives.text.sequences import Sequences
from objectives.trial import Bench, Quantized, quantized
from quant.packing import interleaved, packed_tensors
from quant.plan import Plan
from quant.scheme import IntWeight, Scheme, loaded
from quant.setting import Setting
from storage.files import write_file
from storage.model_directory import new_directory, require_vacant, tensor_bytes

CARD = "README.md"
MOST_APART = 1e-3
"""Of the perplexity that was measured: what the packed model may score differently."""
MOST_APART_UNFOLDED = 5e-3
"""Of the perplexity without folded scales, which a 16-bit type computes with other roundings."""
BITS = (4, 8)
"""Of a weight that transformers and vLLM unpack."""
DENSE = "write it with --format dense"


class Packed:
    """The `pack-quantized` format of compressed-tensors: codes and scales for transformers and vLLM."""

    proven = True

    def require_holds(self, blocks: Sequence[Block], plan: Plan) -> None:
        """Refuse rows in 16 bit, scales at run time, partial groups, and different schemes where runtimes fuse."""
        require_packable(blocks, plan)

    def write(self, export: Export, progress: Progress) -> Manifest:
        """Write codes and scales, and prove them in a fresh process; see `Format.write`."""
        bench, plan, proof = export.bench, export.plan, export.proof
        assert proof is not None
        self.require_holds(bench.blocks, plan)
        model = bench.model
        require_vacant(export.directory, sum(parameter.numel() for parameter in model.module.parameters()))
        with quantized(bench, plan, progress, with_codes=True) as result:
            expected = proof.perplexity
            if expected is None:
                expected = score_all(model.module, proof.text, f"scoring on {proof.text.source}", progress).perplexity
            tensors = _state(model, bench.blocks, plan, result.codes)
        unfolded = _unfolded_perplexity(bench, plan, result, proof.text, progress)
        with new_directory(export.directory) as place:
            _write_model(model, tensors, quantization_config(model.module, bench.blocks, plan), place)
            measured = self.score(place, proof.text, model, progress, proof.trust_remote_code).perplexity
            _require_equal(measured, expected)
            _require_folds(measured, unfolded)
            manifest = replace(
                make_manifest(bench, plan, result.layers, weights="packed"),
                stored_bits_per_weight=_stored_bits(bench, plan, place),
                proof=ProvenScore(
                    source=proof.text.source,
                    sequences=len(proof.text),
                    measured=expected,
                    unfolded=unfolded,
                    packed=measured,
                ),
            )
            write_manifest(place, manifest)
            if export.card is not None:
                write_file(place / CARD, export.card(manifest).encode())
        return manifest

    def score(
        self, directory: Path, text: Sequences, model: Model, progress: Progress, trust_remote_code: bool = False
    ) -> Score:
        """Score a directory in a fresh process; see `Format.score`."""
        return rescore(directory, text, model, progress, trust_remote_code)

    def notes(self, blocks: Sequence[Block]) -> list[str]:
        """Say which inputs are not scaled: here a scale has to fold."""
        note = unscaled_inputs(blocks)
        return [] if note is None else [note]


def require_packable(blocks: Sequence[Block], plan: Plan) -> None:
    """Refuse what the format cannot hold.

    Raises:
        InputError: With the reason and what to do instead.
    """
    for setting in plan.settings:
        _require_packable(setting)
    for site in find_sites(blocks):
        count = len({_scheme(plan.setting_for(name)) for name in site.linears})
        if count > 1:
            raise InputError(
                f"runtimes of packed INT4 make one matrix of {', '.join(site.linears)}, which has {count} "
                f"schemes here; give its parts the same one, or {DENSE}"
            )
    schemes = {scheme for setting in plan.settings if (scheme := _scheme(setting)) is not None}
    if not schemes:
        raise InputError(f"nothing is quantized, so there is nothing to pack; give fewer bits, or {DENSE}")
    if len(schemes) > 1 and not all(scheme.symmetric for scheme in schemes):
        raise InputError(
            f"transformers does not read packed INT4 of {len(schemes)} schemes where one has zero points; use "
            f"--symmetric for all Linears, or {DENSE}"
        )
    linears = [linear for block in blocks for linear in block.linears]
    for setting in plan.settings:
        scheme = _scheme(setting)
        size = None if scheme is None else scheme.group_size
        widths = (linear.shape[1] for linear in linears if plan.setting_for(linear.name) == setting)
        partial = sorted({width for width in widths if size and width % size})
        if partial:
            raise InputError(
                f"packed INT4 cannot hold the partial last group that a group size of {size} leaves of "
                f"{', '.join(map(str, partial))} inputs; use a size that divides them, or {DENSE}"
            )


def _require_packable(setting: Setting) -> None:
    if setting.is_unquantized:
        return
    if setting.bits not in BITS:
        raise InputError(
            f"packed INT4 has weights of {' or '.join(map(str, BITS))} bits, not of {setting.bits}; give --bits so, or "
            f"{DENSE}"
        )
    if setting.definition.keeps_rows:
        raise InputError(f"{setting.method} keeps rows in 16 bit, which packed INT4 cannot hold; {DENSE}")
    if setting.scales_at_run_time:
        raise InputError(
            "--scales linear divides the inputs of every Linear where the model runs, which packed INT4 cannot hold; "
            f"{DENSE}, or use --scales foldable"
        )


def quantization_config(module: Any, blocks: Sequence[Block], plan: Plan) -> dict[str, Any]:
    """Return what `config.json` says of the weights: all Linears but those left alone, one group per scheme."""
    packed = {slices[0].module for slices in _packed_modules(blocks, plan).values()}
    linears = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    targets: dict[Scheme, list[str]] = {}
    for name, slices in _packed_modules(blocks, plan).items():
        scheme = _scheme(plan.setting_for(slices[0].name))
        assert scheme is not None
        targets.setdefault(scheme, []).append(name)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        # Transformers has no INT4 kernel and unpacks on first use in any case; told to do so while it loads, it also
        # reads packed zero points, which it otherwise takes for a wrong shape, but takes the first scheme for all.
        # Other runtimes do not know the key.
        **({"dequantize": True} if len(targets) == 1 else {}),
        "ignore": [name for name, child in linears.items() if child not in packed],
        "config_groups": {
            f"group_{index}": {"targets": ["Linear"] if len(targets) == 1 else names, "weights": _weights(scheme)}
            for index, (scheme, names) in enumerate(targets.items())
        },
    }


def _weights(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
    }


def _scheme(setting: Setting) -> Scheme | None:
    """Return the scheme of a setting, None where it leaves weights alone; the type of scales is the whole model's."""
    return None if setting.is_unquantized else setting.scheme(torch.float16)


def _packed_modules(blocks: Sequence[Block], plan: Plan) -> dict[str, list[LinearRole]]:
    """Return the modules that are packed by name, each with its Linear or the slices that it consists of."""
    modules: dict[str, list[LinearRole]] = {}
    for linear in _packed_linears(blocks, plan):
        modules.setdefault(linear.name.partition(":")[0], []).append(linear)
    return modules


def _packed_linears(blocks: Sequence[Block], plan: Plan) -> list[LinearRole]:
    linears = (linear for block in blocks for linear in block.linears)
    return [linear for linear in linears if not plan.setting_for(linear.name).is_unquantized]


def _state(model: Model, blocks: Sequence[Block], plan: Plan, codes: Mapping[str, IntWeight]) -> dict[str, Tensor]:
    """Return every tensor of the model as it is stored: packed Linears, and the rest in the stored type."""
    tensors: dict[str, Tensor] = {}
    modules = _packed_modules(blocks, plan)
    for name, linears in modules.items():
        stored = packed_tensors(_whole(linears, codes))
        tensors |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
    packed = {f"{name}.weight" for name in modules}
    narrowed: dict[int, Tensor] = {}
    for name, tensor in model.module.state_dict().items():
        if name not in packed:
            # Tied weights stay one tensor: that is how whoever saves them knows.
            kept = tensor.to(model.stored_dtype) if tensor.dtype == model.dtype else tensor
            tensors[name] = narrowed.setdefault(tensor.data_ptr(), kept.cpu().clone())
    return tensors


def _whole(linears: Sequence[LinearRole], codes: Mapping[str, IntWeight]) -> IntWeight:
    """Return the codes of a module, of one Linear or of its slices."""
    first = linears[0]
    if first.rows is None:
        return codes[first.name]
    return interleaved([(linear.rows.cpu(), codes[linear.name]) for linear in linears if linear.rows is not None])


def _write_model(model: Model, tensors: dict[str, Tensor], quantization: Mapping[str, Any], place: Path) -> None:
    with configuration_kept(model.module):
        model.module.save_pretrained(place, state_dict=tensors)
    model.tokenizer.save_pretrained(place)
    copy_companions(model, place)
    path = place / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"dtype": str(model.stored_dtype).removeprefix("torch."), "quantization_config": quantization}
    write_file(path, (json.dumps(config, indent=2) + "\n").encode())


def _apart(measured: float, expected: float, most: float) -> float | None:
    """Return by which share perplexities are apart; None where that is at most `most`, which NaN never is."""
    apart = measured / expected - 1
    return None if abs(apart) <= most else apart


def _require_equal(measured: float, expected: float) -> None:
    apart = _apart(measured, expected, MOST_APART)
    if apart is not None:
        raise RunError(
            f"the packed model has a perplexity of {measured:.4f} in a fresh process and {expected:.4f} was measured "
            f"({apart:+.2%}, at most {MOST_APART:.1%} is allowed); nothing was written"
        )


@torch.inference_mode()
def _unfolded_perplexity(bench: Bench, plan: Plan, result: Quantized, text: Sequences, progress: Progress) -> float:
    """Score the quantized weights with every scale undone, in a model whose norms and biases were never touched.

    What folding broke is broken in the trial and in the directory alike, and here it is not.
    """
    linears, module = _packed_linears(bench.blocks, plan), bench.model.module
    vectors = result.unfolded_vectors
    with weights_restored([*(linear.module for linear in linears), *owners(module, list(vectors))]):
        for name, vector in vectors.items():
            module.get_parameter(name).copy_(vector)
        for linear in linears:
            weight = loaded(result.codes[linear.name]).to(bench.model.device)
            linear.set_weight(result.folded[linear.name].undone(weight))
        phase = f"scoring without folded scales on {text.source}"
        return score_all(bench.model.module, text, phase, progress).perplexity


def _require_folds(measured: float, unfolded: float) -> None:
    apart = _apart(measured, unfolded, MOST_APART_UNFOLDED)
    if apart is not None:
        raise RunError(
            f"the packed model has a perplexity of {measured:.4f}, and its weights without the folded scales "
            f"{unfolded:.4f} ({apart:+.2%}, at most {MOST_APART_UNFOLDED:.1%} is allowed): a scale was folded through "
            "what changes it; nothing was written; use --format dense --scales linear"
        )


def _stored_bits(bench: Bench, plan: Plan, place: Path) -> float:
    """Return the bits for each weight of the decoder blocks, counted in the file; biases and norms are none of them."""
    packed = sum(size for name, size in tensor_bytes(place).items() if name.rpartition(".")[2].startswith("weight_"))
    uncovered = sum(size for block in bench.blocks for size in block.uncovered.values())
    covered = sum(prod(linear.shape) for block in bench.blocks for linear in block.linears)
    unpacked = uncovered + covered - sum(prod(linear.shape) for linear in _packed_linears(bench.blocks, plan))
    return (8 * packed + 8 * bench.model.stored_dtype.itemsize * unpacked) / (covered + uncovered)
