"""Ask a decoder block what it computes: run a copy of it on what it read, changed in ways that tell.

Responsible for running a block alone, in float32, and for telling whether a change shows in anything that it puts out.
May assume a model in evaluation mode; the model itself is never changed. Shape letters: `T` tokens, `O` outputs.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from objectives.errors import InputError
from objectives.model.layouts import UNUSABLE, Rows
from storage.errors import StorageError

TOKENS = 16
SEED = 1
# Of what the block adds to its input: far above rounding in float32, far below what a fold through something that
# does not commute with it changes.
TOLERANCE = 1e-3
# Of a number itself: what the residual stream rounds away.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Call:
    """What a block was called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What a block computed.

    Attributes:
        watched: Outputs of the Linears that are watched.
        put_out: Whatever anything outside can see: what the block returns, and what it leaves in its arguments and in
            its modules.
    """

    watched: tuple[Tensor, ...]
    put_out: tuple[Tensor, ...]

    @property
    def finite(self) -> bool:
        """Return whether every number is one; attention masks may have infinite ones."""
        numbers = all(not bool(tensor.isnan().any()) for tensor in self.put_out)
        return numbers and all(bool(tensor.isfinite().all()) for tensor in self.watched)


def read_calls(module: Any, layers: Sequence[nn.Module]) -> list[Call | None]:
    """Run a short random sequence through the model; returns what each block was first called with, None if never.

    Raises:
        InputError: If the model cannot be run.
    """
    calls: list[Call | None] = [None] * len(layers)

    def keep(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if calls[index] is None:
                calls[index] = Call(*_copied((args, kwargs)))

        return hook

    handles = [layer.register_forward_pre_hook(keep(index), with_kwargs=True) for index, layer in enumerate(layers)]
    ids = torch.randint(
        module.get_input_embeddings().weight.shape[0], (1, TOKENS), generator=torch.Generator().manual_seed(SEED)
    )
    try:
        with torch.no_grad():
            module.base_model(input_ids=ids.to(module.device), use_cache=False)
    except StorageError:
        raise
    except UNUSABLE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{type(module).__name__} cannot be run on {TOKENS} tokens: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


class Probe:
    """A copy of one block in float32, with what it was called with."""

    def __init__(self, layer: nn.Module, call: Call) -> None:
        self.layer = copy.deepcopy(layer).float()
        self._call = call

    def run(self, watched: Sequence[nn.Module] = ()) -> Seen:
        """Run the block as it is now."""
        outputs: list[Tensor] = []
        args, kwargs = _wide(_copied((self._call.args, dict(self._call.kwargs))))
        with ExitStack() as stack, torch.no_grad():
            for module in watched:
                stack.enter_context(_hooked(module, lambda _, out: outputs.append(out.detach().clone())))
            returned = self.layer(*args, **kwargs)
        stashed = [
            value
            for module in self.layer.modules()
            for name, value in vars(module).items()
            if name not in ("_parameters", "_buffers", "_modules")
        ]
        return Seen(tuple(outputs), tuple(_floats((returned, args, kwargs, stashed))))

    def read_by(self, module: nn.Module) -> Tensor | None:
        """Return what a module inside the block reads, `[..., I]`; None where it is not run."""
        inputs: list[Tensor] = []
        with _hooked(module, lambda args, _: inputs.append(args[0].detach().clone())):
            self.run()
        return inputs[0] if inputs else None

    @contextmanager
    def changed_output(self, module: nn.Module, change: Callable[[Tensor], None]) -> Iterator[None]:
        """Change, in place, what a module puts out inside the block."""

        def changed(_: tuple[Any, ...], out: Tensor) -> Tensor:
            own = out.clone()
            change(own)
            return own

        with _hooked(module, changed):
            yield

    def is_qkv(self, module: nn.Module, rows: Rows, reader: nn.Module) -> bool:
        """Return whether these rows of a fused projection are the queries, keys and values of what `reader` reads.

        The first token attends to itself alone: its query changes nothing, and its key nothing of its own.
        """
        before = self.read_by(reader)
        if before is None or not before.isfinite().all():
            return True
        other_query, other_key = (self._read_with_another_first(module, rows[role], reader) for role in ("q", "k"))
        scale = _rms(before)
        return _close(other_query, before, scale) and _close(_first(other_key), _first(before), scale)

    def _read_with_another_first(self, module: nn.Module, rows: Tensor, reader: nn.Module) -> Tensor:
        """Return what `reader` reads if the module puts out something else in these rows, at the first token."""
        noise = torch.randn(len(rows), generator=torch.Generator().manual_seed(SEED))

        def change(out: Tensor) -> None:
            _first(out)[..., rows] += 10 * out.std() * noise.to(out)

        with self.changed_output(module, change):
            changed = self.read_by(reader)
        assert changed is not None
        return changed

    def multiplies(self, module: nn.Module, rows: Tensor | None, reader: nn.Module) -> bool:
        """Return whether what `reader` reads is proportional to each of these outputs: those of `up`, not of `gate`."""
        before = self.read_by(reader)
        if before is None or not before.isfinite().all():
            return True
        own = slice(None) if rows is None else rows

        def change(out: Tensor) -> None:
            out[..., own] *= -2

        with self.changed_output(module, change):
            after = self.read_by(reader)
        return after is not None and _close(after, -2 * before, _rms(before))


def same(before: Seen, after: Seen) -> bool:
    """Return whether nothing changed beyond rounding."""
    if [tensor.shape for tensor in before.put_out] != [tensor.shape for tensor in after.put_out]:
        return False
    scales = [_rms(tensor) for tensor in before.watched]
    inside = zip(before.watched, after.watched, scales, strict=True)
    if not all(_close(new, old, scale) for old, new, scale in inside):
        return False
    pairs = zip(before.put_out, after.put_out, strict=True)
    return all(_close(new, old, min(scales, default=_rms(old))) for old, new in pairs)


def _close(new: Tensor, old: Tensor, scale: float) -> bool:
    # Written so that NaN is a difference, and an equal infinity none.
    return bool(((new == old) | ((new - old).abs() <= TOLERANCE * scale + ROUNDING * old.abs())).all())


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def _first(tensor: Tensor) -> Tensor:
    """View the first token of `[1, T, O]` or `[T, O]`."""
    return tensor[:, 0] if tensor.dim() == 3 else tensor[0]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[tuple[Any, ...], Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, args, out: hook(args, out))
    try:
        yield
    finally:
        handle.remove()


def _copied(value: Any) -> Any:
    with torch.no_grad():
        return copy.deepcopy(value)


def _wide(value: Any) -> Any:
    """Convert the floating-point tensors in arguments to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_wide(part) for part in value)
    if type(value) is dict:
        return {key: _wide(part) for key, part in value.items()}
    if isinstance(value, Mapping) and hasattr(value, "__setitem__"):
        for key in list(value):
            value[key] = _wide(value[key])
    return value


def _floats(value: Any) -> Iterator[Tensor]:
    """Return every floating-point tensor in nested values."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach().float().clone()
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _floats(part)
