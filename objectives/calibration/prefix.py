"""Follow calibration text through the blocks of a model that is being quantized, beside full precision.

Responsible for the hidden states before a block, with the blocks before it as they were and as they are stored, and
for the statistics of what its Linears then read. Holds these states twice, and what the sites of one block read in full
precision. May assume that blocks are quantized in the model's order, and that the model has its original weights when
a prefix is made. Shape letters: `N` tokens, `I` inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from objectives.calibration.recording import BATCH_TOKENS
from objectives.errors import InputError
from objectives.model.roles import Block, InputSite
from objectives.text.batches import Batch, batches
from objectives.text.sequences import Sequences
from quant.statistics import InputStatistics, InputSums


@dataclass(frozen=True, kw_only=True)
class PrefixStatistics:
    """Means over the tokens of what a site reads.

    Attributes:
        inputs: Statistics of `x~`, where everything before it is quantized.
        drift: `E[(x - x~) x~ᵀ]`, float32 `[I, I]`, x being the same input in full precision.
    """

    inputs: InputStatistics
    drift: Tensor


@dataclass(kw_only=True)
class _Passage:
    """Holds a batch on its way: its hidden states before a block, and what the model hands its blocks beside them.

    `exact` is what the sites of the block read in full precision, by the site's name, rows `[N, I]`.
    """

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    attention: Tensor | None
    full: Tensor
    quantized: Tensor
    exact: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, tensor: Tensor) -> Tensor:
        """The tokens of `[B, T, I]` as rows `[N, I]`, without padding."""
        rows = tensor.reshape(-1, tensor.shape[-1])
        return rows if self.attention is None else rows[self.attention.flatten()]


class QuantizedPrefix:
    """Calibration text on its way through the blocks, in full precision and in the model that is being quantized."""

    def __init__(
        self,
        model: Any,
        blocks: Sequence[Block],
        sequences: Sequences,
        batch_tokens: int = BATCH_TOKENS,
        instead: str = "--prefix full",
    ) -> None:
        """Read the embeddings of the text.

        Args:
            model: A `PreTrainedModel` with its original weights.
            blocks: All of its blocks, in order.
            sequences: The text; its hidden states are kept in the model's type, twice.
            batch_tokens: How many of them are run at a time.
            instead: What a person may use where this cannot be done.

        Raises:
            InputError: If the model cannot be run block by block, or has experts: quantizing changes which of them a
                token reaches.
        """
        if any(site.pool is not None or site.linears[0].expert is not None for block in blocks for site in block.sites):
            raise InputError(f"the quantized prefix of a mixture of experts cannot be followed; use {instead}")
        self._modules = [model.get_submodule(block.name) for block in blocks]
        # What inference mode makes could take part in no gradient.
        with torch.no_grad():
            text = list(batches(sequences, range(len(sequences)), batch_tokens, model.device))
            wrapped = self._answers(model, text[0], instead)
            self._passages = [self._begin(model, batch, wrapped) for batch in text]

    def enter(self, block: Block) -> None:
        """Run a block in full precision, before anything of it is changed; `observe` and `advance` are to follow."""
        module = self._modules[block.index]
        for passage in self._passages:
            with _reading(block.sites) as read:
                passage.full = _run(module, passage.calls[block.index], passage.full)
            passage.exact = {name: passage.rows(tensor) for name, tensor in read.items()}

    def observe(self, block: Block, site: InputSite, scale: Tensor | None) -> PrefixStatistics:
        """Run a block as it is now up to a site.

        Args:
            block: The one that was entered.
            site: One of its sites.
            scale: What the model has divided the site's inputs by, `[I]`; so are those of full precision.
        """
        module = self._modules[block.index]
        sums = InputSums(site.inputs, next(module.parameters()).device)
        drift = torch.zeros_like(sums.gram)
        for passage in self._passages:
            with _reading([site], last=True) as read, suppress(_SiteReached):
                _run(module, passage.calls[block.index], passage.quantized)
            rows, exact = passage.rows(read[site.name]), passage.exact[site.name].float()
            sums.add(rows)
            exact = exact if scale is None else exact / scale
            drift += ((exact - rows.float()).T @ rows.float()).double()
        return PrefixStatistics(inputs=sums.means(), drift=(drift / max(1, sums.tokens)).float())

    @property
    def batches(self) -> int:
        """Return how many batches the text is run in."""
        return len(self._passages)

    def follow(self, block: Block) -> None:
        """Run a block as it is, which has to be full precision, on what full precision gives before it."""
        for passage in self._passages:
            passage.full = _run(self._modules[block.index], passage.calls[block.index], passage.full)

    def difference(self, block: Block, number: int) -> Tensor:
        """Run a block as it is on one batch, behind what is quantized; returns its outputs minus full precision's.

        float32 `[N, I]`, of a block that was followed.
        """
        passage = self._passages[number]
        outputs = _run(self._modules[block.index], passage.calls[block.index], passage.quantized)
        return passage.rows(outputs).float() - passage.rows(passage.full).float()

    def loss(self, block: Block, batches: int) -> float:
        """Return the sum of squares of the differences on the first of the batches, all of them at most."""
        compared = range(min(batches, self.batches))
        return sum(float(self.difference(block, number).square().sum()) for number in compared)

    def advance(self, block: Block) -> None:
        """Go on to the next block, through the one that has been quantized."""
        for passage in self._passages:
            call = passage.calls[block.index]
            passage.quantized = _run(self._modules[block.index], call, passage.quantized)

    def _answers(self, model: Any, batch: Batch, instead: str) -> list[bool]:
        """Ask one sequence which blocks answer with a tuple, and whether each reads what the one before it gives."""
        before: list[Tensor] = []
        after: list[Any] = []
        handles = []
        for module in self._modules:
            handles.append(module.register_forward_pre_hook(_keep_states(before), with_kwargs=True))
            handles.append(module.register_forward_hook(lambda _, __, output: after.append(output)))
        try:
            attention = None if batch.attention is None else batch.attention[:1]
            model.base_model(input_ids=batch.ids[:1], attention_mask=attention, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        chained = len(after) == len(before) == len(self._modules) and all(
            torch.equal(_states(output), states) for output, states in zip(after, before[1:], strict=False)
        )
        if not chained:
            raise InputError(
                "the blocks of this model do not read what the blocks before them give, so that it cannot be run block "
                f"by block; use {instead}"
            )
        return [isinstance(output, tuple) for output in after]

    def _begin(self, model: Any, batch: Batch, wrapped: Sequence[bool]) -> _Passage:
        """Run a batch through everything but the blocks, which hand on what they are given."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        embedded: list[Tensor] = []

        def answering(as_tuple: bool) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                states, *others = args or (kwargs.pop("hidden_states"),)
                embedded.append(states)
                calls.append((tuple(others), kwargs))
                return (states,) if as_tuple else states

            return forward

        own = [vars(module).get("forward") for module in self._modules]
        try:
            for module, as_tuple in zip(self._modules, wrapped, strict=True):
                module.forward = answering(as_tuple)
            model.base_model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        finally:
            for module, forward in zip(self._modules, own, strict=True):
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward
        return _Passage(calls=calls, attention=batch.attention, full=embedded[0], quantized=embedded[0])


class _SiteReached(Exception):
    """Raised by a hook once the last site has been handed its inputs."""


@contextmanager
def _reading(sites: Sequence[InputSite], last: bool = False) -> Iterator[dict[str, Tensor]]:
    """Yield what sites of a block read while it runs, by the site's name; with `last`, that is where it ends."""
    read: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            read[name] = args[0]
            if last:
                raise _SiteReached

        return keep

    handles = [site.linears[0].module.register_forward_pre_hook(hook(site.name)) for site in sites]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _keep_states(states: list[Tensor]) -> Any:
    return lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"])


def _run(module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], states: Tensor) -> Tensor:
    others, named = call
    return _states(module(states, *others, **named))


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
