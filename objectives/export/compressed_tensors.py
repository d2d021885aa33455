"""Write a quantized model as packed INT4, in the `pack-quantized` format of compressed-tensors.

Responsible for the configuration that tells transformers and vLLM how to read the tensors of `quant.packing`, and for
what the format cannot hold. May assume a model whose weights are quantized at the moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from objectives.errors import InputError
from objectives.export.expert_names import expert_names, file_name
from objectives.export.formats import Stored
from objectives.export.limits import (
    DENSE,
    Limits,
    only_scheme,
    quantized_modules,
    require_linears,
    require_plan,
    scheme_of,
)
from objectives.export.reading import TRANSFORMERS, versions_of
from objectives.export.tensors import write_safetensors
from objectives.model.roles import Block, unscaled_inputs
from objectives.trial import Bench
from quant.packing import packed_tensors
from quant.plan import Plan
from quant.scheme import IntWeight, Scheme

LIMITS = Limits(name="compressed-tensors", bits=(4, 8), several_schemes=True, experts=True, splits=True)


class CompressedTensors:
    """The `pack-quantized` format of compressed-tensors: codes and scales for transformers and vLLM."""

    limits = LIMITS
    proven = True

    def require_holds(self, plan: Plan, bench: Bench | None = None) -> None:
        """Refuse rows in 16 bit, scales at run time, partial groups, and different schemes where runtimes fuse.

        Of mixtures of experts, zero points, and several schemes or experts in 16 bit beside others.
        """
        require_plan(LIMITS, plan)
        require_linears(LIMITS, plan, () if bench is None else bench.blocks)
        schemes = {scheme for setting in plan.settings if (scheme := scheme_of(setting)) is not None}
        if bench is not None:
            _require_experts(bench.model.module, bench.blocks, plan)
        if len(schemes) > 1 and not all(scheme.symmetric for scheme in schemes):
            raise InputError(
                f"transformers does not read compressed-tensors of {len(schemes)} schemes where one has zero points; "
                f"use --symmetric for all Linears, or {DENSE}"
            )

    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        """Write codes and scales; see `Format.write`."""
        configuration = {"quantization_config": quantization_config(bench.model.module, bench.blocks, plan)}
        return Stored(linear_bytes=write_safetensors(bench, plan, codes, packed_tensors, configuration, place))

    def rounded(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight]) -> None:
        """Return None: embeddings and head are stored as they are."""

    def reader(self) -> str:
        """Return what reads the files for the proof."""
        return versions_of("transformers", "compressed-tensors")

    def loader(self) -> str:
        """Return transformers, as `objectives.export.reading` calls it."""
        return TRANSFORMERS

    def notes(self, blocks: Sequence[Block]) -> list[str]:
        """Say which inputs are not scaled: here a scale has to fold."""
        note = unscaled_inputs(blocks)
        return [] if note is None else [note]


def _require_experts(module: Any, blocks: Sequence[Block], plan: Plan) -> None:
    """Refuse experts that transformers would not read again, or read wrongly."""
    experts = [linear for block in blocks for linear in block.linears if linear.expert is not None]
    if not experts:
        return
    others = {scheme_of(setting) for setting in plan.settings if not setting.is_unquantized}
    if len(others | {scheme_of(plan.setting_for(linear.name)) for linear in experts}) > 1:
        raise InputError(
            "transformers reads compressed-tensors of experts with one scheme for all Linears, and no experts in 16 "
            f"bit; give all the same and no budget, or {DENSE}"
        )
    if not only_scheme(plan).symmetric:
        raise InputError(
            f"transformers does not read the zero points of experts in compressed-tensors; use --symmetric, or {DENSE}"
        )
    named = expert_names(module, blocks)
    unnamed = [linear.name for linear in experts if linear.name not in named]
    if unnamed:
        raise InputError(
            f"{type(module).__name__} has no names in files for its experts one by one, {unnamed[0]} for example, "
            f"which compressed-tensors needs; {DENSE}"
        )


def quantization_config(module: Any, blocks: Sequence[Block], plan: Plan) -> dict[str, Any]:
    """Return what `config.json` says of the weights: all Linears but those left alone, one group per scheme."""
    packed = {slices[0].module for slices in quantized_modules(blocks, plan).values()}
    linears = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    targets: dict[Scheme, list[str]] = {}
    for name, slices in quantized_modules(blocks, plan).items():
        scheme = scheme_of(plan.setting_for(slices[0].name))
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
        "ignore": [
            *(name for name, child in linears.items() if child not in packed),
            *_routers(module, blocks),
        ],
        "config_groups": {
            f"group_{index}": {"targets": ["Linear"] if len(targets) == 1 else names, "weights": _weights(scheme)}
            for index, (scheme, names) in enumerate(targets.items())
        },
    }


def _routers(module: Any, blocks: Sequence[Block]) -> Iterator[str]:
    """Yield what files call the routers, which other runtimes take for Linears."""
    uncovered = (name for block in blocks if block.experts for name in block.uncovered)
    for name in uncovered:
        if name.endswith(".weight") and not isinstance(module.get_submodule(name.removesuffix(".weight")), nn.Linear):
            yield file_name(module, name).removesuffix(".weight")


def _weights(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
