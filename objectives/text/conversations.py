"""Conversations as text: what the chat template of a model makes of a list of messages.

Responsible for checking messages, and for rendering the same messages to the same text on every day. May assume a
tokenizer of transformers: it reads the special tokens that a template writes as what they are.
"""

from collections.abc import Mapping
from typing import Any

from objectives.errors import InputError
from objectives.text.bos import beginning

# Some templates write today's date. Text that changes overnight would be other documents for a study that goes on.
FIXED_DATE = "{% macro strftime_now(format) %}2025-01-01{% endmacro +%}"
FIELDS = ("role", "content")


def render(messages: object, tokenizer: Any, where: str) -> str:
    """Render one conversation, without the tokens that the tokenizer itself puts before a text.

    Templates often write these too. Every sequence begins with them once, by the same rule as other text (`bos`).

    Args:
        messages: A list of objects with `role` and `content`, both text.
        tokenizer: Of the model; its chat template decides what the text looks like.
        where: The row, for errors.

    Raises:
        InputError: If they are no messages, or the tokenizer has no template, or the template refuses them.
    """
    _require_messages(messages, where)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{where} holds messages, and the model's tokenizer has no chat template that makes text of them; "
            "give rows with a column 'text', or a model with a chat template (most instruct models have one)"
        )
    try:
        template = FIXED_DATE + tokenizer.get_chat_template()
        text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception as error:
        # A template is a program that comes with the model: it may refuse in any way.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{where} holds messages that the model's chat template refuses: {reason}; correct or remove the row"
        ) from error
    return text.removeprefix("".join(tokenizer.convert_ids_to_tokens(list(beginning(tokenizer, "auto")))))


def _require_messages(messages: object, where: str) -> None:
    if not isinstance(messages, list):
        raise InputError(f"{where} holds {type(messages).__name__} where a list of messages is needed")
    if not messages:
        raise InputError(f"{where} holds an empty list of messages; remove the row")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise InputError(
                f"{where} message {number} is {type(message).__name__}, not an object with role and content"
            )
        for name in FIELDS:
            if name not in message:
                raise InputError(f"{where} message {number} has no {name!r}; it has {', '.join(map(str, message))}")
            if not isinstance(message[name], str):
                raise InputError(f"{where} message {number} holds {type(message[name]).__name__} in {name!r}, not text")
