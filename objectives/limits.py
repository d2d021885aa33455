"""What a model can read: how long a sequence may be, and which tokens it knows.

Responsible for refusing text that the model cannot read before anything is computed, and for saying where it reads more
than it was made for. May assume a loaded `PreTrainedModel`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from objectives.errors import InputError
from objectives.text.sequences import Sequences, TextPlan

POSITION_NAMES = ("pos", "wpe")


def require_length(module: Any, plans: Iterable[TextPlan]) -> None:
    """Refuse packed sequences that are longer than the positions that a model has learned.

    Raises:
        InputError: Naming the limit.
    """
    limit = learned_positions(module)
    longest = max((plan.length for plan in plans if plan.protocol == "packed"), default=0)
    if limit is not None and longest > limit:
        raise InputError(_too_long(module, longest, limit))


def require_readable(module: Any, texts: Sequence[Sequences], tokenizer: Any) -> None:
    """Refuse text that has longer sequences than the model has positions, or tokens that it has no embedding for.

    Raises:
        InputError: Naming the text and the limit.
    """
    limit, count = learned_positions(module), module.get_input_embeddings().weight.shape[0]
    for text in texts:
        longest = max(len(ids) for ids in text.ids)
        if limit is not None and longest > limit:
            raise InputError(_too_long(module, longest, limit))
        largest = max(int(ids.max()) for ids in text.ids)
        if largest >= count:
            raise InputError(
                f"{text.source} has the token {largest} ({_token(tokenizer, largest)}) and the model has embeddings "
                f"only for 0 to {count - 1}; give the tokenizer that it was trained with, other text, or a model whose "
                "embeddings were resized"
            )


def length_note(module: Any, texts: Sequence[Sequences]) -> str | None:
    """Say that sequences are longer than what a model without learned positions was made for; None if they are not."""
    made_for = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(ids) for text in texts for ids in text.ids), default=0)
    if learned_positions(module) is not None or not isinstance(made_for, int) or not 0 < made_for < longest:
        return None
    return (
        f"sequences have {longest} tokens and the model was made for {made_for} (max_position_embeddings): what it "
        f"says beyond them is no measure of it; use --seq-len {made_for}"
    )


def learned_positions(module: Any) -> int | None:
    """Return how many positions a model has an embedding for; None where positions need none."""
    tokens = module.get_input_embeddings()
    # Encoders of images have positions of their own; those of text stand beside the embeddings of its tokens.
    beside = next((name for name, child in module.named_modules() if child is tokens), "").rpartition(".")[0]
    counts = [
        child.num_embeddings - int(getattr(child, "offset", 0) or 0)
        for name, child in module.named_modules()
        if isinstance(child, nn.Embedding) and name.startswith(beside) and _is_of_positions(name)
    ]
    return min(counts, default=None)


def _is_of_positions(name: str) -> bool:
    leaf = name.rpartition(".")[2].lower()
    return any(part in leaf for part in POSITION_NAMES)


def _too_long(module: Any, longest: int, limit: int) -> str:
    return (
        f"sequences of {longest} tokens are longer than the {limit} positions that {type(module).__name__} learned; "
        f"use --seq-len {limit} or less"
    )


def _token(tokenizer: Any, number: int) -> str:
    token = tokenizer.convert_ids_to_tokens(number) if tokenizer is not None else None
    return repr(token)
