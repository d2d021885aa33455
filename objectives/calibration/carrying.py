"""Carry hidden states from the blocks of one pass to those of the next, so that no pass begins anew.

Responsible for the states between blocks, which are parts of the entry that is being written, so that whoever goes on
with it has them; and for a model that begins in its middle: blocks that were run before hand on what they are given,
and the last of them answers with what it once gave. Whether a model can be run so is asked of the model itself. May
assume original weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from objectives.model.layouts import UNUSABLE
from storage.entry_files import EntryWriter
from storage.errors import StorageError

PROBE_TOKENS, SEED = 16, 1


class CarriedStates:
    """The hidden states of text after the last block that it was run through, batch by batch."""

    def __init__(self, model: Any, blocks: Sequence[str], entry: EntryWriter) -> None:
        """Begin before the first block, or where the states are that the entry has already.

        Args:
            model: A `PreTrainedModel`.
            blocks: The names of all its blocks, in order.
            entry: Where the states are written.
        """
        self._modules: list[nn.Module] = [model.get_submodule(name) for name in blocks]
        self._entry = entry
        self._before: dict[int, str] = dict(enumerate(_states_in(entry)))
        self._after: dict[int, str] = {}
        self._wrapped = bool(entry.progress.get("wrapped"))
        self._batch = 0

    def begin(self, batch: int) -> None:
        """Say which batch is run next."""
        self._batch = batch

    @contextmanager
    def passing(self, first: int, last: int) -> Iterator[None]:
        """Have the model begin with block `first`, and keep what block `last` gives, while the context lasts.

        States that are not needed any more stay until `record`.
        """
        follows = last + 1 < len(self._modules)
        handles = [self._modules[last].register_forward_hook(partial(self._keep, last))] if follows else []
        try:
            with _beginning_at(self._modules, first, self._answer, self._wrapped):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def record(self, following: int) -> None:
        """Note that everything before block `following` is done, and let go of what only that needed."""
        dropped, self._before, self._after = self._before, self._after, {}
        parts = [self._before[batch] for batch in sorted(self._before)]
        progress = {"next": following, "states": parts, "wrapped": self._wrapped}
        self._entry.record(progress, without=list(dropped.values()))

    def _answer(self, states: Tensor) -> Tensor:
        return self._entry.read(self._before[self._batch])["states"].to(states.device)

    def _keep(self, block: int, _: nn.Module, __: object, output: Any) -> None:
        self._wrapped = isinstance(output, tuple)
        part = f"states-{block:03d}-{self._batch:05d}"
        self._entry.write(part, {"states": _states(output)})
        self._after[self._batch] = part


def first_missing(entry: EntryWriter) -> int:
    """Return the first block that an entry, which somebody may have begun, lacks."""
    following = entry.progress.get("next", 0)
    assert isinstance(following, int)
    return following


def has_states(entry: EntryWriter) -> bool:
    """Return whether an entry has the hidden states before the first block that it lacks."""
    return bool(_states_in(entry))


def _states_in(entry: EntryWriter) -> list[str]:
    parts = entry.progress.get("states", [])
    assert isinstance(parts, list)
    return parts


@torch.inference_mode()
def can_begin_at(model: Any, blocks: Sequence[str], starts: Sequence[int]) -> bool:
    """Return whether a model that begins at each of these blocks gives what it gives from its beginning, bit by bit.

    Args:
        model: A `PreTrainedModel`.
        blocks: The names of all its blocks, in order.
        starts: Places in `blocks`, none of them the first.
    """
    modules = [model.get_submodule(name) for name in blocks]
    count = model.get_input_embeddings().weight.shape[0]
    ids, others = (
        torch.randint(count, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(seed)).to(model.device)
        for seed in (SEED, SEED + 1)
    )
    outputs: dict[int, Any] = {}

    def keep(place: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Any) -> None:
            outputs[place] = output

        return hook

    def run(tokens: Tensor) -> None:
        model.base_model(input_ids=tokens, use_cache=False)

    handles = [module.register_forward_hook(keep(place)) for place, module in enumerate(modules)]
    try:
        run(ids)
        whole = dict(outputs)
        # Whatever a block has left for others is now that of other tokens.
        run(others)
        if len(whole) < len(modules):
            return False
        ends = [*(start - 1 for start in starts[1:]), len(modules) - 1]
        for start, end in zip(starts, ends, strict=True):
            before = whole[start - 1]
            answer = partial(torch.Tensor.view_as, _states(before))
            stop = modules[end].register_forward_hook(_end)
            with _beginning_at(modules, start, answer, isinstance(before, tuple)), suppress(_Ended):
                run(ids)
            stop.remove()
            places = range(start, end + 1)
            if not all(torch.equal(_states(outputs[place]), _states(whole[place])) for place in places):
                return False
    except StorageError:
        raise
    except UNUSABLE:
        return False
    finally:
        for handle in handles:
            handle.remove()
    return True


class _Ended(Exception):
    """Raised by a hook once everything that is asked for has run."""


def _end(*_: object) -> None:
    raise _Ended


@contextmanager
def _beginning_at(
    modules: Sequence[nn.Module], first: int, answer: Callable[[Tensor], Tensor], wrapped: bool
) -> Iterator[None]:
    """Have the block before `first` answer, and those before it hand on; `wrapped` where they answer with a tuple."""

    def forward(place: int) -> Callable[..., Any]:
        def handed(*args: Any, **kwargs: Any) -> Any:
            states: Tensor = args[0] if args else kwargs["hidden_states"]
            states = answer(states) if place == first - 1 else states
            return (states,) if wrapped else states

        return handed

    for place, module in enumerate(modules[:first]):
        module.forward = forward(place)
    try:
        yield
    finally:
        for module in modules[:first]:
            del module.forward


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
