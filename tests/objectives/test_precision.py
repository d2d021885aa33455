"""The model's own 16-bit type is compared with float32 once, and given up where it does not agree."""

from pathlib import Path
from typing import Any

import pytest
import torch

from objectives import precision
from objectives.evaluation import BenchPlan, lay_out
from objectives.model import loading as models
from objectives.model.finding import find_blocks
from objectives.model.loading import Model, ModelPlan
from objectives.precision import Agreement, check_agreement
from objectives.progress import silent
from objectives.scoring import score_all
from objectives.text.sequences import Sequences, TextPlan
from quant.scheme import Scheme, round_nearest
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny


@pytest.fixture
def text() -> Sequences:
    return tiny.sequences([24, 17, 31, 24] * 5)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def check(model: Model, text: Sequences, store: ResultStore) -> Agreement | None:
    return check_agreement(model, find_blocks(model.module, allow_partial=True), text, store, silent)


def mean(module: Any, text: Sequences) -> float:
    return score_all(module, text, "", silent).mean_nll


@pytest.mark.parametrize("layout", ["llama", "phi3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_agreement_is_the_difference_from_float32(
    text: Sequences, store: ResultStore, layout: str, dtype: torch.dtype
) -> None:
    """Both numbers are those of the same weights, rounded alike, computed in the two types on 16 sequences."""
    config = tiny.LAYOUTS[layout]()
    agreement = check(tiny.model(config, dtype=dtype), text, store)
    first = text[:16]
    scheme = Scheme(group_size=64, scale_dtype=dtype)
    own, wide = tiny.module(config, dtype=dtype), tiny.module(config, dtype=dtype).float()
    exact = [mean(own, first), mean(wide, first)]
    for module in (own, wide):
        for linear in (linear for block in find_blocks(module) for linear in block.linears):
            linear.set_weight(round_nearest(linear.weight().float(), scheme))
    rounded = [mean(own, first), mean(wide, first)]
    assert agreement.dtype == str(dtype).removeprefix("torch.")
    assert agreement.mean_nll == pytest.approx(exact[0] - exact[1], abs=1e-9)
    assert agreement.rounding == pytest.approx((rounded[0] - exact[0]) - (rounded[1] - exact[1]), abs=1e-9)
    assert agreement.mean_nll != 0
    assert agreement.good


def test_the_models_weights_are_left_as_they_were(text: Sequences, store: ResultStore) -> None:
    """The comparison rounds the model's weights and puts them back bit for bit."""
    model = tiny.model(tiny.LAYOUTS["phi3"](), dtype=torch.bfloat16)
    before = tiny.state(model.module)
    assert check(model, text, store) is not None
    assert tiny.same_bits(before, tiny.state(model.module))
    assert model.dtype == torch.bfloat16


def test_the_answer_is_kept(text: Sequences, store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second check of the same model on the same text scores nothing; another model or text is checked anew."""
    model = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    first = check(model, text, store)
    scored: list[str] = []

    def counted(module: Any, sequences: Sequences, phase: str, *others: Any) -> Any:
        scored.append(phase)
        return score_all(module, sequences, phase, *others)

    monkeypatch.setattr(precision, "score_all", counted)
    assert check(model, text, store) == first
    # Only the first 16 sequences are looked at.
    assert check(model, text[:16], store) == first
    assert scored == []
    check(tiny.model(tiny.LAYOUTS["llama"](), seed=1, dtype=torch.bfloat16), text, store)
    check(model, text[1:], store)
    assert scored == 8 * ["comparing bfloat16 with float32"]


def test_a_damaged_answer_is_measured_again(text: Sequences, store: ResultStore, tmp_path: Path, caplog: Any) -> None:
    """A stored comparison that cannot be read is said to be damaged and replaced."""
    model = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    first = check(model, text, store)
    (path,) = (tmp_path / "results").iterdir()
    path.write_bytes(b"x" * 100)
    assert check(model, text, store) == first
    assert str(path) in caplog.text
    assert check(model, text, store) == first


def test_float32_models_have_nothing_to_compare(
    text: Sequences, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that already is in float32 is neither scored nor stored."""
    monkeypatch.setattr(precision, "score_all", None)
    assert check(tiny.model(tiny.LAYOUTS["llama"]()), text, store) is None


def test_no_memory_for_a_float32_copy(
    text: Sequences, store: ResultStore, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Where the copy does not fit, that is said instead of failing."""
    model = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    monkeypatch.setattr(precision, "available_bytes", lambda device: 1000)
    assert check(model, text, store) is None
    assert "no memory for a float32 copy" in caplog.text
    assert "bfloat16" in caplog.text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("could not create a primitive")])
def test_memory_that_runs_out_in_the_comparison_leaves_the_type_unchecked(
    text: Sequences, store: ResultStore, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: Exception
) -> None:
    """A warning says so, and the study goes on; any other failure is one."""

    def fails(raised: Exception) -> None:
        def score(*args: object) -> None:
            raise raised

        monkeypatch.setattr(precision, "score_all", score)

    model = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    fails(error)
    assert check(model, text, store) is None
    assert (
        "memory ran out beside a float32 copy of the model: its torch.bfloat16 results are not checked" in caplog.text
    )
    fails(RuntimeError("a mistake"))
    with pytest.raises(RuntimeError, match="a mistake"):
        check(model, text, store)


@pytest.mark.parametrize(
    ("mean_nll", "rounding", "good"),
    [
        (0.002, -0.002, True),
        (-0.0021, 0.0, False),
        (0.0, 0.0021, False),
        (0.0, -0.0021, False),
        (float("nan"), 0.0, False),
        (0.0, float("nan"), False),
    ],
)
def test_what_counts_as_agreement(mean_nll: float, rounding: float, good: bool) -> None:
    """Neither number may exceed the tolerance in either direction, or be undefined, and the report says both."""
    agreement = Agreement(dtype="bfloat16", mean_nll=mean_nll, rounding=rounding, to_float32=3e-4, to_itself=2e-5)
    assert agreement.good is good
    assert ("agrees with" in str(agreement)) is good
    assert f"{mean_nll:+.4f}" in str(agreement)
    assert f"{rounding:+.4f}" in str(agreement)
    assert "no divergence below 3.0e-04 nats" in str(agreement)


def test_the_noise_floor_is_the_divergence_of_the_type_and_of_batches(text: Sequences, store: ResultStore) -> None:
    """From the literal float32 copy, and from the same weights run one sequence at a time."""
    made = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    agreement = check(made, text, store)
    divergences, tokens = 0.0, 0
    wide = tiny.module(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16).float()
    for ids in text.ids[:16]:
        exact, own = (module(ids[None]).logits[0, :-1].double().log_softmax(-1) for module in (wide, made.module))
        divergences += float((exact.exp() * (exact - own)).sum())
        tokens += len(ids) - 1
    assert agreement is not None
    # Batches move 16-bit numbers by as much as the type does.
    assert agreement.to_float32 == pytest.approx(divergences / tokens, rel=0.3)
    assert 0 <= agreement.to_itself <= agreement.to_float32
    assert agreement.noise_floor == agreement.to_float32


# What laying out a bench makes of it


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    source = tmp_path / "some.txt"
    source.write_text("\n\n".join(f"Return the number of items in list {number}. " * 6 for number in range(60)))

    def make(dtype: str) -> BenchPlan:
        return BenchPlan(
            model=ModelPlan(dtype=dtype),
            calibration=TextPlan(source=str(source), part="calibration", count=2, length=32),
            data=(TextPlan(source=str(source), part="tuning", count=4, length=32),),
        )

    return make


@pytest.fixture(autouse=True)
def _fast_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor this is, it is fast in the bundled model's own type."""
    monkeypatch.setattr(models, "fast_dtype", lambda kind: torch.bfloat16)


def test_a_type_that_agrees_is_used(plan: Any, tmp_path: Path) -> None:
    """The bundled model is measured in its own type, and the reason is kept."""
    laid_out = lay_out(plan("auto"), Paths(tmp_path / "cache"), silent)
    assert laid_out.bench.model.dtype == torch.bfloat16
    assert laid_out.agreement is not None
    assert laid_out.agreement.good


def test_a_type_that_disagrees_is_given_up(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """With the automatic type a disagreement is reported and everything is measured in float32."""
    monkeypatch.setattr(precision, "TOLERANCE", -1.0)
    laid_out = lay_out(plan("auto"), Paths(tmp_path / "cache"), silent)
    assert laid_out.bench.model.dtype == torch.float32
    assert {parameter.dtype for parameter in laid_out.bench.model.module.parameters()} == {torch.float32}
    assert laid_out.agreement is None
    assert "bfloat16 does not agree with float32" in caplog.text


def test_a_type_that_was_asked_for_is_kept(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A type given by name stays, with the disagreement on record."""
    monkeypatch.setattr(precision, "TOLERANCE", -1.0)
    laid_out = lay_out(plan("bfloat16"), Paths(tmp_path / "cache"), silent)
    assert laid_out.bench.model.dtype == torch.bfloat16
    assert not laid_out.agreement.good
    assert "does not agree" in caplog.text
