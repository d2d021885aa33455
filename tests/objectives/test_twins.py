"""Settings that give the same weights are scored once; everything else is as if each had been."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from objectives import trial
from objectives.results import keep_measured, load_result, measurement_key, save_result, score_of_weights
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.results import ResultStore
from tests.objectives import tiny

# Nearest rounding reads no calibration, so its size changes no weight.
RTN = Setting(method="rtn", group_size=32, n_calib=8)
TWIN = replace(RTN, n_calib=4)
TEXT = tiny.sequences([12] * 20, seed=2)
KEY = "first"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)


@pytest.fixture
def store(bench: Bench, tmp_path: Path) -> ResultStore:
    """A store with what RTN measured."""
    store = ResultStore(tmp_path / "results")
    keep_measured(store, bench, TEXT, KEY, run_trial(bench, Plan.uniform(RTN), TEXT))
    return store


def run(bench: Bench, store: ResultStore, setting: Setting, text: Sequences = TEXT, **changes: Any) -> TrialResult:
    twin = partial(score_of_weights, store, bench, text)
    return run_trial(bench, Plan.uniform(setting), text, twin=twin, **changes)


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has scoring fail from now on."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("scored")
        yield

    return lambda: monkeypatch.setattr(trial, "score", refuse)


def test_a_twin_has_the_score_of_its_twin_without_being_scored(
    bench: Bench, store: ResultStore, unscored: Callable[[], None]
) -> None:
    """All values per sequence; keys of settings stay apart."""
    assert measurement_key(bench, Plan.uniform(RTN), TEXT) != measurement_key(bench, Plan.uniform(TWIN), TEXT)
    unscored()
    result, first = run(bench, store, TWIN), load_result(store, KEY)
    assert result.setting == TWIN
    assert result.outcome == "complete"
    assert result.fingerprint == first.fingerprint
    assert result.score is not None
    assert first.score is not None
    for name, values in first.score.tensors.items():
        assert result.score.tensors[name].equal(values)


def test_a_twin_is_asked_for_at_every_look_and_ends_where_it_would_have(
    bench: Bench, store: ResultStore, unscored: Callable[[], None]
) -> None:
    """A study has the same trials whether its twins were scored or not."""
    seen: list[list[float]] = []

    def second(look: Score) -> bool:
        seen[-1].append(look.perplexity)
        return len(look.nll) < 16

    results = []
    for known in (ResultStore(Path("nowhere")), store):
        seen.append([])
        results.append(run(bench, known, TWIN, go_on=second))
        unscored()
    assert [result.outcome for result in results] == ["stopped", "stopped"]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2


@pytest.mark.parametrize("other", [Setting(method="rtn", group_size=64, n_calib=8), replace(RTN, symmetric=False)])
def test_other_weights_or_other_text_are_scored(
    bench: Bench, store: ResultStore, unscored: Callable[[], None], other: Setting
) -> None:
    """Whatever is stored of these."""
    unscored()
    with pytest.raises(AssertionError, match="scored"):
        run(bench, store, other)
    with pytest.raises(AssertionError, match="scored"):
        run(bench, store, TWIN, tiny.sequences([12] * 20, seed=3))


@pytest.mark.parametrize("damage", ["result", "record", "gone"])
def test_what_cannot_be_read_is_scored(bench: Bench, store: ResultStore, tmp_path: Path, damage: str) -> None:
    """A damaged or missing result, and a damaged record of it, cost a measurement and nothing else."""
    for path in (tmp_path / "results").iterdir():
        if path.name.startswith("weights-") == (damage == "record"):
            path.unlink() if damage == "gone" else path.write_bytes(b"nothing")
    result = run(bench, store, TWIN)
    assert result.outcome == "complete"
    keep_measured(store, bench, TEXT, "second", result)
    assert run(bench, store, RTN).outcome == "complete"


def test_a_result_that_was_given_up_is_nobodys_twin(bench: Bench, store: ResultStore, tmp_path: Path) -> None:
    """Nor one of before fingerprints were taken."""
    stopped, whole = run(bench, store, RTN, go_on=lambda _: False), load_result(store, KEY)
    other = ResultStore(tmp_path / "other")
    keep_measured(other, bench, TEXT, "stopped", stopped)
    keep_measured(other, bench, TEXT, "old", replace(whole, fingerprint=None))
    assert whole.fingerprint is not None
    assert score_of_weights(other, bench, TEXT, whole.fingerprint) is None


def test_a_result_that_was_replaced_by_another_is_not_taken(bench: Bench, store: ResultStore) -> None:
    """What a record names must have the weights that are asked for."""
    whole = load_result(store, KEY)
    assert whole.fingerprint is not None
    save_result(store, KEY, replace(whole, fingerprint="0" * 32))
    assert score_of_weights(store, bench, TEXT, whole.fingerprint) is None
