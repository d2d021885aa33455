"""Refining changes what is stored beside the codes, for the better on held-back text, and can be gone on with."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.errors import InputError, RunError
from objectives.export.proving import unfolded_perplexity
from objectives.progress import silent
from objectives.refined import Refined, owners, tunable_vectors
from objectives.refinement import course
from objectives.refinement.options import RefinementOptions, RefinementText
from objectives.refinement.refine import forget_begun, forgotten_where_codes_differ, refine, refinement_key
from objectives.refinement.tuned import require_tunable
from objectives.refinement_record import PARTS
from objectives.scoring import Score, score_all
from objectives.trial import Bench, quantized, run_trial
from quant.plan import Plan
from quant.scheme import IntWeight, loaded
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny
from tests.objectives.refinement.killing import Killed, killing_at

AWQ = Setting(method="gw-awq", group_size=32, symmetric=False, n_calib=8, n_grid=3)
PLAN = Plan.uniform(AWQ)
OPTIONS = RefinementOptions(rate=1e-2, batch_tokens=64, passes=2, code_steps=0)
STEPS = 10
OTHERS = ("gemma2", "opt", "gpt-neox", "mixtral", "qwen2-moe")
TEXT = RefinementText(
    training=replace(tiny.sequences([16] * 20, seed=3), source="some text"),
    validation=replace(tiny.sequences([16] * 6, seed=4), source="some text"),
)


@pytest.fixture(scope="module")
def usual(bench: Bench, home: Path) -> Refined:
    return refined_by(bench, ResultStore(Paths(home).results))


def refined_by(bench: Bench, store: ResultStore, options: RefinementOptions = OPTIONS, plan: Plan = PLAN) -> Refined:
    return refine(bench, plan, TEXT, options, store, silent)


def kl(bench: Bench) -> float:
    """On what is held back."""
    teacher = bench.teacher(TEXT.validation)
    with quantized(bench, PLAN):
        measured = score_all(bench.model.module, TEXT.validation, "", silent, teacher).mean_kl
    assert measured is not None
    return measured


def tensors(refined: Refined) -> dict[str, Tensor]:
    return {**refined.scales, **refined.vectors}


def test_what_is_held_back_is_nearer_to_full_precision(bench: Bench, usual: Refined) -> None:
    """The divergence that is told is that of the model that a trial would score, and the original comes back."""
    before = tiny.state(bench.model.module)
    assert usual.refinement.kept_step > 0
    assert kl(bench) == pytest.approx(usual.refinement.before, rel=1e-6)
    assert kl(replace(bench, refined=usual)) == pytest.approx(usual.refinement.after, rel=1e-6)
    assert usual.refinement.after < 0.97 * usual.refinement.before
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert not any(parameter.requires_grad for parameter in bench.model.module.parameters())


def test_codes_stay_and_the_weights_are_those_of_the_stored_scales(bench: Bench, usual: Refined) -> None:
    """Scales, norms and biases are in the type they are stored in; every weight is a code times its scale."""
    with quantized(bench, PLAN, with_codes=True) as plain:
        pass
    with quantized(replace(bench, refined=usual), PLAN, with_codes=True) as result:
        state = tiny.state(bench.model.module)
    for name, weight in result.codes.items():
        assert torch.equal(weight.codes, plain.codes[name].codes)
        assert torch.equal(weight.zero, plain.codes[name].zero)
        assert not torch.equal(weight.scale, plain.codes[name].scale)
        assert torch.equal(weight.scale, usual.scales[name])
        assert weight.scale.dtype == torch.bfloat16
        assert torch.equal(state[f"{name}.weight"], loaded(weight))
    for name, vector in usual.vectors.items():
        assert vector.dtype == torch.bfloat16
        assert torch.equal(state[name], vector)
    assert any("norm" in name for name in usual.vectors)
    assert any(name.endswith("q_proj.bias") for name in usual.vectors)


def test_a_measurement_of_a_refined_model_is_another(bench: Bench, usual: Refined) -> None:
    """Its key is its own, and a plan that was not refined is what it was."""
    from objectives.results import measurement_key

    refined = replace(bench, refined=usual)
    other = Plan.uniform(replace(AWQ, n_grid=4))
    assert measurement_key(bench, PLAN, TEXT.validation) != measurement_key(refined, PLAN, TEXT.validation)
    assert measurement_key(bench, other, TEXT.validation) == measurement_key(refined, other, TEXT.validation)
    assert measurement_key(bench, None, TEXT.validation) == measurement_key(refined, None, TEXT.validation)
    plain, changed = (run_trial(made, PLAN, TEXT.validation).score for made in (bench, refined))
    assert plain is not None
    assert changed is not None
    assert changed.mean("kl") < plain.mean("kl")


def test_killed_and_gone_on_with_it_gives_the_same_bytes(
    bench: Bench, usual: Refined, store: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last state that was saved; nothing of it is left when it is forgotten."""
    monkeypatch.setattr(course, "SECONDS_BETWEEN_SAVES", 0.0)
    steps = []

    def killing(phase: str, done: int, total: int) -> None:
        if phase.startswith("refining"):
            steps.append(done)
            if steps in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 5, 6]):
                raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            refine(bench, PLAN, TEXT, OPTIONS, store, killing)
    again = refine(bench, PLAN, TEXT, OPTIONS, store, killing)
    assert steps == [*range(1, 6), 5, 6, *range(6, STEPS + 1)]
    assert tiny.same_bits(tensors(usual), tensors(again))
    assert usual.refinement == again.refinement
    forget_begun(bench, PLAN, TEXT, OPTIONS, store)
    assert not list(tmp_path.glob("home/results/*begun*"))


