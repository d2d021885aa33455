"""Text that a model cannot read is refused with the limit, before anything is computed."""

from typing import Any

import pytest
import torch

from objectives.errors import InputError
from objectives.limits import learned_positions, length_note, require_length, require_readable
from objectives.text.sequences import TextPlan
from tests.objectives import tiny
from tests.objectives.tiny import CONTEXT, LAYOUTS, VOCABULARY

PLAN = TextPlan(source="some.txt", part="tuning", count=1, length=CONTEXT)


@pytest.fixture(scope="module")
def opt() -> Any:
    return tiny.module(LAYOUTS["opt"]())


def test_learned_positions_are_counted() -> None:
    """OPT has an embedding for each, and two that no token has; rotary models need none."""
    found = {layout: learned_positions(tiny.module(LAYOUTS[layout]())) for layout in ("opt", "llama", "gpt-neox")}
    assert found == {"opt": CONTEXT, "llama": None, "gpt-neox": None}


def test_sequences_longer_than_learned_positions_are_refused(opt: Any) -> None:
    """Packed ones by the plan alone, documents by their own lengths."""
    require_length(opt, [PLAN])
    with pytest.raises(InputError, match=f"of {CONTEXT + 1} tokens are longer than the {CONTEXT} positions that OPT"):
        require_length(opt, [TextPlan(source="some.txt", part="tuning", count=1, length=CONTEXT + 1)])
    require_length(opt, [TextPlan(source="some.txt", part="tuning", count=1, length=999, protocol="documents")])
    require_readable(opt, [tiny.sequences([CONTEXT])], None)
    with pytest.raises(InputError, match=f"use --seq-len {CONTEXT} or less"):
        require_readable(opt, [tiny.sequences([8]), tiny.sequences([CONTEXT + 1])], None)


def test_sequences_longer_than_a_rotary_model_was_made_for_are_noted(opt: Any) -> None:
    """It runs, and the numbers are another matter."""
    llama = tiny.module(LAYOUTS["llama"]())
    assert length_note(llama, [tiny.sequences([CONTEXT])]) is None
    note = length_note(llama, [tiny.sequences([8]), tiny.sequences([CONTEXT + 1])])
    assert note is not None
    assert note.startswith(f"sequences have {CONTEXT + 1} tokens and the model was made for {CONTEXT}")
    assert length_note(opt, [tiny.sequences([CONTEXT + 1])]) is None


def test_tokens_without_an_embedding_are_refused_in_every_text() -> None:
    """The text, the token and the embeddings there are, are named."""
    llama, text = tiny.module(LAYOUTS["llama"]()), tiny.sequences([8, 8], seed=7)
    text.ids[1][3] = VOCABULARY
    with pytest.raises(InputError, match=rf"random-7 has the token {VOCABULARY} .* only for 0 to {VOCABULARY - 1};"):
        require_readable(llama, [tiny.sequences([8]), text], None)
    text.ids[1][3] = torch.tensor(VOCABULARY - 1)
    require_readable(llama, [text], None)
