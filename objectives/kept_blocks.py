"""Quantized blocks of the plan in hand on the disk, so that a process that dies loses one block of a long quantization.

Responsible for what is written of a block, when, and for putting it back in another process with the same bits. May
assume that its key says all that determines the weights. Nothing here is needed to go on: where the disk refuses, or
another process is at the same plan, blocks are quantized as if there were no such thing.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from time import perf_counter
from types import TracebackType
from typing import Self

import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from objectives.calibration.entries import part_name
from objectives.model.folding import changed_modules
from objectives.model.loading import Model
from objectives.model.roles import Block
from objectives.model.weights import parameters_of
from objectives.quantized_blocks import FoldedScales, LayerResult, QuantizedBlocks
from quant.scheme import IntWeight
from storage.cache import TensorCache
from storage.entry_files import EntryWriter
from storage.errors import StorageError
from storage.lease import LEASE_SECONDS
from storage.typed_json import decode, encode

log = logging.getLogger(__name__)

FORMAT = 1
LONG_SECONDS = 1.0
"""A block that took less to quantize is not written: quantizing it again costs about what writing it does."""
WRITING_SHARE = 0.1
"""Of the time that a block took to quantize, which writing one may take; where the disk is slower some are left out."""
DEAD_SECONDS, SHORT_SECONDS = LEASE_SECONDS + 5, 1.0
"""How long a process waits for another one at its plan: where that left blocks, for it to be known to be dead."""
ABANDONED_SECONDS = 86400.0
"""After so long without a write it is taken that nobody comes back for what another plan left."""


@dataclass(frozen=True, kw_only=True)
class CodesRecord:
    """How the codes of a Linear are stored, beside their tensors; see `IntWeight`."""

    group_size: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What is kept of a block beside tensors: the choice for each Linear, and its codes where they were asked for."""

    layers: tuple[LayerResult, ...]
    codes: Mapping[str, CodesRecord]


@dataclass(frozen=True, kw_only=True)
class KeptBlock:
    """A quantized block as it was kept: the parameters that quantizing may change, and what it gave beside them."""

    parameters: tuple[Tensor, ...]
    made: QuantizedBlocks

    def put_back(self, block: Block) -> QuantizedBlocks:
        """Make the weights of a block, which are in memory, what they were when it was kept."""
        for parameter, value in zip(parameters_of(changed_modules(block)), self.parameters, strict=True):
            parameter.copy_(value)
        return self.made


