"""Divergence from full precision is the literal one on every layout, and what it is measured against is kept once."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig, GraniteConfig

from objectives.divergence import measured_tokens
from objectives.model.loading import Model
from objectives.progress import silent
from objectives.scoring import Score, score_all
from objectives.teacher import Teacher, cached_teacher, compute_teacher, teacher_key
from objectives.text.sequences import Sequences
from storage.cache import TensorCache
from storage.errors import StorageError
from storage.paths import Paths
from tests.objectives import tiny

LENGTHS = (24, 17, 24, 9, 31, 24, 2, 12, 24, 24, 5, 40)
HEADS = {
    **tiny.LAYOUTS,
    "scaled logits": lambda: CohereConfig(**tiny.COMMON, logit_scale=0.25),
    "divided logits": lambda: GraniteConfig(**tiny.GROUPED, logits_scaling=4.0),
}


def worse(made: Any, seed: int = 0, amount: float = 0.5) -> Any:
    """A copy of a module whose blocks compute something else, under the same head."""
    torch.manual_seed(seed)
    other = type(made)(made.config).eval().requires_grad_(False)
    other.load_state_dict(made.state_dict())
    for name, parameter in other.named_parameters():
        if "layers." in name:
            parameter.add_(amount * torch.randn_like(parameter))
    return other


def literal(exact: Any, other: Any, text: Sequences) -> tuple[Tensor, Tensor]:
    """Divergence and flips of every sequence, from the full logits of both in float64."""
    divergences, flips = [], []
    for ids, scored in zip(text.ids, text.scored, strict=True):
        with torch.no_grad():
            first, second = (module(ids[None]).logits[0, :-1].double()[scored[1:]] for module in (exact, other))
        p, q = first.log_softmax(-1), second.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum())
        flips.append((p.argmax(-1) != q.argmax(-1)).sum().double())
    return torch.stack(divergences), torch.stack(flips)


def against(teacher: Teacher, module: Any, text: Sequences) -> Score:
    return score_all(module, text, "", silent, teacher)


@pytest.mark.parametrize("layout", HEADS)
def test_divergence_and_flips_are_literal(layout: str) -> None:
    """Soft caps, scaled and divided logits and unscored tokens included, within 1e-5."""
    model, text = tiny.model(HEADS[layout]()), tiny.sequences(LENGTHS, unscored=(3,))
    other = worse(model.module)
    measured = against(compute_teacher(model.module, text, "", silent), other, text)
    divergence, flips = literal(model.module, other, text)
    assert measured.kl is not None
    assert measured.flips is not None
    torch.testing.assert_close(measured.kl, divergence, rtol=1e-5, atol=1e-6)
    assert torch.equal(measured.flips, flips)
    assert measured.mean("kl") > 0.0005
    torch.testing.assert_close(measured.nll, score_all(other, text, "", silent).nll, rtol=1e-6, atol=1e-6)


def test_full_precision_does_not_diverge_from_itself() -> None:
    """Nothing but rounding, in either direction, and no flip."""
    model, text = tiny.model(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)
    measured = against(compute_teacher(model.module, text, "", silent), model.module, text)
    assert measured.kl is not None
    assert (measured.kl / measured.tokens).abs().max() < 1e-6
    assert measured.mean("flips") == 0


def test_a_divergence_is_never_below_rounding() -> None:
    """Of hundreds of pairs that barely differ none is below -1e-6."""
    logits = torch.randn(500, 1000, generator=torch.Generator().manual_seed(0)) * 5
    near = logits + 1e-4 * torch.randn(500, 1000, generator=torch.Generator().manual_seed(1))
    kl = measured_tokens(near, torch.zeros(500, dtype=torch.int64), logits).kl
    assert kl is not None
    assert kl.min() >= -1e-6


def test_a_tie_is_no_flip() -> None:
    """What full precision holds most likely stays so where another token draws level, and flips where it passes."""
    exact = torch.tensor([[2.0, 1.0, 0.0]] * 3)
    other = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.5, 0.0], [2.0, 1.0, 0.0]])
    flips = measured_tokens(other, torch.zeros(3, dtype=torch.int64), exact).flips
    assert flips is not None
    assert flips.tolist() == [False, True, False]


def test_what_has_no_probability_adds_nothing() -> None:
    """Tokens that full precision rules out, whatever the other says; what only the other rules out is infinite."""
    inf = torch.inf
    exact = torch.tensor([[1.0, 0.0, -inf], [1.0, 0.0, -inf], [1.0, 0.0, 0.0]])
    other = torch.tensor([[1.0, 0.0, -inf], [1.0, 0.0, 0.0], [1.0, 0.0, -inf]])
    kl = measured_tokens(other, torch.zeros(3, dtype=torch.int64), exact).kl
    assert kl is not None
    p, q = exact[1].double().softmax(-1), other[1].double().softmax(-1)
    assert kl.tolist() == pytest.approx([0, float((p[:2] * (p[:2] / q[:2]).log()).sum()), inf], abs=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 70])
def test_batches_change_no_divergence(batch_tokens: int) -> None:
    """No sequence's moves by more than 1e-4."""
    from objectives.scoring import score

    model, text = tiny.model(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)
    teacher, other = compute_teacher(model.module, text, "", silent), worse(model.module)
    *_, measured = score(other, text, batch_tokens=batch_tokens, teacher=teacher)
    expected = against(teacher, other, text)
    assert measured.kl is not None
    assert expected.kl is not None
    torch.testing.assert_close(measured.kl, expected.kl, rtol=0, atol=1e-4)


