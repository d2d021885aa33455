"""Scores are literal log-likelihoods, whatever the batches, and every look is a prefix of the next."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig

from objectives import forward, scoring
from objectives.model.loading import Model
from objectives.scoring import Score, look_sizes, score, score_all
from objectives.text.batches import batches
from objectives.text.sequences import Sequences, TextPlan, prepare_text
from tests.objectives import tiny

LENGTHS = (24, 17, 24, 9, 31, 24, 2, 12, 24, 24, 5, 40)
CPU = torch.device("cpu")


def literal(module: Any, text: Sequences) -> Tensor:
    """Each sequence alone: the float64 log-softmax of the model's own logits at its targets, summed."""
    values = []
    for ids, scored in zip(text.ids, text.scored, strict=True):
        with torch.no_grad():
            logits = module(ids[None]).logits[0].double()
        every = -logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        values.append(every[scored[1:]].sum())
    return torch.stack(values)


def last(module: Any, text: Sequences, **options: Any) -> Score:
    return list(score(module, text, **options))[-1]


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
@pytest.mark.parametrize("batch_tokens", [1, 70, 4096])
def test_scores_are_literal_log_likelihoods(layout: str, batch_tokens: int) -> None:
    """In float32, padding, batch size and bucketing change no sequence's value by more than 1e-4."""
    module = tiny.module(tiny.LAYOUTS[layout]())
    text = tiny.sequences(LENGTHS)
    measured = last(module, text, batch_tokens=batch_tokens)
    torch.testing.assert_close(measured.nll, literal(module, text), rtol=0, atol=1e-4)
    assert measured.nll.dtype == torch.float64
    assert measured.tokens.tolist() == [length - 1 for length in LENGTHS]


def test_unscored_tokens_are_read_but_not_counted() -> None:
    """Special tokens are context and no targets: the values are those of the scored positions alone."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    text = tiny.sequences(LENGTHS, unscored=(1, 4, 11))
    measured = last(module, text)
    torch.testing.assert_close(measured.nll, literal(module, text), rtol=0, atol=1e-4)
    assert measured.tokens.tolist() == [
        length - 1 - sum(position < length for position in (1, 4, 11)) for length in LENGTHS
    ]
    everything = last(module, tiny.sequences(LENGTHS))
    assert (measured.nll <= everything.nll).all()
    assert measured.nll.sum() < everything.nll.sum() - 1


@pytest.mark.parametrize("protocol", ["documents", "packed"])
def test_the_bundled_model_scores_the_same_in_any_batch(bundled: Model, protocol: Any) -> None:
    """On real text no sequence's mean moves by more than 1e-4 between one at a time and all at once."""
    plan = TextPlan(source="bundled:topics", part="tuning", count=12, protocol=protocol, length=64)
    text = prepare_text([plan], bundled.tokenizer)[0]
    alone, together = (last(bundled.module, text, batch_tokens=tokens) for tokens in (1, 4096))
    torch.testing.assert_close(alone.nll, literal(bundled.module, text), rtol=0, atol=1e-3)
    torch.testing.assert_close(alone.nll / alone.tokens, together.nll / together.tokens, rtol=0, atol=1e-4)
    assert together.perplexity < 200


