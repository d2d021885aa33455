"""Rows with messages are documents as the model's chat template renders them, and begin as other text does."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from objectives.errors import InputError
from objectives.text.sequences import PROTOCOLS, Sequences, TextPlan, prepare_text
from objectives.text.sources import read_documents

TURNS = "{% for m in messages %}<turn>{{ m['role'] }} {{ m['content'] }}<end> {% endfor %}"
BEGUN = "{{ bos_token }}" + TURNS
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must\nalternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
START, TURN, END = 0, 2, 3
WORDS = ["user", "assistant", "scale", "of", "a", "group", "is", "its", "largest", "weight", *map(str, range(60))]
SHORT = [{"role": "user", "content": "a scale"}, {"role": "assistant", "content": "of a group"}]


def make_tokenizer(template: str | None, adds: bool, bos: str | None = "<s>") -> Any:
    """A tokenizer of words; where it `adds`, it puts `<s>` before a text."""
    special = ["<s>", "</s>", "<turn>", "<end>", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*special, *WORDS])}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="</s>",
        additional_special_tokens=["<turn>", "<end>"],
        chat_template=template,
    )


def conversation(number: int) -> list[dict[str, str]]:
    """A conversation of two messages that no other number has."""
    words = [WORDS[2 + (number * place) % (len(WORDS) - 2)] for place in range(1, 30)]
    return [
        {"role": "user", "content": f"{number} is"},
        {"role": "assistant", "content": " ".join([f"{number}", *words])},
    ]


def write(path: Path, *conversations: object) -> str:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file of sixty conversations."""
    return write(tmp_path / "chats.jsonl", *map(conversation, range(60)))


def sequences_of(source: str, tokenizer: Any, **changes: Any) -> Sequences:
    plan = TextPlan(**{"source": source, "part": "tuning", "count": 20, "length": 16, **changes})
    return prepare_text([plan], tokenizer)[0]


def refusal(source: str, tokenizer: Any) -> str:
    """The one line with which a source is refused."""
    with pytest.raises(InputError) as caught:
        read_documents(source, tokenizer)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Reading


def test_messages_are_a_document_as_the_template_renders_them(source: str) -> None:
    """A row without text is the whole of its conversation, with the tokens of its turns."""
    first, *others = read_documents(source, make_tokenizer(TURNS, adds=False))
    assert first.startswith("<turn>user 0 is<end> <turn>assistant 0 scale")
    assert len(others) == 59


def test_text_is_read_where_a_row_has_both(tmp_path: Path) -> None:
    """Messages are rendered only where there is no text."""
    path = tmp_path / "both.jsonl"
    path.write_text(json.dumps({"messages": SHORT, "text": "the text"}))
    assert read_documents(str(path)) == ["the text"]