class KeptBlocks:
    """The quantized blocks of one plan; a context, at whose end they go, unless the process is killed or interrupted.

    Any number of processes may begin the same plan: one of them keeps blocks.
    """

    def __init__(
        self, model: Model, blocks: Sequence[Block], cache: TensorCache, plan_parts: Sequence[object], with_codes: bool
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            model: What is quantized.
            blocks: Its blocks.
            cache: Where they are kept, as an entry that is not finished.
            plan_parts: What the plan does to the model (`objectives.plan_keys`).
            with_codes: Whether codes are asked for.
        """
        parts = [FORMAT, model.fingerprint, model.device.type, with_codes, *plan_parts]
        self._key = f"quantized-{xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())}"
        self._model, self._cache = model, cache
        values = sum(prod(linear.shape) for block in blocks for linear in block.linears)
        # The weights; codes are a byte each, and have scales.
        self._most = values * (model.dtype.itemsize + (2 if with_codes else 0))
        self._stack = ExitStack()
        self._entry: EntryWriter | None = None
        self._kept: list[str] = []
        self._done_without = False
        # Seconds, the last block.
        self._wrote = 0.0

    def __enter__(self) -> Self:
        if self._cache.is_unfinished(self._key):
            self._open(DEAD_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def read(self, block: Block) -> KeptBlock | None:
        """Read a block that a process which died had quantized; None where it had not, or it cannot be read."""
        part = part_name(block)
        if self._entry is None or part not in self._kept:
            return None
        try:
            return _restored(self._entry.read(part), block, self._model.device)
        except (StorageError, SafetensorError, KeyError, ValueError) as error:
            self._do_without(error)
            return None

    def keep(self, block: Block, made: QuantizedBlocks, seconds: float) -> None:
        """Write a block that was just quantized, and is in memory, where that took long beside writing it."""
        if seconds < LONG_SECONDS or self._done_without:
            return
        if self._wrote > WRITING_SHARE * seconds:
            # Tried again after a few: the disk may have been busy once, and so the share is right over all blocks.
            self._wrote /= 2
            return
        if self._entry is None:
            self._open(SHORT_SECONDS)
        if self._entry is None:
            return
        started = perf_counter()
        try:
            part = part_name(block)
            self._entry.write(part, _tensors(block, made))
            self._entry.record({"blocks": [*self._kept, part]})
            self._kept.append(part)
        except StorageError as error:
            self._do_without(error)
        self._wrote = perf_counter() - started

    def _open(self, patience: float) -> None:
        try:
            if not self._stack.enter_context(self._cache.lease_if_free(self._key, patience)):
                self._do_without("another process is at the same plan")
                return
            self._cache.clear_abandoned("quantized-", ABANDONED_SECONDS)
            self._cache.require_free(self._most)
            entry = self._stack.enter_context(self._cache.passing_entry(self._key))
        except StorageError as error:
            self._do_without(error)
            return
        kept = entry.progress.get("blocks", [])
        self._entry, self._kept = entry, list(map(str, kept)) if isinstance(kept, list) else []
        if self._kept:
            log.warning("going on with %d quantized blocks of a process that was ended", len(self._kept))

    def _do_without(self, reason: StorageError | Exception | str) -> None:
        log.warning("quantized blocks are not kept, so a kill costs all of them: %s", reason)
        self._entry, self._done_without = None, True


def _tensors(block: Block, made: QuantizedBlocks) -> dict[str, Tensor]:
    """Return what is kept of a block: its record as bytes, and tensors on the CPU that share no memory."""
    codes = {name: CodesRecord(group_size=weight.group_size, bits=weight.bits) for name, weight in made.codes.items()}
    record = json.dumps(encode(BlockRecord(layers=made.layers, codes=codes))).encode()
    tensors = {"record": torch.frombuffer(bytearray(record), dtype=torch.uint8)}
    for number, parameter in enumerate(parameters_of(changed_modules(block))):
        tensors[f"parameter {number}"] = parameter.detach().cpu()
    for name, weight in made.codes.items():
        folded = made.folded[name]
        parts = {
            "codes": weight.codes,
            "scale": weight.scale,
            "zero": weight.zero,
            "inputs": folded.inputs,
            "outputs": folded.outputs,
        }
        tensors |= {f"{part} {name}": value.cpu().clone() for part, value in parts.items() if value is not None}
    return tensors


def _restored(tensors: Mapping[str, Tensor], block: Block, device: torch.device) -> KeptBlock:
    """Make of `_tensors` what they were made of.

    Raises:
        StoredValueError, KeyError, ValueError: If they are of another version.
    """
    record = decode(BlockRecord, json.loads(tensors["record"].numpy().tobytes()), f"what is kept of {block.name}")
    present = parameters_of(changed_modules(block))
    parameters = tuple(tensors[f"parameter {number}"] for number in range(len(present)))
    if any(
        value.shape != now.shape or value.dtype != now.dtype for value, now in zip(parameters, present, strict=True)
    ):
        raise ValueError(f"what is kept of {block.name} has other parameters than it")
    codes, folded = {}, {}
    for name, form in record.codes.items():
        codes[name] = IntWeight(
            codes=tensors[f"codes {name}"],
            scale=tensors[f"scale {name}"],
            zero=tensors.get(f"zero {name}"),
            group_size=form.group_size,
            bits=form.bits,
        )
        scales = (tensors.get(f"{part} {name}") for part in ("inputs", "outputs"))
        inputs, outputs = (scale if scale is None else scale.to(device) for scale in scales)
        folded[name] = FoldedScales(inputs=inputs, outputs=outputs)
    made = QuantizedBlocks(layers=record.layers, codes=codes, folded=folded)
    return KeptBlock(parameters=parameters, made=made)
