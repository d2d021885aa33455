"""A trial ends in a value, whatever happens, and measures what it should on a real model."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig

import quant.layers
from objectives import trial
from objectives.calibration.calibration import Calibration
from objectives.errors import InputError
from objectives.model.finding import find_blocks
from objectives.model.loading import Model
from objectives.paired import paired_difference
from objectives.quantization import model_size
from objectives.scoring import Score
from objectives.suitability import require_suitable, suitable_group_sizes
from objectives.text.sequences import Sequences, TextPlan, prepare_text
from objectives.trial import Bench, TrialResult, quantized, run_trial
from quant.errors import QuantizationError
from quant.methods import METHODS
from quant.plan import Plan
from quant.scheme import IntWeight, dequantize, round_nearest
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths
from tests.objectives import tiny

RTN = Setting(method="rtn", group_size=32, n_calib=8)
AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)


@pytest.fixture
def text() -> Sequences:
    return tiny.sequences([12] * 20, seed=2)


def planned(setting: Setting | None) -> Plan | None:
    """The plan of one setting; None is full precision."""
    return None if setting is None else Plan.uniform(setting)


# Outcomes


@pytest.mark.parametrize("setting", [None, RTN, AWQ])
def test_a_complete_trial(bench: Bench, text: Sequences, setting: Setting | None) -> None:
    """A trial that runs to its end has a value per sequence, its sizes, its times and its peak memory."""
    result = run_trial(bench, planned(setting), text)
    assert result.outcome == "complete"
    assert result.setting is setting
    assert len(result.score.nll) == len(text)
    assert result.peak_bytes > 0
    assert len(result.layers) == (14 if setting else 0)
    assert result.size == model_size(bench.model, bench.blocks, planned(setting))


def test_seconds_per_phase(bench: Bench, text: Sequences) -> None:
    """Each phase that took place has its seconds; full precision has no calibration to pay for."""
    assert set(run_trial(bench, None, text).seconds) == {"score"}
    result = run_trial(bench, Plan.uniform(RTN), text)
    assert set(result.seconds) == {"calibrate", "quantize", "score"}
    assert all(0 < seconds < 60 for seconds in result.seconds.values())


def test_a_trial_is_asked_about_after_every_look_but_the_last(bench: Bench, text: Sequences) -> None:
    """Whoever decides sees growing prefixes, and is not asked when nothing is left to save."""
    seen: list[int] = []

    def go_on(look: Score) -> bool:
        seen.append(len(look.nll))
        return True

    assert run_trial(bench, Plan.uniform(RTN), text, go_on).outcome == "complete"
    assert seen == [8, 16]


@pytest.mark.parametrize("after", [8, 16])
def test_a_stopped_trial_keeps_what_it_measured(bench: Bench, text: Sequences, after: int) -> None:
    """A trial that is not worth going on with ends with the score of its last look."""
    whole = run_trial(bench, Plan.uniform(RTN), text)
    result = run_trial(bench, Plan.uniform(RTN), text, lambda look: len(look.nll) < after)
    assert result.outcome == "stopped"
    assert torch.equal(result.score.nll, whole.score.nll[:after])
    assert len(result.layers) == 14


@pytest.mark.parametrize("setting", [None, RTN])
@pytest.mark.parametrize(("broken", "kept"), [(3, None), (10, 8), (19, 16)])
def test_a_non_finite_score_is_an_outcome(
    bench: Bench, text: Sequences, setting: Setting | None, broken: int, kept: int | None
) -> None:
    """A score that is not finite ends the trial with what was finite before, or nothing."""
    text.ids[broken][5] = 1
    bench.model.module.get_input_embeddings().weight[1] = float("inf")
    result = run_trial(bench, planned(setting), text)
    assert result.outcome == "non-finite"
    assert (None if result.score is None else len(result.score.nll)) == kept


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("phase", ["quantize_model", "score"])
def test_too_little_memory_is_an_outcome(
    bench: Bench, text: Sequences, monkeypatch: pytest.MonkeyPatch, error: Exception, phase: str
) -> None:
    """Whichever phase runs out of memory, on whichever device, the trial ends in a value and the weights come back."""

    def exhausted(*args: Any, **kwargs: Any) -> Any:
        raise error

    before = tiny.state(bench.model.module)
    monkeypatch.setattr(trial, phase, exhausted)
    result = run_trial(bench, Plan.uniform(RTN), text)
    assert result.outcome == "out-of-memory"
    assert result.score is None
    assert "calibrate" in result.seconds
    assert tiny.same_bits(before, tiny.state(bench.model.module))


def test_too_little_memory_after_a_look_keeps_the_look(
    bench: Bench, text: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before memory ran out is not thrown away."""

    def exhausted(*args: Any, **kwargs: Any) -> Iterator[Score]:
        yield Score(nll=torch.ones(8, dtype=torch.float64), tokens=torch.full((8,), 11), clusters=torch.arange(8))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trial, "score", exhausted)
    result = run_trial(bench, Plan.uniform(RTN), text)
    assert result.outcome == "out-of-memory"
    assert len(result.score.nll) == 8