def test_parquet_and_the_hub_have_messages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kinds of rows are rendered alike: fields that only some messages have count where they are; the hub's
    column may have any name."""
    tokenizer = make_tokenizer("{% for m in messages %}{{ m.get('name', 'nobody') }} {% endfor %}", adds=False)
    messages = [SHORT[0] | {"name": "Ada"}, SHORT[1]]
    lines = write(tmp_path / "chats.jsonl", messages)
    table = tmp_path / "chats.parquet"
    pa.parquet.write_table(pa.table({"messages": [messages]}), table)

    def load(*args: object, **kwargs: object) -> list[object]:
        return [{"messages": messages, "talk": messages}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in (lines, str(table), "hub:org/name", "hub:org/name:::talk"):
        assert read_documents(source, tokenizer) == ["Ada nobody "]


def test_a_template_with_a_date_renders_the_same_on_every_day(tmp_path: Path) -> None:
    """A study that goes on tomorrow reads the text of today, also where a macro of the template writes the date."""
    source = write(tmp_path / "chats.jsonl", SHORT)
    dated = "{% macro day() %}{{ strftime_now('%d %b') }}{% endmacro %}{% if strftime_now is defined %}{{ day() }}"
    text = read_documents(source, make_tokenizer(dated + "{% endif %} {{ messages[0]['content'] }}", adds=False))
    assert text == ["2025-01-01 a scale"]


def test_the_templates_own_beginning_is_kept_as_it_is(tmp_path: Path) -> None:
    """What keeps the date fixed changes no character of a template that writes none."""
    source = write(tmp_path / "chats.jsonl", SHORT)
    assert read_documents(source, make_tokenizer("\n\n{{ messages[1]['content'] }}", adds=False)) == ["\n\nof a group"]


# Sequences


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("bos", ["auto", "always"])
@pytest.mark.parametrize(
    ("template", "adds"), [(BEGUN, True), (TURNS, True), (BEGUN, False)], ids=["both", "tokenizer", "template"]
)
def test_a_sequence_begins_with_one_token_that_says_so(
    source: str, protocol: Any, bos: Any, template: str, adds: bool
) -> None:
    """Whether tokenizer or template or both begin a text, no sequence has the token twice at its start."""
    sequences = sequences_of(source, make_tokenizer(template, adds), protocol=protocol, bos=bos)
    assert all(ids[1] != START for ids in sequences.ids)
    if adds or bos == "always" or protocol == "documents":
        assert all(ids[0] == START for ids in sequences.ids)
        assert not any(scored[0] for scored in sequences.scored)
    if adds:
        assert all((ids == START).sum() == 1 for ids in sequences.ids)
    assert len({len(ids) for ids in sequences.ids}) == 1
    assert len(sequences) == 20


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_never_takes_out_what_the_tokenizer_would_add(source: str, protocol: Any) -> None:
    """`--bos never` means the same for conversations as for other text."""
    sequences = sequences_of(source, make_tokenizer(BEGUN, adds=True), protocol=protocol, bos="never")
    assert not any((ids == START).any() for ids in sequences.ids)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_token_of_a_turn_that_a_text_could_begin_with_is_no_beginning(source: str, protocol: Any) -> None:
    """A tokenizer may name the token of a turn as the one that begins a text; it stays before every turn, once."""
    tokenizer = make_tokenizer(TURNS, adds=False, bos="<turn>")
    for bos in ("auto", "always"):
        sequences = sequences_of(source, tokenizer, protocol=protocol, bos=bos)
        for ids in sequences.ids:
            turns = [int(after) for token, after in pairwise(ids) if token == TURN]
            assert TURN not in turns
            assert set(turns[1:]) <= {5, 6}
        if bos == "always" or protocol == "documents":
            assert all(ids[0] == TURN for ids in sequences.ids)


def test_blocks_that_begin_with_a_conversation_lose_none_of_it(source: str) -> None:
    """A beginning that the text has itself takes the place of the one that is put before a block."""
    tokenizer = make_tokenizer(TURNS, adds=False, bos="<turn>")
    texts = read_documents(source, tokenizer)
    (length,) = {len(tokenizer(text).input_ids) for text in texts}
    blocks = sequences_of(source, tokenizer, bos="always", length=length, count=len(texts))
    assert {tokenizer.decode(ids) for ids in blocks.ids} == {
        tokenizer.decode(tokenizer(text).input_ids) for text in texts
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tokens_of_turns_are_special_and_scored(source: str, protocol: Any) -> None:
    """What a template writes is one token each, and a target like any other."""
    sequences = sequences_of(source, make_tokenizer(TURNS, adds=True), protocol=protocol, length=40)
    assert all({TURN, END} <= set(ids.tolist()) for ids in sequences.ids)
    assert all(scored[1:].all() for scored in sequences.scored)


def test_another_template_is_another_text(source: str) -> None:
    """Whatever is kept under the fingerprint of a text is not met again under another template."""
    prints = [
        sequences_of(source, make_tokenizer(template, adds=False)).fingerprint() for template in (TURNS, TURNS + "a")
    ]
    assert prints[0] != prints[1]


# Bad input


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "holds str where a list of messages is needed"),
        ({"role": ["user"], "content": ["a"]}, "holds dict where a list of messages is needed"),
        (None, "holds NoneType where a list of messages is needed"),
        ([], "holds an empty list of messages; remove the row"),
        (["hello"], "message 1 is str, not an object with role and content"),
        ([SHORT[0], {"from": "gpt", "value": "a"}], "message 2 has no 'role'; it has from, value"),
        ([{"role": "user"}], "message 1 has no 'content'; it has role"),
        ([{"role": "user", "content": None}], "message 1 holds NoneType in 'content', not text"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "message 1 holds list in 'content', not text"),
        ([SHORT[0], SHORT[0]], "holds messages that the model's chat template refuses: Roles must alternate"),
    ],
)
def test_messages_that_cannot_be_rendered_are_refused_with_their_row(
    tmp_path: Path, messages: object, reason: str
) -> None:
    """One line names the row, the message and what is wrong with it."""
    source = write(tmp_path / "chats.jsonl", SHORT, messages)
    assert f"{source} line 2 {reason}" in refusal(source, make_tokenizer(STRICT, adds=False))


@pytest.mark.parametrize("template", ["{{ 1 + messages }}", "{% if %}", "{{ messages.absent.absent }}"])
def test_a_template_that_fails_is_one_line(tmp_path: Path, template: str) -> None:
    """Whatever goes wrong in a template is a line that names the row."""
    source = write(tmp_path / "chats.jsonl", SHORT)
    message = refusal(source, make_tokenizer(template, adds=False))
    assert f"{source} line 1 holds messages that the model's chat template refuses: " in message


def test_a_model_without_a_template_is_refused_with_what_to_do(source: str) -> None:
    """Base models often have none: rows of text, or an instruct model, are the remedies."""
    message = refusal(source, make_tokenizer(None, adds=True))
    assert f"{source} line 1 holds messages, and the model's tokenizer has no chat template" in message
    assert "give rows with a column 'text', or a model with a chat template" in message
