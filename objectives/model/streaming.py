"""Decoder blocks whose weights are in memory while they are used, and in files else.

Responsible for bringing a block before it is run or asked for and letting it go after, and for what is changed
meanwhile: it is written to a file without a name, so that no second copy of a model is needed. Originals are read again
from their files. May assume that each of these parameters stands in one place of the model.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from objectives.model.weights import Weights, exchanged, fingerprint, weights_restored
from storage.tensor_files import ScratchFile, StoredTensor


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter of a decoder block.

    Attributes:
        name: In the model.
        module: What it is of.
        leaf: What it is called there.
        absent: What stands there while its values are elsewhere: its shape and type, without data.
        original: Where its values are.
        place: From where on what becomes of it is written, bytes.
    """

    name: str
    module: nn.Module
    leaf: str
    absent: nn.Parameter
    original: StoredTensor
    place: int

    @property
    def size(self) -> int:
        """Return how many bytes it takes in memory."""
        return self.absent.numel() * self.absent.itemsize


class StreamedWeights:
    """The weights of the blocks of one model; the same tensors as in memory, one block at a time.

    Blocks in `kept` stay in memory; what is done to them is undone from their files as well.
    """

    streamed = True

    def __init__(
        self,
        module: Any,
        blocks: Sequence[str],
        originals: Mapping[str, StoredTensor],
        device: torch.device,
        offload: Path,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        """Attach to a model.

        Args:
            module: A `PreTrainedModel`; parameters that are named in `originals` have no data.
            blocks: Names of its decoder blocks.
            originals: Where the values of parameters are, by name.
            device: Where blocks are used.
            offload: A directory for what becomes of them.
            kept: Which blocks stay in memory.

        Raises:
            StorageError: If the directory cannot be written to.
        """
        self._device, self._offload, self._kept = device, offload, kept
        self._originals = originals
        self._slots = _slots(module, blocks, originals)
        self._places = {(slot.module, slot.leaf) for slots in self._slots.values() for slot in slots}
        self._by_absent = {slot.absent: slot for slots in self._slots.values() for slot in slots}
        self._size = sum(slot.size for slot in self._by_absent.values())
        self._scratch = ScratchFile(offload)
        # What was changed since each `restored` that is not over, the latest last.
        self._changed: list[dict[nn.Parameter, StoredTensor]] = []
        self._users = dict.fromkeys(blocks, 0)
        for name in blocks:
            layer = module.get_submodule(name)
            layer.register_forward_pre_hook(self._before(name, layer))
            # Also where the forward pass is given up inside the block.
            layer.register_forward_hook(self._after(name, layer), always_call=True)
            if name in kept:
                self._bring(name)

    @contextmanager
    def at_hand(self, block: str) -> Iterator[None]:
        """See `Weights`."""
        try:
            self._use(block)
            yield
        finally:
            self._leave(block)

    @contextmanager
    def changing(self, block: str) -> Iterator[None]:
        """Write what became of the block to the disk when the context ends without an error; see `Weights`."""
        assert self._changed, "weights are changed where they are put back"
        with self.at_hand(block):
            yield
            start = (len(self._changed) - 1) * self._size
            for slot in self._slots[block]:
                value = slot.module._parameters[slot.leaf]
                assert value is not None
                self._changed[-1][slot.absent] = self._scratch.write(start + slot.place, value)

    @contextmanager
    def as_before(self, block: str, layer: nn.Module, originals: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        """Read them from their files; see `Weights`."""
        with self.at_hand(block), exchanged(layer, originals):
            now = {slot: slot.module._parameters[slot.leaf] for slot in self._slots[block]}
            for slot in now:
                original = slot.original.read().to(self._device, slot.absent.dtype)
                slot.module._parameters[slot.leaf] = nn.Parameter(original, requires_grad=False)
            try:
                yield
            finally:
                for slot, value in now.items():
                    slot.module._parameters[slot.leaf] = value

    @contextmanager
    def restored(self, modules: Sequence[nn.Module]) -> Iterator[Mapping[nn.Parameter, Tensor]]:
        """Forget what `changing` wrote meanwhile; see `Weights`."""
        others = [module for module in modules if any(True for _ in self._others_of(module))]
        self._changed.append({})
        try:
            with weights_restored(others) as copies:
                yield copies
        finally:
            changed = self._changed.pop()
            self._scratch.shorten(len(self._changed) * self._size)
            for block in self._kept:
                if any(slot.absent in changed for slot in self._slots[block]):
                    self._bring(block)

    def fingerprint(self, modules: Sequence[nn.Module]) -> str:
        """See `Weights`."""
        return fingerprint(modules, self._value)

    def state(self, module: Any) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """See `Weights`."""
        by_name = {slot.name: slot for slot in self._by_absent.values()}
        for name, tensor in module.state_dict().items():
            yield name, partial(self._read, by_name[name]) if name in by_name else partial(tensor.view_as, tensor)

    def wide(self, module: Any) -> tuple[Any, Weights]:
        """See `Weights`."""
        with self._all_let_go():
            copied = copy.deepcopy(module).float()
        return copied, StreamedWeights(copied, list(self._slots), self._originals, self._device, self._offload)

    def wide_bytes(self, module: Any) -> int:
        """See `Weights`."""
        blocks = [sum(slot.absent.numel() for slot in slots) for slots in self._slots.values()]
        everything = sum(int(parameter.numel()) for parameter in module.parameters())
        return 4 * (everything - sum(blocks) + 2 * max(blocks))

    def _before(self, block: str, layer: nn.Module) -> Callable[..., None]:
        def bring(module: nn.Module, _: object) -> None:
            if _runs(module, layer):
                self._use(block)

        return bring

    def _after(self, block: str, layer: nn.Module) -> Callable[..., None]:
        def let_go(module: nn.Module, *_: object) -> None:
            if _runs(module, layer):
                self._leave(block)

        return let_go

    def _use(self, block: str) -> None:
        # Counted before anything can fail: whoever fails leaves, too.
        self._users[block] += 1
        if self._users[block] == 1 and block not in self._kept:
            self._bring(block)

    def _leave(self, block: str) -> None:
        self._users[block] -= 1
        if not self._users[block] and block not in self._kept:
            self._let_go(block)

    def _bring(self, block: str) -> None:
        for slot in self._slots[block]:
            slot.module._parameters[slot.leaf] = nn.Parameter(self._read(slot), requires_grad=False)

    def _let_go(self, block: str) -> None:
        for slot in self._slots[block]:
            slot.module._parameters[slot.leaf] = slot.absent

    @contextmanager
    def _all_let_go(self) -> Iterator[None]:
        """Have no weights in memory, so that every parameter is the one that it is known by."""
        for block in self._kept:
            self._let_go(block)
        try:
            yield
        finally:
            for block in self._kept:
                self._bring(block)

    def _read(self, slot: Slot) -> Tensor:
        stored = next((layer[slot.absent] for layer in reversed(self._changed) if slot.absent in layer), slot.original)
        return stored.read().to(self._device, slot.absent.dtype)

    def _value(self, parameter: nn.Parameter) -> Tensor:
        slot = self._by_absent.get(parameter)
        return parameter.detach() if slot is None else self._read(slot)

    def _others_of(self, module: nn.Module) -> Iterator[str]:
        """Yield the parameters of a module that are in memory all the time."""
        return (leaf for leaf, _ in module.named_parameters(recurse=False) if (module, leaf) not in self._places)


def _runs(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a module that is called is this block and needs its weights.

    Copies of a block have the hooks of the original, and one whose instance has a `forward` answers without its own.
    """
    return module is layer and "forward" not in vars(module)


def _slots(module: Any, blocks: Sequence[str], originals: Mapping[str, StoredTensor]) -> dict[str, list[Slot]]:
    slots: dict[str, list[Slot]] = {}
    place = 0
    for block in blocks:
        slots[block] = []
        for path, owner in module.get_submodule(block).named_modules():
            prefix = f"{block}.{path}" if path else block
            for leaf, parameter in owner.named_parameters(recurse=False):
                name = f"{prefix}.{leaf}"
                if name in originals:
                    slot = Slot(
                        name=name,
                        module=owner,
                        leaf=leaf,
                        absent=parameter,
                        original=originals[name],
                        place=place,
                    )
                    slots[block].append(slot)
                    place += slot.size
    return slots