def test_a_real_allocation_that_is_too_large_is_recognised() -> None:
    """The error that PyTorch raises on this processor is one that counts as out of memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert trial.is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x")])
def test_other_failures_are_raised(
    bench: Bench, text: Sequences, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A mistake is no outcome: it is raised, after the weights were put back."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    before = tiny.state(bench.model.module)
    monkeypatch.setattr(trial, "score", broken)
    with pytest.raises(type(error)):
        run_trial(bench, Plan.uniform(RTN), text)
    assert tiny.same_bits(before, tiny.state(bench.model.module))


def test_a_broken_weight_is_refused_by_name(bench: Bench, text: Sequences) -> None:
    """NaN in a weight is no outcome either: every trial of the study would end so."""
    bench.model.module.model.layers[0].mlp.gate_proj.weight[1, 1] = float("nan")
    with pytest.raises(QuantizationError, match=r"model\.layers\.0\.mlp\.gate_proj"):
        run_trial(bench, Plan.uniform(RTN), text)


def test_a_damaged_cache_entry_is_computed_again(bench: Bench, text: Sequences, tmp_path: Path) -> None:
    """Statistics that were damaged on disk cost a pass, not the trial, and the result is the same."""
    whole = run_trial(bench, Plan.uniform(AWQ), text)
    part = next(tmp_path.glob("calibration/*/block-001*"))
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    again = run_trial(bench, Plan.uniform(AWQ), text)
    assert again.outcome == "complete"
    assert torch.equal(again.score.nll, whole.score.nll)
    assert [layer.alpha for layer in again.layers] == [layer.alpha for layer in whole.layers]


# Groups and sizes


def test_a_group_size_that_does_not_suit_is_refused(tmp_path: Path, text: Sequences) -> None:
    """The error names the widths in the way and the usual sizes that suit, and nothing was calibrated."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    with pytest.raises(InputError) as caught:
        run_trial(bench, Plan.uniform(Setting(group_size=128, n_calib=8)), text)
    message = str(caught.value)
    assert "group size 128 does not divide the input widths 64, 128 of this model; use 32, 64, " in message
    assert "--allow-partial-groups" in message
    assert not (tmp_path / "calibration").exists()
    assert suitable_group_sizes(bench.blocks) == [32, 64]


def test_widths_that_no_usual_size_divides(tmp_path: Path) -> None:
    """A model of odd widths is told to use a divisor of its own."""
    config = tiny.LlamaConfig(**{**tiny.GROUPED, "intermediate_size": 100})
    blocks = find_blocks(tiny.module(config))
    assert suitable_group_sizes(blocks) == []
    with pytest.raises(InputError, match="64, 100 of this model; use 4, 2, 1, or"):
        require_suitable(blocks, Plan.uniform(RTN))
    require_suitable(blocks, Plan.uniform(replace(RTN, group_size=4)))
    require_suitable(blocks, Plan.uniform(RTN), allow_partial_groups=True)


@pytest.mark.parametrize("method", METHODS)
def test_only_methods_with_groups_need_a_size_that_suits(bench: Bench, text: Sequences, method: str) -> None:
    """A method with one scale per row has no group size that could be wrong, and runs to its end."""
    setting = Setting(method=method, group_size=100, n_calib=8, n_grid=2)
    if not METHODS[method].per_row:
        with pytest.raises(InputError, match="group size 100 does not divide"):
            require_suitable(bench.blocks, Plan.uniform(setting))
        return
    require_suitable(bench.blocks, Plan.uniform(setting))
    result = run_trial(bench, Plan.uniform(setting), text)
    assert result.outcome == "complete"
    assert sum(layer.loss for layer in result.layers) <= sum(layer.nearest_loss for layer in result.layers)