def test_what_was_finished_is_read(bench: Bench, usual: Refined, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is quantized for it."""
    monkeypatch.setattr("objectives.refinement.refine.quantized", lambda *_, **__: pytest.fail("quantized again"))
    again = refined_by(bench, ResultStore(Paths(home).results))
    assert tiny.same_bits(tensors(usual), tensors(again))
    assert (usual.key, usual.codes, usual.refinement) == (again.key, again.codes, again.refinement)


@pytest.mark.parametrize(
    "changed",
    [
        replace(OPTIONS, rate=5e-3),
        replace(OPTIONS, batch_tokens=32),
        replace(OPTIONS, passes=1),
        replace(OPTIONS, seed=1),
        replace(OPTIONS, parts=("scales",)),
        replace(OPTIONS, parts=("norms", "biases")),
    ],
    ids=["rate", "batch", "passes", "seed", "scales", "vectors"],
)
def test_every_option_changes_the_result(
    bench: Bench, usual: Refined, store: ResultStore, changed: RefinementOptions
) -> None:
    """And what is counted with it."""
    other = refined_by(bench, store, changed)
    assert not tiny.same_bits(tensors(usual), tensors(other))
    assert usual.refinement.steps == STEPS
    assert other.refinement.steps == len(changed.steps(TEXT.training))
    assert (other.refinement.rate, other.refinement.parts) == (changed.rate, changed.parts)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_not_to_be_tuned_stays_as_it_was(bench: Bench, store: ResultStore, part: str) -> None:
    """Of scales, norms and biases one alone changes, for the better; scores without folded scales are the same."""
    refined = refined_by(bench, store, replace(OPTIONS, parts=(part,)))
    assert refined.refinement.kept_step > 0
    assert part.removesuffix("s") in refined.refinement.sentence()
    with quantized(bench, PLAN, with_codes=True) as plain:
        before = tiny.state(bench.model.module)
    made = replace(bench, refined=refined)
    with quantized(made, PLAN, with_codes=True) as result:
        after = tiny.state(bench.model.module)
        folded = score_all(bench.model.module, TEXT.validation, "", silent)
    changed = {kind_of(name, result.codes) for name in before if not torch.equal(before[name], after[name])}
    assert changed == {part}
    scales = {name: weight.scale for name, weight in result.codes.items()}
    assert tiny.same_bits(scales, {name: weight.scale for name, weight in plain.codes.items()}) == (part != "scales")
    unfolded = unfolded_perplexity(made, PLAN, result, TEXT.validation, silent)
    assert unfolded == pytest.approx(folded.perplexity, rel=2e-3)


def kind_of(name: str, codes: Mapping[str, IntWeight]) -> str:
    """Which part of what is tuned a parameter belongs to."""
    if name.removesuffix(".weight") in codes:
        return "scales"
    return "biases" if name.endswith("bias") else "norms"


def test_a_model_without_what_is_to_be_tuned_is_refused(tmp_path: Path) -> None:
    """With what else there is; a Llama has no biases."""
    llama = tiny.bench(tiny.complete("llama", torch.bfloat16), tmp_path / "home").model
    with pytest.raises(InputError, match="has no biases to tune; add scales to --refine-parts biases"):
        require_tunable(llama, ("biases",))
    require_tunable(llama, ("norms", "biases"))


def test_where_nothing_improves_the_start_is_kept(bench: Bench, store: ResultStore) -> None:
    """A rate that is far too high: the scales are those that were rounded, and it is said so."""
    refined = refined_by(bench, store, replace(OPTIONS, rate=0.9, passes=1))
    with quantized(bench, PLAN, with_codes=True) as result:
        state = tiny.state(bench.model.module)
    assert refined.refinement.kept_step == 0
    assert all(torch.equal(scale, result.codes[name].scale) for name, scale in refined.scales.items())
    assert all(torch.equal(vector, state[name]) for name, vector in refined.vectors.items())
    assert "improved nothing" in refined.refinement.sentence()


def test_a_value_that_is_not_finite_halves_the_rate_twice(
    bench: Bench, store: ResultStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The third time it ends with the best point until then."""
    calls: Iterator[int] = iter(range(1000))
    real = course.pull_back

    def broken(*arguments: Any) -> Tensor:
        total: Tensor = real(*arguments)
        return total * torch.nan if next(calls) in (4, 6, 8) else total

    monkeypatch.setattr(course, "pull_back", broken)
    refined = refined_by(bench, store)
    assert (refined.refinement.halvings, refined.refinement.steps) == (2, 9)
    assert refined.refinement.after <= refined.refinement.before
    assert sum("not finite" in record.message for record in caplog.records) == 3


def test_a_look_that_is_not_finite_halves_the_rate(
    bench: Bench, store: ResultStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a look is no point to keep, and is not among those that are told."""
    calls: Iterator[int] = iter(range(1000))
    real = course.score_all

    def broken(*arguments: Any) -> Score:
        score = real(*arguments)
        return replace(score, kl=score.kl * torch.nan) if next(calls) == 2 else score

    monkeypatch.setattr(course, "score_all", broken)
    refined = refined_by(bench, store)
    assert refined.refinement.halvings == 1
    assert all(math.isfinite(look.kl) for look in refined.refinement.looks)
    assert refined.refinement.after < refined.refinement.before
    assert sum("not finite" in message for message in caplog.messages) == 1


def test_memory_that_runs_out_halves_the_batches_of_a_step(
    bench: Bench, usual: Refined, store: ResultStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step still reads as many tokens, so that it ends where it would have, but for rounding."""
    real = course.pull_back

    def narrow(halves: Any, batch: Any, teacher: Any) -> Tensor:
        if batch.ids.numel() > 32:
            raise torch.OutOfMemoryError("not enough")
        total: Tensor = real(halves, batch, teacher)
        return total

    monkeypatch.setattr(course, "pull_back", narrow)
    refined = refined_by(bench, store)
    assert any("refining 32 tokens at a time from here on" in message for message in caplog.messages)
    assert refined.refinement.steps == STEPS
    assert refined.refinement.after == pytest.approx(usual.refinement.after, rel=0.01)


def test_a_state_of_other_codes_is_begun_anew(
    bench: Bench,
    usual: Refined,
    store: ResultStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its point is of no use to these, and it is said so."""
    monkeypatch.setattr(course, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(Killed):
        refine(bench, PLAN, TEXT, OPTIONS, store, killing_at("refining", 3))
    [path] = tmp_path.glob("home/results/*begun*")
    record, saved = store.load(path.stem)
    store.save(path.stem, {**record, "codes": "others"}, saved)
    assert tiny.same_bits(tensors(usual), tensors(refined_by(bench, store)))
    assert any("quantizing gave other codes than before" in message for message in caplog.messages)


def test_a_time_that_is_over_keeps_the_best_point_and_goes_on_later(
    bench: Bench, usual: Refined, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes one second here; called again without a limit it ends as if there had been none."""
    seconds = iter(range(100_000))
    monkeypatch.setattr(course, "monotonic", lambda: next(seconds) / 8)
    short = refined_by(bench, store, replace(OPTIONS, timeout=4.0))
    assert 1 <= short.refinement.steps < STEPS == short.refinement.planned_steps
    assert short.refinement.sentence().endswith(f"; ended after {short.refinement.steps} of {STEPS} steps")
    assert "ended" not in usual.refinement.sentence()
    assert tiny.same_bits(tensors(usual), tensors(refined_by(bench, store)))
    assert short.key != usual.key


def test_a_time_that_is_less_than_a_step_is_refused(bench: Bench, store: ResultStore) -> None:
    """With the time that all would take, and the model as it was."""
    before = tiny.state(bench.model.module)
    with pytest.raises(InputError, match=r"--refine-timeout 1e-09 is less than one of 10 steps takes .* give \d+ for"):
        refined_by(bench, store, replace(OPTIONS, timeout=1e-9))
    assert tiny.same_bits(before, tiny.state(bench.model.module))


def test_a_time_that_is_less_than_a_step_keeps_what_earlier_steps_reached(
    bench: Bench, usual: Refined, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first of all steps is refused; one of a later call counts."""
    monkeypatch.setattr(course, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(Killed):
        refine(bench, PLAN, TEXT, OPTIONS, store, killing_at("refining", 5))
    short = refined_by(bench, store, replace(OPTIONS, timeout=1e-9))
    assert short.refinement.steps > 4
    assert tiny.same_bits(tensors(usual), tensors(refined_by(bench, store)))


def test_options_of_codes_that_stay_make_no_other_refinement(bench: Bench) -> None:
    """How far they could drift is no part of its key."""
    moving = replace(OPTIONS, code_steps=5)
    assert refinement_key(bench, PLAN, TEXT, OPTIONS) == refinement_key(
        bench, PLAN, TEXT, replace(OPTIONS, code_drift=0.05)
    )
    assert refinement_key(bench, PLAN, TEXT, moving) != refinement_key(
        bench, PLAN, TEXT, replace(moving, code_drift=0.05)
    )


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (Setting(method="awq-mixed", n_calib=8), "awq-mixed keeps rows in 16 bit; use a method in groups"),
        (replace(AWQ, scales="linear"), "divides inputs at run time; use --scales foldable"),
    ],
)
def test_what_has_no_codes_is_refused(bench: Bench, store: ResultStore, setting: Setting, reason: str) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=reason):
        refined_by(bench, store, plan=Plan.uniform(setting))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rate": 0.0}, "a refining rate of 0 is not between 0 and 1"),
        ({"passes": 0}, "0 passes in steps of 2048 tokens read nothing"),
        ({"timeout": 0.0}, "--refine-timeout 0 is not above 0"),
        ({"code_steps": -1}, "--refine-codes -1 is less than 0"),
        ({"code_drift": 0.0}, "--refine-drift 0 is not above 0 and at most 1; 0.2 is usual"),
        ({"code_drift": 1.5}, "--refine-drift 1.5 is not above 0"),
        ({"parts": ("scales", "zeros")}, "--refine-parts has zeros; give some of scales,norms,biases"),
        ({"parts": ()}, "--refine-parts is empty; give some of scales,norms,biases"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], reason: str) -> None:
    """In one line."""
    with pytest.raises(InputError, match=reason):
        RefinementOptions(**options)


def test_other_codes_than_those_that_were_refined_are_refused(bench: Bench, usual: Refined, store: ResultStore) -> None:
    """Scales fit their codes alone; what does not fit is not kept, so that given again it is made anew."""
    other = replace(bench, refined=replace(usual, codes="others"))
    store.save(usual.key, {}, tensors(usual))
    with (
        pytest.raises(RunError, match="quantizing gave other codes than those that were refined"),
        forgotten_where_codes_differ(store),
        quantized(other, PLAN),
    ):
        pass
    assert usual.key not in store


@pytest.mark.parametrize("layout", ["phi3", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_kind_of_layout_is_refined(layout: str, tmp_path: Path) -> None:
    """Fused Linears, norms with an offset or read by experts, biases of norms; without folded scales it is the same."""
    layouts = {**tiny.LAYOUTS, **tiny.MIXTURES}
    bench = tiny.bench(tiny.model(layouts[layout](), dtype=torch.bfloat16), tmp_path / "home")
    store = ResultStore(Paths(tmp_path / "home").results)
    refined = refined_by(bench, store, replace(OPTIONS, rate=1e-3))
    assert refined.refinement.kept_step > 0
    assert all(scale.isfinite().all() for scale in refined.scales.values())
    made = replace(bench, refined=refined)
    teacher = bench.teacher(TEXT.validation)
    with quantized(made, PLAN, with_codes=True) as result:
        folded = score_all(bench.model.module, TEXT.validation, "", silent, teacher)
    unfolded = unfolded_perplexity(made, PLAN, result, TEXT.validation, silent)
    assert unfolded == pytest.approx(folded.perplexity, rel=2e-3)


def test_the_gradient_is_that_of_the_divergence(tmp_path: Path) -> None:
    """In float32, by central differences of single changes of scales, norms and biases."""
    from objectives.forward import halves
    from objectives.refinement.gradient import pull_back, recomputed
    from objectives.refinement.tuned import Scales, Tuned
    from objectives.text.batches import batches

    bench = tiny.bench(tiny.model(tiny.LAYOUTS["qwen2"]()), tmp_path)
    module = bench.model.module
    text = tiny.sequences([12, 9], seed=5)
    teacher = bench.teacher(text)
    assert teacher is not None
    [batch] = batches(text, [0, 1], 64, bench.model.device)
    with quantized(bench, PLAN, with_codes=True) as result:
        tuned = Tuned(bench.model, bench.blocks, result.codes, PLAN)
        tuned.write(tuned.changes)
        gradient = torch.zeros_like(tuned.changes)
        collecting = partial(tuned.pulling_back, gradient)
        with recomputed(bench.model, bench.blocks, collecting), tuned.pulling_back(gradient):
            pull_back(halves(module, text), batch, teacher)

        def divergence() -> float:
            return float(score_all(module, text, "", silent, teacher).of("kl").sum())

        parts, start = [part for part, _ in tuned.slices(tuned.changes)], 0
        for part in parts[::3]:
            start = sum(other.size for other in parts[: parts.index(part)])
            index, step = start + part.size // 2, 0.03
            values = []
            for sign in (1, -1):
                changes = tuned.changes.clone()
                changes[index] = sign * step
                tuned.write(changes)
                values.append(divergence())
            # float16 scales: what is stored is a little off what was asked for.
            expected = (values[0] - values[1]) / (2 * step)
            rough = 0.1 if isinstance(part, Scales) else 0.02
            assert float(gradient[index]) == pytest.approx(expected, rel=rough, abs=2e-3)


def test_the_head_is_left_alone(bench: Bench) -> None:
    """It computes full precision's distribution; all norms of the body are tuned, the last one too."""
    names = [name for name, *_ in tunable_vectors(bench.model.module)]
    assert "model.norm.weight" in names
    assert not any(name.startswith("lm_head") for name in names)
    assert len(owners(bench.model.module, names)) == len(names)