def test_bfloat16_scores_barely_depend_on_the_batch() -> None:
    """In 16 bit, batches move no sequence's mean by more than 1e-3 times what they add up to."""
    module = tiny.module(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    text = tiny.sequences(LENGTHS)
    alone, together = (last(module, text, batch_tokens=tokens) for tokens in (1, 4096))
    torch.testing.assert_close(alone.nll, together.nll, rtol=1e-3, atol=1e-3)


def test_logits_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making logits for one token at a time changes nothing."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    text = tiny.sequences(LENGTHS)
    whole = last(module, text)
    seen: list[int] = []
    module.lm_head.register_forward_hook(lambda _, args, out: seen.append(args[0].numel() // tiny.HIDDEN))
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * tiny.VOCABULARY * 3)
    torch.testing.assert_close(last(module, text).nll, whole.nll, rtol=0, atol=1e-4)
    # The first calls look at one sequence to find out how the model works.
    assert max(seen[3:]) == 3


# The two ways through a model


def forwards(module: Any, text: Sequences) -> int:
    """How often the whole model, with its own head, is run for a score."""
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    last(module, text, batch_tokens=1)
    return len(calls)


def test_a_plain_head_is_applied_to_scored_tokens_only() -> None:
    """A model whose logits are a matrix product is run whole once, to find that out."""
    assert forwards(tiny.module(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)) == 1


def test_soft_caps_are_part_of_the_head() -> None:
    """What Gemma 2 does to its logits is not left out: its scores are those of its own logits, made in chunks."""
    module = tiny.module(tiny.LAYOUTS["gemma2"]())
    text = tiny.sequences(LENGTHS)
    measured = last(module, text)
    capped = literal(module, text)
    module.config.final_logit_softcapping = None
    uncapped = literal(module, text)
    module.config.final_logit_softcapping = 2.0
    assert (capped - uncapped).abs().max() > 0.1
    torch.testing.assert_close(measured.nll, capped, rtol=0, atol=1e-4)
    assert not forward.halves(module, text).whole


def test_scaled_logits_are_part_of_the_head() -> None:
    """A factor on the logits is found without knowing the model's name."""
    module = tiny.module(CohereConfig(**tiny.COMMON, logit_scale=0.25))
    text = tiny.sequences(LENGTHS)
    torch.testing.assert_close(last(module, text).nll, literal(module, text), rtol=0, atol=1e-4)
    assert not forward.halves(module, text).whole


def test_a_model_whose_head_reads_more_than_one_hidden_state_is_run_whole_and_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where logits are no function of one hidden state, they are its features."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    text = tiny.sequences(LENGTHS)
    plain = module.forward

    def mixed(*ids: Tensor, **options: Any) -> Any:
        output = plain(*ids, **options)
        output.logits = output.logits + output.logits.cumsum(1) / 10
        return output

    monkeypatch.setattr(module, "forward", mixed)
    assert forward.halves(module, text).whole
    torch.testing.assert_close(last(module, text).nll, literal(module, text), rtol=0, atol=1e-4)


# Looks


@pytest.mark.parametrize(
    ("total", "sizes"),
    [
        (1, [1]),
        (7, [7]),
        (8, [8]),
        (9, [8, 9]),
        (16, [8, 16]),
        (64, [8, 16, 32, 64]),
        (100, [8, 16, 32, 64, 100]),
        (2000, [8, 16, 32, 64, 128, 256, 512, 1024, 2000]),
    ],
)
def test_look_sizes(total: int, sizes: list[int]) -> None:
    """Looks double from 8 and end with everything."""
    assert look_sizes(total) == sizes


def test_each_look_is_a_prefix_of_the_next() -> None:
    """What an early look says of a sequence is not revised by a later one."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    looks = list(score(module, tiny.sequences(LENGTHS * 3)))
    assert [len(look.nll) for look in looks] == [8, 16, 32, 36]
    for early, late in pairwise(looks):
        assert torch.equal(early.nll, late.nll[: len(early.nll)])
        assert torch.equal(early.tokens, late.tokens[: len(early.tokens)])


def test_sequences_after_a_look_are_not_run_before_it() -> None:
    """A trial that is stopped at a look has paid for no sequence beyond it."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    rows: list[int] = []
    module.model.register_forward_hook(
        lambda _, args, kwargs, out: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    looks = score(module, tiny.sequences([12] * 40))
    next(looks)
    probes = 2
    assert sum(rows[probes:]) == 8
    looks.close()
    assert sum(rows[probes:]) == 8


def test_a_broken_sequence_does_not_touch_the_others() -> None:
    """A value that is not finite stays in its own sequence."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    text = tiny.sequences([12] * 8)
    text.ids[3][5] = 0
    whole = last(module, text)
    module.get_input_embeddings().weight[0] = float("nan")
    broken = last(module, text)
    assert broken.nll.isfinite().tolist() == [index != 3 for index in range(8)]
    assert torch.allclose(broken.nll[broken.nll.isfinite()], whole.nll[broken.nll.isfinite()], atol=1e-4)


def test_progress_is_told_of_every_look() -> None:
    """Progress hears the phase, the sequences done and all of them."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    reports: list[tuple[str, int, int]] = []
    score_all(module, tiny.sequences([4] * 20), "scoring", lambda *what: reports.append(what))
    assert reports == [("scoring", 8, 20), ("scoring", 16, 20), ("scoring", 20, 20)]


# Score


def test_means_weigh_tokens_not_sequences() -> None:
    """Every target counts the same, and perplexity is its exponential."""
    measured = Score(
        nll=torch.tensor([2.0, 30.0], dtype=torch.float64), tokens=torch.tensor([1, 15]), clusters=torch.arange(2)
    )
    assert measured.mean_nll == 2.0
    assert measured.perplexity == pytest.approx(7.389056)


@pytest.mark.parametrize("nll", [1e4, float("inf")])
def test_a_perplexity_that_overflows_is_infinite(nll: float) -> None:
    """A hopeless model has an infinite perplexity, and raises no error."""
    assert Score(nll=torch.tensor([nll]), tokens=torch.tensor([1]), clusters=torch.tensor([0])).perplexity == float(
        "inf"
    )


# Batches


@pytest.mark.parametrize("tokens", [1, 40, 100, 4096])
def test_batches_hold_every_sequence_once(tokens: int) -> None:
    """Rows are the sequences, padded on the right, at most so many tokens at a time, and masked where padded."""
    text = tiny.sequences(LENGTHS, unscored=(2,))
    wanted = range(2, len(LENGTHS))
    seen: list[int] = []
    for batch in batches(text, wanted, tokens, CPU):
        assert len(batch.indices) == 1 or batch.ids.numel() <= tokens
        seen += batch.indices
        attention = torch.ones_like(batch.scored) if batch.attention is None else batch.attention
        assert (batch.attention is None) == (len({len(text.ids[index]) for index in batch.indices}) == 1)
        for row, index in enumerate(batch.indices):
            length = len(text.ids[index])
            assert torch.equal(batch.ids[row, :length], text.ids[index])
            assert torch.equal(batch.scored[row, :length], text.scored[index])
            assert attention[row].tolist() == [True] * length + [False] * (batch.ids.shape[1] - length)
            assert not batch.scored[row, length:].any()
    assert sorted(seen) == list(wanted)


def test_batches_put_similar_lengths_together() -> None:
    """Longest first: little is padded."""
    text = tiny.sequences([3, 30] * 8)
    sizes = [batch.ids.shape for batch in batches(text, range(16), 120, CPU)]
    assert sizes[:2] == [(4, 30), (4, 30)]
    assert sizes[2:] == [(8, 3)]


@pytest.mark.parametrize("error", [MemoryError, lambda: torch.OutOfMemoryError("CUDA out of memory")])
def test_where_memory_runs_out_batches_are_halved(
    error: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every sequence is scored as with room for all; only one that does not fit alone is an error."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    text = tiny.sequences(LENGTHS)
    roomy = last(module, text)
    sums, room = scoring._sums, [100]

    def cramped(batch: Any, *others: Any) -> Any:
        if batch.ids.numel() > room[0]:
            raise error()
        return sums(batch, *others)

    monkeypatch.setattr(scoring, "_sums", cramped)
    torch.testing.assert_close(last(module, text, batch_tokens=512).nll, roomy.nll, rtol=0, atol=1e-4)
    assert "memory ran out; scoring 256 tokens at a time" in caplog.text
    room[0] = 30
    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        last(module, text, batch_tokens=512)