def test_partial_groups_on_request(tmp_path: Path, text: Sequences) -> None:
    """A size that leaves a partial last group runs when it is asked for."""
    config = tiny.LlamaConfig(**{**tiny.GROUPED, "intermediate_size": 100})
    bench = tiny.bench(tiny.model(config), tmp_path)
    bench = Bench(model=bench.model, blocks=bench.blocks, calibration=bench.calibration, allow_partial_groups=True)
    assert run_trial(bench, Plan.uniform(AWQ), text).outcome == "complete"


def test_more_calibration_than_there_is_is_refused(bench: Bench, text: Sequences) -> None:
    """The calibration size is checked against the text."""
    with pytest.raises(InputError, match=r"n_calib 9 is outside the 1\.\.8 samples"):
        run_trial(bench, Plan.uniform(Setting(group_size=32, n_calib=9)), text)


@pytest.mark.parametrize(
    ("setting", "bits"),
    [
        (RTN, 4 + 16 / 32),
        (Setting(method="rtn", group_size=64), 4 + 16 / 64),
        (Setting(method="rtn", group_size=32, symmetric=False), 4 + 20 / 32),
        (Setting(method="gw-awq", group_size=32), 4 + 16 / 32),
        (Setting(method="awq-mixed", keep_ratio=1), 16),
    ],
)
def test_bits_per_weight(setting: Setting, bits: float) -> None:
    """Codes, scales and zero points are counted; foldable input scales take no room."""
    model = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    blocks = find_blocks(model.module)
    size = model_size(model, blocks, Plan.uniform(setting))
    covered = sum(linear.weight().numel() for block in blocks for linear in block.linears)
    outside = sum(parameter.numel() for parameter in model.module.parameters()) - covered
    assert size.bits_per_weight == pytest.approx(bits)
    assert size.model_bytes == int(covered * bits / 8) + 2 * outside


@pytest.mark.parametrize("layout", ["llama", "phi3"])
@pytest.mark.parametrize("keep_ratio", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_kept_rows_are_counted(tmp_path: Path, layout: str, keep_ratio: float, symmetric: bool) -> None:
    """The size is that of the rows which a trial leaves untouched, in 16 bit, and of INT4 rows for all others."""
    model = tiny.model(tiny.LAYOUTS[layout](), dtype=torch.bfloat16)
    bench = tiny.bench(model, tmp_path)
    setting = Setting(method="praq-mixed", keep_ratio=keep_ratio, symmetric=symmetric, n_calib=8)
    originals = {linear.name: linear.weight().clone() for block in bench.blocks for linear in block.linears}
    bits = total = 0
    with quantized(bench, Plan.uniform(setting)):
        for linear in (linear for block in bench.blocks for linear in block.linears):
            outputs, inputs = linear.shape
            kept = int((linear.weight() == originals[linear.name]).all(1).sum())
            total += outputs * inputs
            bits += 16 * kept * inputs + (outputs - kept) * (4 * inputs + (16 if symmetric else 20))
    size = model_size(model, bench.blocks, Plan.uniform(setting))
    outside = sum(parameter.numel() for parameter in model.module.parameters()) - total
    assert size.bits_per_weight == bits / total
    assert size.model_bytes == (bits + 16 * outside) // 8
    if keep_ratio == 1:
        assert size == model_size(model, bench.blocks, None)


def test_input_scales_that_do_not_fold_are_counted() -> None:
    """Every Linear's own input scale takes 16 bit per column."""
    model = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    blocks = find_blocks(model.module)
    weights = [linear.weight() for block in blocks for linear in block.linears]
    columns, total = sum(weight.shape[1] for weight in weights), sum(weight.numel() for weight in weights)
    linear = Setting(method="gw-awq", group_size=32, scales="linear")
    assert model_size(model, blocks, Plan.uniform(linear)).bits_per_weight == pytest.approx(4.5 + 16 * columns / total)
    plain = Setting(method="rtn", group_size=32, scales="linear")
    assert model_size(model, blocks, Plan.uniform(plain)).bits_per_weight == pytest.approx(4.5)


def test_what_stays_in_16_bit_is_counted_so(tmp_path: Path, text: Sequences) -> None:
    """Experts that are not quantized weigh on the bits per weight, and the trial runs when it is allowed."""
    model = tiny.model(MixtralConfig(**tiny.GROUPED, num_local_experts=4), dtype=torch.bfloat16)
    bench = tiny.bench(model, tmp_path, allow_partial=True)
    kept = sum(size for block in bench.blocks for size in block.uncovered.values())
    covered = sum(linear.weight().numel() for block in bench.blocks for linear in block.linears)
    size = model_size(model, bench.blocks, Plan.uniform(RTN))
    assert size.bits_per_weight == pytest.approx((4.5 * covered + 16 * kept) / (covered + kept))
    assert model_size(model, bench.blocks, None).bits_per_weight == 16
    assert run_trial(bench, Plan.uniform(AWQ), text).outcome == "complete"


# On a real model


@pytest.fixture(scope="module")
def real(bundled: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Setting | None], TrialResult]:
    """Trials of the bundled model on 32 sequences of its own held-out text."""
    plans = [
        TextPlan(source="bundled:topics", part="calibration", count=16, length=64),
        TextPlan(source="bundled:topics", part="tuning", count=32, length=64),
    ]
    calibration, text = prepare_text(plans, bundled.tokenizer)
    blocks = find_blocks(bundled.module)
    cache = TensorCache(Paths(tmp_path_factory.mktemp("cache")))
    bench = Bench(model=bundled, blocks=blocks, calibration=Calibration(bundled, blocks, calibration, cache))
    return lambda setting: run_trial(bench, planned(setting), text)


