"""The first phase of a refinement: codes that move where text that is held back finds the model nearer for it.

Responsible for scoring that text before and after, once, and for putting into the model what is kept. May assume a
model that holds the codes as they were rounded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from objectives.progress import Progress, silent
from objectives.refined import moved, put_codes
from objectives.refinement.block_codes import RoundedModel
from objectives.refinement.codes import MOST_SEQUENCES, move_codes
from objectives.refinement.moves_entry import MovesEntry
from objectives.refinement.options import RefinementText
from objectives.refinement_record import CodeMoves
from objectives.scoring import score_all
from objectives.teacher import Teacher
from quant.scheme import IntWeight


@dataclass(frozen=True, kw_only=True)
class Moving:
    """What became of the codes before scales are tuned.

    Attributes:
        codes: By name of the Linear, on the CPU; the model holds them.
        outcome: What moving them gained; None where they were to stay.
        is_whole: Whether all blocks were gone through.
        seconds: What it took of the time that there is.
    """

    codes: Mapping[str, IntWeight]
    outcome: CodeMoves | None = None
    is_whole: bool = True
    seconds: float = 0.0

    @property
    def kl(self) -> float:
        """Return the KL on what is held back, nats per token."""
        return math.nan if self.outcome is None else self.outcome.best


def moved_codes(
    rounded: RoundedModel, text: RefinementText, validation: Teacher, entry: MovesEntry, progress: Progress
) -> Moving:
    """Move codes where that brings what is held back nearer; the model is left with what is returned.

    Args:
        rounded: The model.
        text: What is read, and what is held back.
        validation: Full precision on what is held back.
        entry: Where the moves are kept.
        progress: Told how many blocks are done.

    Raises:
        InputError, StorageError: As `move_codes`.
    """
    if not rounded.options.code_steps:
        return Moving(codes=rounded.codes)
    kept = entry.read()
    if kept.outcome is not None:
        as_kept = {name: moved(weight, kept.moves.get(name)) for name, weight in rounded.codes.items()}
        moving = Moving(codes=as_kept, outcome=kept.outcome)
    else:
        moving = _newly_moved(rounded, text, validation, kept.moves, entry, progress)
    assert moving.outcome is not None
    codes = moving.codes if moving.outcome.kept else rounded.codes
    for block in rounded.bench.blocks:
        with rounded.bench.model.weights.changing(block.name):
            put_codes(block, codes)
    return replace(moving, codes=codes)


def _newly_moved(
    rounded: RoundedModel,
    text: RefinementText,
    validation: Teacher,
    moves: Mapping[str, Tensor],
    entry: MovesEntry,
    progress: Progress,
) -> Moving:
    """Move codes from where they are on as far as there is time, and score what is held back before and after."""

    def kl() -> float:
        return score_all(rounded.bench.model.module, text.validation, "", silent, validation).mean("kl")

    before = kl()

    def telling(phase: str, done: int, total: int) -> None:
        progress(f"{phase}; KL {before:.4f} on what is held back before", done, total)

    result = move_codes(rounded, text.training, moves, entry, telling)
    outcome = CodeMoves(
        steps=rounded.options.code_steps,
        blocks=result.blocks,
        of_blocks=len(rounded.bench.blocks),
        drift=rounded.options.code_drift,
        sequences=min(MOST_SEQUENCES, len(text.training)),
        share=result.share,
        before=before,
        after=kl(),
    )
    is_whole = result.blocks == len(rounded.bench.blocks)
    if is_whole:
        entry.save(result.moves, outcome)
    return Moving(codes=result.codes, outcome=outcome, is_whole=is_whole, seconds=result.seconds)
