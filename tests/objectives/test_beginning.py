"""Whether a model needs the token that begins a text is measured, kept, and said where the choice costs much."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from objectives import beginning
from objectives.beginning import beginning_note
from objectives.model.loading import Model
from objectives.progress import silent
from objectives.text.sequences import Sequences
from storage.results import ResultStore
from tests.objectives import tiny

NEEDED = 1


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model that knows what comes next where the text begins with its token, and guesses where it does not."""
    made = replace(tiny.model(tiny.LAYOUTS["llama"]()), tokenizer=SimpleNamespace(bos_token_id=NEEDED))

    def score_all(module: Any, text: Sequences, *_: Any) -> Any:
        begun = all(int(ids[0]) == NEEDED for ids in text.ids)
        counted = [int(scored.sum()) for scored in text.scored]
        assert counted == [len(ids) - 1 - begun for ids in text.ids]
        return SimpleNamespace(mean_nll=3.28 if begun else 4.18)

    monkeypatch.setattr(beginning, "score_all", score_all)
    return made


def begun(text: Sequences) -> Sequences:
    token = torch.tensor([NEEDED])
    return replace(
        text,
        ids=tuple(torch.cat([token, ids]) for ids in text.ids),
        scored=tuple(torch.cat([torch.tensor([False]), scored[:1] | True, scored[1:]]) for scored in text.scored),
        prefix=(NEEDED,),
    )


def test_a_choice_that_costs_much_is_said_with_its_remedy(model: Model, tmp_path: Path) -> None:
    """The same targets both ways; the numbers and the flag are in one line."""
    text, store = tiny.sequences([100, 80, 20], seed=3), ResultStore(tmp_path)
    note = beginning_note(model, text, store, silent)
    assert note is not None
    assert "has 4.18 nats per token without a beginning-of-text token and 3.28 with one" in note
    assert "scored without it; --bos always is what" in note
    assert beginning_note(model, begun(text), store, silent) is None


def test_it_is_measured_once(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of a model and a text is read again."""
    text, store = tiny.sequences([20], seed=3), ResultStore(tmp_path)
    first = beginning_note(model, text, store, silent)
    monkeypatch.delattr(beginning, "score_all")
    assert beginning_note(model, text, store, silent) == first


def test_nothing_is_measured_without_such_a_token(model: Model, tmp_path: Path) -> None:
    """A tokenizer has none, or one that the model does not know."""
    text = tiny.sequences([20], seed=3)
    for number in (None, tiny.VOCABULARY):
        other = replace(model, tokenizer=SimpleNamespace(bos_token_id=number))
        assert beginning_note(other, text, ResultStore(tmp_path), silent) is None
    assert not tmp_path.joinpath("x").exists()
