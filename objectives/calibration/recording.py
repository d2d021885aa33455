"""Watch a model read text, and keep the statistics of its Linears.

Responsible for hooks and padding. The sums stay on the model's device; memory is one set of statistics and one
batch, whatever the number of sequences. May assume that the model is in full precision.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from objectives.calibration.carrying import CarriedStates
from objectives.model.experts import routed, site_name, trace
from objectives.model.roles import Block, FusedExperts, InputSite, LinearRole
from objectives.text.batches import batches
from objectives.text.sequences import Sequences
from quant.statistics import InputStatistics, InputSums, OutputStatistics, OutputSums

BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class BlockStatistics:
    """Statistics of one block: of inputs by site name, of outputs by the name of the Linear.

    `routed` says how many tokens the router sends each expert, by the name of the expert.
    """

    inputs: dict[str, InputStatistics]
    outputs: dict[str, OutputStatistics]
    routed: dict[str, int] = field(default_factory=dict)


def statistics_bytes(block: Block) -> int:
    """Return the memory of recording one block: float64 Gram matrices, and the largest float32 product."""
    return sum(8 * site.inputs**2 for site in block.sites) + max(4 * site.inputs**2 for site in block.sites)


def tokens_at_a_time(blocks: Sequence[Block]) -> int:
    """Return how many tokens the blocks may read at a time.

    An expert of a list is called with some of a batch's tokens, and nobody says with which: among those of one
    sequence there is no padding.
    """
    listed = any(not isinstance(experts, FusedExperts) for block in blocks for experts in block.experts)
    return 1 if listed else BATCH_TOKENS


def record(
    model: Any,
    blocks: Sequence[Block],
    sequences: Sequences,
    advance: Callable[[int], None],
    carried: CarriedStates | None = None,
    route_all: bool = False,
    batch_tokens: int | None = None,
) -> Iterator[BlockStatistics]:
    """Run the sequences through the model once and yield the statistics of `blocks`, on the CPU, in order.

    Args:
        model: A `PreTrainedModel`; left without hooks.
        blocks: Which of its blocks to watch; nothing after the last of them is computed.
        sequences: What to read; padding counts nowhere.
        advance: Told how many more sequences were read.
        carried: The same sequences before the first of these blocks, and then after the last; None to run the model
            from its beginning.
        route_all: Whether the statistics of every expert are of all tokens; the model itself runs as it does.
        batch_tokens: How many to read at a time; None for as many as these blocks allow.
    """
    batch_tokens = tokens_at_a_time(blocks) if batch_tokens is None else batch_tokens
    recorders = [_BlockRecorder(block, model.device, route_all) for block in blocks]
    passing = nullcontext() if carried is None else carried.passing(blocks[0].index, blocks[-1].index)
    with passing, _watching(model, recorders), torch.inference_mode():
        for number, batch in enumerate(batches(sequences, range(len(sequences)), batch_tokens, model.device)):
            if carried is not None:
                carried.begin(number)
            for recorder in recorders:
                recorder.tokens = None if batch.attention is None else batch.attention.flatten()
            with suppress(_BlocksDone):
                # The backbone alone: the head's logits are not looked at.
                model.base_model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
            advance(len(batch.indices))
    while recorders:
        yield recorders.pop(0).statistics()


class _BlocksDone(Exception):
    """Raised by a hook once the last watched block has run."""


class _BlockRecorder:
    """The sums of one block, and the hooks that feed them."""

    def __init__(self, block: Block, device: torch.device, route_all: bool) -> None:
        self.block = block
        self.tokens: Tensor | None = None
        self._route_all = route_all
        self._routed = {expert.name: 0 for experts in block.experts for expert in experts.experts}
        self._inputs = {site.name: InputSums(site.inputs, device) for site in block.sites}
        self._outputs = {linear.name: OutputSums(linear.shape[0], device) for linear in block.linears}

    def attach(self) -> Iterator[Any]:
        """Register the hooks; yields their handles."""
        for site in self.block.sites:
            if site.linears[0].expert is not None:
                continue
            yield site.linears[0].module.register_forward_pre_hook(self._input_hook(site))
            for module in {linear.module for linear in site.linears}:
                slices = [linear for linear in site.linears if linear.module is module]
                yield module.register_forward_hook(self._output_hook(site, slices))
        for experts in self.block.experts:
            if not isinstance(experts, FusedExperts):
                continue
            yield experts.module.register_forward_pre_hook(self._experts_hook(experts), with_kwargs=True)

    def statistics(self) -> BlockStatistics:
        """Return the means of everything seen, on the CPU."""
        inputs = {name: _on_cpu(sums.means()) for name, sums in self._inputs.items()}
        # What `down` reads is the gated product: its magnitude is already known from there.
        gated = {
            site.linears[0].owner: inputs[site.name].magnitude
            for site in self.block.sites
            if site.linears[0].role == "down"
        }
        outputs = {linear.name: self._output_statistics(linear, gated) for linear in self.block.linears}
        return BlockStatistics(inputs=inputs, outputs=outputs, routed=dict(self._routed))

    def _output_statistics(self, linear: LinearRole, gated: Mapping[str, Tensor]) -> OutputStatistics:
        sums = self._outputs[linear.name]
        means = {name: tensor.cpu() for name, tensor in sums.means().items()}
        structural = {
            "activated": means["activated"],
            "gated product": next(iter(gated.values())) if len(gated) == 1 else gated.get(linear.owner),
            "plain": means["magnitude"],
        }[linear.structure]
        assert structural is not None, f"{linear.name} is gated, but nothing reads the product"
        return OutputStatistics(tokens=sums.tokens, structural=structural, **means)

    def _input_hook(self, site: InputSite) -> Callable[..., None]:
        owner = site.linears[0].owner
        counts = site.pool is not None and site.linears[0].role == "gate"

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = self._rows(args[0])
            if len(rows):
                self._inputs[site.name].add(rows)
            if counts:
                self._routed[owner] += len(rows)

        return hook

    def _output_hook(self, site: InputSite, slices: Sequence[LinearRole]) -> Callable[..., None]:
        activation = self.block.activation if site.kind == "mlp" else None

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            rows = self._rows(output)
            for linear in slices if len(rows) else ():
                own = rows if linear.rows is None else rows[:, linear.rows]
                self._outputs[linear.name].add(own, activation)

        return hook

    def _experts_hook(self, experts: FusedExperts) -> Callable[..., None]:
        forward = signature(experts.module.forward)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states, numbers = forward.bind(*args, **kwargs).args[:2]
            count = len(experts.experts)
            if self.tokens is not None:
                numbers = numbers.masked_fill(~self.tokens[:, None], count)
            rows = states.reshape(-1, states.shape[-1])
            for number, tokens in enumerate(routed(numbers, count)):
                self._routed[experts.experts[number].name] += len(tokens)
                own = self._rows(rows) if self._route_all else rows[tokens]
                if len(own):
                    self._add_expert(experts, number, own)

        return hook

    def _add_expert(self, experts: FusedExperts, number: int, x: Tensor) -> None:
        expert, traced = experts.experts[number], trace(experts, number, x)
        self._inputs[site_name(experts, number, expert.gate, expert.up)].add(x)
        self._inputs[site_name(experts, number, expert.down)].add(traced.hidden)
        for linear, outputs in ((expert.gate, traced.gate), (expert.up, traced.up), (expert.down, traced.down)):
            self._outputs[linear.name].add(outputs, self.block.activation)

    def _rows(self, tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, tensor.shape[-1])
        return rows if self.tokens is None else rows[self.tokens]


@contextmanager
def _watching(model: Any, recorders: Sequence[_BlockRecorder]) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _BlocksDone

    handles = [handle for recorder in recorders for handle in recorder.attach()]
    handles.append(model.get_submodule(recorders[-1].block.name).register_forward_hook(stop))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_cpu(statistics: InputStatistics) -> InputStatistics:
    return InputStatistics(
        tokens=statistics.tokens,
        gram=statistics.gram.cpu(),
        magnitude=statistics.magnitude.cpu(),
        mean=statistics.mean.cpu(),
    )
