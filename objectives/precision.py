"""Is the model's own 16-bit type good enough to measure differences of a few thousandths of a nat?

Responsible for the check: on 16 sequences the mean NLL must agree with float32 within 0.002, and the
difference between nearest rounding and full precision must move by at most 0.002; and for the noise floor of
divergences. May assume a model whose weights are original. The answer is kept, because it only depends on the model and
the text.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import xxhash

from objectives.model.finding import find_blocks
from objectives.model.loading import Model
from objectives.model.memory import available_bytes, is_out_of_memory
from objectives.model.roles import Block
from objectives.model.weights import Weights
from objectives.progress import Progress
from objectives.scoring import score, score_all
from objectives.teacher import compute_teacher
from objectives.text.sequences import Sequences
from quant.scheme import Scheme, effective_weight, scale_type
from storage.errors import DamagedEntryError, StoredValueError
from storage.results import ResultStore
from storage.typed_json import decode, encode

log = logging.getLogger(__name__)

FORMAT = 2
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
        to_float32: Divergence of the full-precision model from its float32 copy.
        to_itself: Divergence of the full-precision model from itself in batches of other sizes.
        sequences: How many were compared.
    """

    dtype: str
    mean_nll: float
    rounding: float
    to_float32: float
    to_itself: float
    sequences: int = SEQUENCES

    @property
    def good(self) -> bool:
        """Return whether both stay within the tolerance."""
        return all(abs(difference) <= TOLERANCE for difference in (self.mean_nll, self.rounding))

    @property
    def noise_floor(self) -> float:
        """Return the divergence below which nothing can be told apart, nats per token."""
        return max(self.to_float32, self.to_itself)

    def __str__(self) -> str:
        verdict = "agrees" if self.good else "does not agree"
        return (
            f"{self.dtype} {verdict} with float32 on {self.sequences} sequences: mean NLL differs by "
            f"{self.mean_nll:+.4f}, the cost of nearest rounding by {self.rounding:+.4f} (at most {TOLERANCE} "
            f"allowed); no divergence below {self.noise_floor:.1e} nats means anything: full precision is "
            f"{self.to_float32:.1e} from float32 and {self.to_itself:.1e} from itself in other batches"
        )


def check_agreement(
    model: Model, blocks: Sequence[Block], sequences: Sequences, store: ResultStore, progress: Progress
) -> Agreement | None:
    """Compare the model with its float32 copy; None where there is nothing to compare or no memory for it."""
    if model.dtype == torch.float32:
        return None
    sequences = sequences[:SEQUENCES]
    key = xxhash.xxh3_128_hexdigest(f"agreement {FORMAT} {model.fingerprint} {sequences.fingerprint()}".encode())
    stored = _stored_agreement(store, key)
    if stored is not None:
        return stored
    if model.weights.wide_bytes(model.module) > available_bytes(model.device):
        log.warning("no memory for a float32 copy of the model: its %s results are not checked", model.dtype)
        return None

    def waiting() -> None:
        progress("comparing in another process", 0, 1)

    try:
        store.once(key, lambda: store.save(key, encode(_compared(model, blocks, sequences, progress)), {}), waiting)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("memory ran out beside a float32 copy of the model: its %s results are not checked", model.dtype)
        return None
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
    # Of the float32 copy, too: it is the other half of the same comparison.
    phase = f"comparing {model.dtype} with float32".replace("torch.", "")
    wide, wide_weights = model.weights.wide(model.module)
    own = score_all(model.module, sequences, phase, progress, compute_teacher(wide, sequences, phase, progress))
    itself = compute_teacher(model.module, sequences, phase, progress)
    *_, alone = score(model.module, sequences, batch_tokens=1, teacher=itself)
    reference = score_all(wide, sequences, phase, progress)
    scheme = Scheme(group_size=GROUP_SIZE, scale_dtype=scale_type(model.dtype))
    with _rounded(blocks, scheme, model.weights):
        own_rounded = score_all(model.module, sequences, phase, progress)
    with _rounded(find_blocks(wide, allow_partial=True, weights=wide_weights), scheme, wide_weights):
        reference_rounded = score_all(wide, sequences, phase, progress)
    return Agreement(
        dtype=str(model.dtype).removeprefix("torch."),
        mean_nll=own.mean_nll - reference.mean_nll,
        rounding=(own_rounded.mean_nll - own.mean_nll) - (reference_rounded.mean_nll - reference.mean_nll),
        to_float32=own.mean("kl"),
        to_itself=alone.mean("kl"),
        sequences=len(sequences),
    )


@contextmanager
def _rounded(blocks: Sequence[Block], scheme: Scheme, weights: Weights) -> Iterator[None]:
    modules = [linear.module for block in blocks for linear in block.linears]
    with weights.restored(modules), torch.inference_mode():
        for block in blocks:
            with weights.changing(block.name):
                for linear in block.linears:
                    weight = linear.weight().float()
                    linear.set_weight(effective_weight(weight, torch.ones_like(weight[0]), scheme))
        yield