def test_logits_of_both_models_share_the_room_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are half as long with a teacher, and change nothing."""
    model, text = tiny.model(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)
    teacher, other = compute_teacher(model.module, text, "", silent), worse(model.module)
    whole = against(teacher, other, text)
    seen: list[int] = []
    other.lm_head.register_forward_hook(lambda _, args, out: seen.append(args[0].numel() // tiny.HIDDEN))
    monkeypatch.setattr("objectives.scoring.LOGIT_BYTES", 4 * tiny.VOCABULARY * 6)
    measured = against(teacher, other, text)
    assert measured.kl is not None
    assert whole.kl is not None
    torch.testing.assert_close(measured.kl, whole.kl, rtol=0, atol=1e-4)
    assert max(seen[3:]) == 3


# The teacher


def kept(model: Model, text: Sequences, home: Path, progress: Any = silent) -> Teacher:
    return cached_teacher(model, text, TensorCache(Paths(home)), progress)


def same(first: Teacher, second: Teacher) -> bool:
    return len(first.rows) == len(second.rows) and all(map(torch.equal, first.rows, second.rows))


def test_a_teacher_is_kept_and_read_back(tmp_path: Path) -> None:
    """What is read is what was computed, in the model's own type, and a second asker runs nothing."""
    model = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    text = tiny.sequences(LENGTHS * 6)
    messages: list[str] = []
    first = kept(model, text, tmp_path, lambda phase, *_: messages.append(phase))
    assert "kept in 0." in messages[0]
    messages.clear()
    second = kept(model, text, tmp_path, lambda phase, *_: messages.append(phase))
    assert not messages
    assert same(first, second)
    assert same(second, compute_teacher(model.module, text, "", silent))
    assert {rows.dtype for rows in second.rows} == {torch.bfloat16}


def test_what_determines_a_teacher_is_in_its_key() -> None:
    """Other weights, tokens, types are other entries."""
    model, text = tiny.model(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)
    keys = [
        teacher_key(model, text),
        teacher_key(tiny.model(tiny.LAYOUTS["llama"](), seed=1), text),
        teacher_key(tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16), text),
        teacher_key(model, text[:5]),
        teacher_key(model, tiny.sequences(LENGTHS, unscored=(3,))),
    ]
    assert len(set(keys)) == len(keys)


def test_a_damaged_teacher_is_named_and_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever byte changed."""
    model, text = tiny.model(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)
    expected = compute_teacher(model.module, text, "", silent)
    kept(model, text, tmp_path)
    (path,) = tmp_path.rglob("sequences-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert same(kept(model, text, tmp_path), expected)
    assert f"{path} is damaged" in caplog.text


def test_a_teacher_that_does_not_fit_the_disk_is_refused_before_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it would take."""
    model, text = tiny.model(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match="free"):
        kept(model, text, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def _ask(home: Path, counts: Any) -> None:
    model, text = tiny.model(tiny.LAYOUTS["llama"]()), tiny.sequences(LENGTHS)
    messages: list[str] = []
    kept(model, text, home, lambda phase, *_: messages.append(phase))
    counts.put(sum("kept in" in message for message in messages))


def test_processes_that_ask_at_once_compute_it_once(tmp_path: Path) -> None:
    """The others wait, and read what the first has written."""
    context = multiprocessing.get_context("fork")
    counts: Any = context.Queue()
    processes = [context.Process(target=_ask, args=(tmp_path, counts)) for _ in range(2)]
    for process in processes:
        process.start()
    computed = [counts.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(computed) == [0, 1]
