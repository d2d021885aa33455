"""Several refinements of one winner: which are tried, which is kept, what is pruned, and what survives a kill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from hpo.deploy import refinement_trials
from hpo.deploy.refinement_trials import Stage, refine_best
from objectives.progress import silent
from objectives.refined import Refined
from objectives.refinement import course
from objectives.refinement.options import RefinementOptions, RefinementText, TooLittleTimeError
from objectives.refinement.refine import refine
from objectives.refinement_record import PARTS, HeldBack, Refinement
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny
from tests.objectives.refinement.killing import Killed

PLAN = Plan.uniform(Setting(method="gw-awq", group_size=32, symmetric=False, n_calib=8, n_grid=3))
GIVEN = RefinementOptions(rate=3e-3, batch_tokens=64, code_steps=3, code_batch_tokens=64)
TEXT = RefinementText(
    training=replace(tiny.sequences([16] * 40, seed=3), source="some text"),
    validation=replace(tiny.sequences([16] * 6, seed=4), source="some text"),
)
TRIALS = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def usual(bench: Bench, home: Path) -> Refined:
    return refine_best(stage(bench, home), silent)


def stage(bench: Bench, home: Path, trials: int = TRIALS, given: RefinementOptions = GIVEN) -> Stage:
    store = ResultStore(Paths(home).results)
    return Stage(bench=bench, plan=PLAN, text=TEXT, given=given, trials=trials, store=store)


def test_the_nearest_of_all_is_kept(bench: Bench, usual: Refined, home: Path) -> None:
    """The first has the options that were given; what is kept is what these options give alone."""
    tried = usual.refinement.trials
    assert (tried[0].rate, tried[0].passes, tried[0].code_steps) == (3e-3, 1, 3)
    assert len({stage(bench, home).options(trial) for trial in tried}) == len(tried) == TRIALS
    nearest = min(tried, key=lambda trial: trial.kl)
    assert nearest.finished
    assert usual.refinement.after == nearest.kl < tried[0].kl
    alone = stage(bench, home).options(nearest)
    again = refine(bench, PLAN, TEXT, alone, ResultStore(Paths(home / "other").results), silent)
    assert again.key == usual.key
    assert tiny.same_bits(dict(again.scales), dict(usual.scales))
    behind = sum(trial.pruned for trial in tried)
    assert usual.refinement.sentence().endswith(f"of 5 refinements ({behind} pruned; rate {nearest.rate:.2g})")


def test_what_is_behind_is_pruned_in_the_middle(usual: Refined) -> None:
    """It was farther away than the nearest, and did not take all of its steps."""
    behind = [trial for trial in usual.refinement.trials if trial.pruned]
    assert behind
    for trial in behind:
        steps = len(replace(GIVEN, passes=trial.passes, batch_tokens=trial.batch_tokens).steps(TEXT.training))
        assert steps / 2 <= trial.steps < steps
        assert trial.kl > usual.refinement.after


def test_what_was_tried_is_read(bench: Bench, usual: Refined, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is quantized for it, and nothing of the way is left."""
    assert not [*home.glob("results/*begun*"), *home.glob("results/*codes*")]
    monkeypatch.setattr("objectives.refinement.refine.quantized", lambda *_, **__: pytest.fail("quantized again"))
    again = refine_best(stage(bench, home), silent)
    assert again.refinement == usual.refinement


