"""Conversations through the command line: every flag that takes text takes rows with messages."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import objectives.bundled
from objectives.text.sources import read_documents
from tests.commands import printed, refusal

BUNDLED = Path(objectives.bundled.__file__).parent / "model"
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
SMALL = ["--seq-len", "32", "--dtype", "float32", "--n-calib", "4", "--n-grid", "3"]


@pytest.fixture
def chats(tmp_path: Path) -> str:
    """A file of conversations about the bundled text."""
    dice = random.Random(0)
    texts = [" ".join(text.split())[:400] for text in read_documents("bundled:topics")[:60]]
    conversations = [
        [{"role": "user", "content": f"What is {dice.random()}?"}, {"role": "assistant", "content": text}]
        for text in texts
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(path)


def test_a_model_is_calibrated_and_scored_on_conversations(capsys: Any, tmp_path: Path, chats: str) -> None:
    """The template of the model's own directory renders them, for calibration and for evaluation."""
    model = tmp_path / "instruct"
    shutil.copytree(BUNDLED, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    flags = ["--model", str(model), "--eval-samples", "9", "--cache", str(tmp_path / "cache"), *SMALL]
    record = printed(capsys, "evaluate", *flags, "--eval-data", chats, "--calib-data", chats, "--method", "gw-awq")
    assert [row["dataset"] for row in record["rows"]] == [chats] * 2
    assert all(1 < row["perplexity"] < 1000 for row in record["rows"])


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--eval-data"],
        ["evaluate", "--method", "gw-awq", "--calib-data"],
        ["optimize", "--trials", "1", "--confirm-data"],
        ["quantize", "--method", "gw-awq", "--refine", "--output-dir", "out", "--refine-data"],
    ],
    ids=lambda command: command[-1].removeprefix("--"),
)
def test_the_tokenizer_of_the_model_is_asked_for_every_flag(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chats: str, command: list[str]
) -> None:
    """A model without a chat template is refused in one line, whichever flag names conversations."""
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys, *command, chats, *SMALL, "--cache", str(tmp_path / "cache"))
    assert f"{chats} line 1 holds messages, and the model's tokenizer has no chat template" in line
    assert not (tmp_path / "out").exists()
