"""Several refinements of one winner: which are tried, which is kept, what is given up, and what survives a kill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo.deploy import refinement_trials
from hpo.deploy.refinement_trials import Stage, refine_best
from objectives.progress import silent
from objectives.refined import Refined
from objectives.refinement import course
from objectives.refinement.options import RefinementOptions, RefinementText, TooLittleTimeError
from objectives.refinement.refine import refine
from objectives.refinement_record import HeldBack, Refinement
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny
from tests.objectives.refinement.killing import Killed

PLAN = Plan.uniform(Setting(method="gw-awq", group_size=32, symmetric=False, n_calib=8, n_grid=3))
GIVEN = RefinementOptions(rate=3e-3, batch_tokens=64, code_steps=3)
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
    assert len({(trial.rate, trial.passes, trial.code_steps) for trial in tried}) == len(tried) == TRIALS
    nearest = min(tried, key=lambda trial: trial.kl)
    assert nearest.finished
    assert usual.refinement.after == nearest.kl < tried[0].kl
    alone = replace(GIVEN, rate=nearest.rate, passes=nearest.passes, code_steps=nearest.code_steps)
    again = refine(bench, PLAN, TEXT, alone, ResultStore(Paths(home / "other").results), silent)
    assert again.key == usual.key
    assert tiny.same_bits(dict(again.scales), dict(usual.scales))
    behind = sum(trial.given_up for trial in tried)
    assert usual.refinement.sentence().endswith(
        f"of 5 refinements ({behind} given up on the way; rate {nearest.rate:.2g})"
    )


def test_what_is_behind_is_given_up_in_the_middle(usual: Refined) -> None:
    """It was farther away than the nearest, and did not take all of its steps."""
    behind = [trial for trial in usual.refinement.trials if trial.given_up]
    assert behind
    for trial in behind:
        steps = len(replace(GIVEN, passes=trial.passes).steps(TEXT.training))
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
    assert not second.given_up
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