@pytest.mark.parametrize("group_size", [128, 256])
def test_nearest_rounding_costs_something(real: Callable[[Setting | None], TrialResult], group_size: int) -> None:
    """With large groups the rounded model is worse than full precision, and still a language model."""
    full, rounded = real(None), real(Setting(method="rtn", group_size=group_size, n_calib=16))
    cost = paired_difference(rounded.score, full.score).value
    assert 0 < cost < 0.5


def test_the_bundled_model_is_far_better_than_chance(real: Callable[[Setting | None], TrialResult]) -> None:
    """Real text has a perplexity far below the size of the vocabulary."""
    assert real(None).score.perplexity < 300


def without_inverse(weight: torch.Tensor, scale: torch.Tensor, scheme: Any) -> torch.Tensor:
    """The known catastrophic bug: weights scaled before rounding, and never scaled back."""
    return round_nearest(weight * scale, scheme)


def still_scaled(weight: IntWeight, scale: torch.Tensor) -> torch.Tensor:
    """The same bug where codes become weights."""
    return dequantize(weight)


@pytest.mark.parametrize("method", ["gw-awq", pytest.param("gwh-praq-v2", marks=pytest.mark.slow)])
def test_leaving_out_the_inverse_scale_is_catastrophic(
    real: Callable[[Setting | None], TrialResult], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """At the alphas that the right search chooses, weights that are scaled and not scaled back ruin the model."""
    setting = Setting(method=method, group_size=32, n_calib=16, scales="linear")
    full, right = real(None), real(setting)
    monkeypatch.setattr(quant.layers, "undivided", still_scaled)
    wrong = real(setting)
    assert [layer.alpha for layer in wrong.layers] == [layer.alpha for layer in right.layers]
    assert right.score.perplexity < 1.1 * full.score.perplexity
    assert wrong.score is None or wrong.score.perplexity > 1.5 * right.score.perplexity


def test_the_search_itself_sees_a_missing_inverse(
    real: Callable[[Setting | None], TrialResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that tries scales without their inverse finds them all worse than none."""
    setting = Setting(method="gwh-praq-v2", group_size=32, n_calib=16, n_grid=2, scales="linear")
    assert any(layer.alpha > 0 for layer in real(setting).layers)
    monkeypatch.setattr(quant.layers, "effective_weight", without_inverse)
    assert {layer.alpha for layer in real(setting).layers} == {0.0}
