"""Is the model's own 16-bit type good enough to measure differences of a few thousandths of a nat?

Responsible for the check: on 16 sequences the mean NLL must agree with float32 within 0.002, and the
difference between nearest rounding and full precision must move by at most 0.002. May assume a model whose weights
are original. The answer is kept, because it only depends on the model and the text.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from objectives.model.finding import find_blocks
from objectives.model.loading import Model, available_bytes
from objectives.model.roles import Block
from objectives.model.weights import weights_restored
from objectives.progress import Progress
from objectives.scoring import Score, score_all
from objectives.text.sequences import Sequences
from quant.scheme import Scheme, effective_weight, scale_type
from storage.errors import DamagedEntryError, StoredValueError
from storage.results import ResultStore
from storage.typed_json import decode, encode

log = logging.getLogger(__name__)

SEQUENCES = 16
TOLERANCE = 0.002
GROUP_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a 16-bit model is from the same weights computed in float32, in nats per token.

    Attributes:
        dtype: The type that was checked.
        mean_nll: Difference of the full-precision model's mean NLL.
        rounding: Change of the difference between nearest rounding and full precision.
        sequences: How many were compared.
    """

    dtype: str
    mean_nll: float
    rounding: float
    sequences: int = SEQUENCES

    @property
    def good(self) -> bool:
        """Return whether both stay within the tolerance."""
        return all(abs(difference) <= TOLERANCE for difference in (self.mean_nll, self.rounding))

    def __str__(self) -> str:
        verdict = "agrees" if self.good else "does not agree"
        return (
            f"{self.dtype} {verdict} with float32 on {self.sequences} sequences: mean NLL differs by "
            f"{self.mean_nll:+.4f}, the cost of nearest rounding by {self.rounding:+.4f} (at most {TOLERANCE} allowed)"
        )


def check_agreement(
    model: Model, blocks: Sequence[Block], sequences: Sequences, store: ResultStore, progress: Progress
) -> Agreement | None:
    """Compare the model with its float32 copy; None where there is nothing to compare or no memory for it."""
    if model.dtype == torch.float32:
        return None
    sequences = sequences[:SEQUENCES]
    key = xxhash.xxh3_128_hexdigest(f"agreement {model.fingerprint} {sequences.fingerprint()}".encode())
    stored = _stored_agreement(store, key)
    if stored is not None:
        return stored
    if 4 * sum(parameter.numel() for parameter in model.module.parameters()) > available_bytes(model.device):
        log.warning("no memory for a float32 copy of the model: its %s results are not checked", model.dtype)
        return None

    def waiting() -> None:
        progress("comparing in another process", 0, 1)

    store.once(key, lambda: store.save(key, encode(_compared(model, blocks, sequences, progress)), {}), waiting)
    return _stored_agreement(store, key)


def _stored_agreement(store: ResultStore, key: str) -> Agreement | None:
    if key not in store:
        return None
    try:
        return decode(Agreement, store.load(key)[0], f"the comparison {key}")
    except (DamagedEntryError, StoredValueError) as damage:
        log.warning("%s; comparing again", damage)
        store.remove(key)
        return None


def _compared(model: Model, blocks: Sequence[Block], sequences: Sequences, progress: Progress) -> Agreement:
    own = _scores(model.module, blocks, sequences, model.dtype, progress)
    wide = copy.deepcopy(model.module).float()
    reference = _scores(wide, find_blocks(wide, allow_partial=True), sequences, model.dtype, progress)
    return Agreement(
        dtype=str(model.dtype).removeprefix("torch."),
        mean_nll=own[0].mean_nll - reference[0].mean_nll,
        rounding=(own[1].mean_nll - own[0].mean_nll) - (reference[1].mean_nll - reference[0].mean_nll),
        sequences=len(sequences),
    )


def _scores(
    module: Any, blocks: Sequence[Block], sequences: Sequences, dtype: torch.dtype, progress: Progress
) -> list[Score]:
    """Return the scores in full precision and after nearest rounding; `dtype` is the type that is checked."""
    # Of the float32 copy, too: it is the other half of the same comparison.
    phase = f"comparing {dtype} with float32".replace("torch.", "")
    exact = score_all(module, sequences, phase, progress)
    with _rounded(blocks, Scheme(group_size=GROUP_SIZE, scale_dtype=scale_type(dtype))):
        return [exact, score_all(module, sequences, phase, progress)]


@contextmanager
def _rounded(blocks: Sequence[Block], scheme: Scheme) -> Iterator[None]:
    linears = [linear for block in blocks for linear in block.linears]
    with weights_restored([linear.module for linear in linears]), torch.inference_mode():
        for linear in linears:
            weight = linear.weight().float()
            linear.set_weight(effective_weight(weight, torch.ones_like(weight[0]), scheme))
        yield