def test_killed_anywhere_the_same_is_tried(
    bench: Bench, usual: Refined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of each refinement but the first, and right after it."""
    monkeypatch.setattr(course, "SECONDS_BETWEEN_SAVES", 0.0)
    met: set[tuple[str, int]] = set()

    def killing(phase: str, done: int, total: int) -> None:
        number, _, rest = phase.partition(": ")
        if rest.startswith("refining") and done in (3, total) and (number, done) not in met:
            met.add((number, done))
            raise Killed

    kills = 0
    while True:
        try:
            again = refine_best(stage(bench, tmp_path), killing)
            break
        except Killed:
            kills += 1
    assert kills >= TRIALS
    assert again.refinement == usual.refinement
    assert tiny.same_bits(dict(again.scales), dict(usual.scales))


def test_one_is_as_if_none_was_tried(bench: Bench, tmp_path: Path) -> None:
    """The same bytes, and nothing is told of others."""
    only = refine_best(stage(bench, tmp_path, 1), silent)
    alone = refine(bench, PLAN, TEXT, GIVEN, ResultStore(Paths(tmp_path / "other").results), silent)
    assert only.refinement == alone.refinement
    assert tiny.same_bits(dict(only.scales), dict(alone.scales))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass when the test says so."""
    now = [0.0]
    for module in (refinement_trials, course):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def test_time_that_is_over_ends_between_refinements_and_the_same_call_goes_on(
    bench: Bench, usual: Refined, tmp_path: Path, clock: list[float]
) -> None:
    """With the nearest until then; nothing that is done is done again."""
    phases: set[str] = set()

    def ticking(phase: str, done: int, total: int) -> None:
        phases.add(phase.partition(":")[0])
        clock[0] += 1

    ended = refine_best(stage(bench, tmp_path, given=replace(GIVEN, timeout=60.0)), ticking)
    assert 1 < len(ended.refinement.trials) < TRIALS
    assert ended.refinement.trials == usual.refinement.trials[: len(ended.refinement.trials)]
    clock[0] = 0.0
    phases.clear()
    again = refine_best(stage(bench, tmp_path), ticking)
    assert again.refinement == usual.refinement
    assert "refinement 1 of 5" not in phases


def with_looks(kls: list[float]) -> Refined:
    """What is refined on the way to somewhere."""
    looks = tuple(HeldBack(step=step, kl=kl) for step, kl in enumerate(kls))
    refinement = Refinement(
        source="some text",
        fingerprint="0",
        sequences=1,
        tokens=16,
        steps=len(kls) - 1,
        rate=1e-3,
        halvings=0,
        kept_step=1,
        validation_sequences=1,
        looks=looks,
    )
    return Refined(plan=PLAN, key=str(kls), codes="0", scales={}, vectors={}, refinement=refinement)


def test_a_look_out_of_turn_gives_nothing_up(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time ends the last of them, what is scored then is not compared with later looks of the others."""
    usual, ended = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [1.0, 0.9, 0.8, 0.7, 0.6, 0.55]
    results = iter([with_looks(usual), with_looks(ended)])

    def refined(*arguments: Any) -> Refined:
        result = next(results)
        arguments[-1](result.refinement.looks[:5])
        return result

    monkeypatch.setattr(refinement_trials, "refine", refined)
    monkeypatch.setattr(refinement_trials, "is_finished", lambda result, _: len(result.refinement.looks) == len(usual))
    two = stage(bench, tmp_path, 2)
    first, second = refine_best(two, silent).refinement.trials
    assert first.finished
    assert not second.finished
    assert not second.pruned
    assert two.key not in two.store


def test_too_little_time_for_another_keeps_what_there_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first it is refused."""
    results: list[Refined | None] = [with_looks([1.0, 0.5]), None]

    def refined(*_: Any) -> Refined:
        result = results.pop(0)
        if result is None:
            raise TooLittleTimeError("less than one step takes")
        return result

    monkeypatch.setattr(refinement_trials, "refine", refined)
    monkeypatch.setattr(refinement_trials, "is_finished", lambda *_: True)
    assert refine_best(stage(bench, tmp_path, 2), silent).refinement.after == 0.5
    results.append(None)
    with pytest.raises(TooLittleTimeError):
        refine_best(stage(bench, tmp_path, 2), silent)


def test_what_is_tried_is_around_the_options_that_were_given() -> None:
    """Steps of as many sequences are tried once; codes that are to stay have no drift to try."""
    space = refinement_trials._space(replace(GIVEN, batch_tokens=40), TEXT.training)
    assert space["rate"] == FloatDistribution(3e-3 / 4, 3e-3 * 4, log=True)
    assert space["passes"] == IntDistribution(1, 2)
    # Of 16 tokens each, 20 are one sequence, 40 are two and 80 are five.
    assert choices(space, "batch_tokens") == {20, 40, 80}
    assert choices(space, "parts") == {"scales,norms,biases", "scales"}
    assert choices(space, "code_steps") == {3, 6, 0}
    assert choices(space, "code_drift") == {0.2, 0.4, 0.1}
    fixed = replace(GIVEN, batch_tokens=16, parts=("norms",), code_steps=0)
    space = refinement_trials._space(fixed, TEXT.training)
    assert choices(space, "batch_tokens") == {16, 32}
    assert choices(space, "parts") == {"norms"}
    assert choices(space, "code_steps") == {0}
    assert choices(space, "code_drift") == {0.2}


def choices(space: dict[str, Any], name: str) -> set[Any]:
    """What of a dimension is tried."""
    return set(space[name].choices)


@settings(max_examples=30, deadline=None)
@given(
    rate=st.floats(1e-6, 0.5),
    parts=st.lists(st.sampled_from(PARTS), min_size=1, unique=True),
    steps=st.integers(0, 9),
    drift=st.floats(0.01, 1),
)
def test_a_proposal_and_the_options_it_makes_are_each_others_inverse(
    rate: float, parts: list[str], steps: int, drift: float
) -> None:
    """And the space holds the proposal that the given options are."""
    options = RefinementOptions(rate=rate, parts=tuple(parts), code_steps=steps, code_drift=drift, seed=7)
    proposal = refinement_trials._proposal(options)
    assert refinement_trials._proposed(replace(GIVEN, seed=7, code_batch_tokens=2048), proposal) == options
    for name, distribution in refinement_trials._space(options, TEXT.training).items():
        assert distribution._contains(distribution.to_internal_repr(proposal[name]))
