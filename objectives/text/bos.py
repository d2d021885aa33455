"""What comes before a text: the tokens that say that a sequence begins.

Responsible for which they are under each choice of `--bos`. May assume a tokenizer of transformers, fast or in Python.
"""

from typing import Any, Literal

from objectives.errors import InputError

Beginning = Literal["auto", "always", "never"]
BEGINNINGS: tuple[Beginning, ...] = ("auto", "always", "never")
ANY_TEXT = "a"


def beginning(tokenizer: Any, bos: Beginning) -> tuple[int, ...]:
    """Return the token ids that come before a text.

    Raises:
        InputError: If there are to be some and the tokenizer has none.
    """
    if bos == "never":
        return ()
    encoded = tokenizer(ANY_TEXT, return_special_tokens_mask=True)
    special = [*encoded.special_tokens_mask, 0]
    usual = tuple(encoded.input_ids[: special.index(0)])
    if usual or bos == "auto":
        return usual
    if tokenizer.bos_token_id is None:
        raise InputError("the tokenizer has no token that begins a text; use --bos auto or --bos never")
    return (int(tokenizer.bos_token_id),)
