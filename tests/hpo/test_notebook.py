"""A study in Python: the documented example runs, and its table has types."""

import re
from pathlib import Path

import pandas as pd
import pytest

from hpo.notebook import load
from objectives import sensitivity
from objectives.errors import InputError
from tests.conftest import SmallStudy

GUIDE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def home(small_study: SmallStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))
    monkeypatch.chdir(tmp_path)


def test_the_documented_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In under ten lines: load, look, plot, measure with the cache, write the best setting."""
    example = BLOCKS[0]
    assert len([line for line in example.splitlines() if line.strip()]) < 10
    exec(compile(example.replace('"mine"', '"small"'), str(GUIDE), "exec"), {})
    assert "group_size" in capsys.readouterr().out
    assert (tmp_path / "who-won.html").is_file()
    assert (tmp_path / "my-4bit" / "config.json").is_file()


def test_trials_are_a_table_with_types() -> None:
    """Whole numbers, floats, times, categories; what is missing is missing."""
    trials = load("small").trials()
    assert len(trials) == 4
    types = {name: str(kind) for name, kind in trials.dtypes.items()}
    assert (types["group_size"], types["perplexity"], types["state"]) == ("Int64", "Float64", "category")
    assert pd.api.types.is_datetime64_any_dtype(trials["finished"])
    assert (trials["finished"] > trials["started"]).all()
    assert pd.api.types.is_bool_dtype(trials["symmetric"])


@pytest.mark.slow
def test_a_plan_is_a_table_that_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one setting or of a budget; measured, written, and the same as a file."""
    monkeypatch.setattr(sensitivity, "TOKENS", 60)
    study = load("small")
    best = study.record.best
    assert best is not None
    uniform = study.plan(trial="best")
    assert study.measure_plan(uniform).score.perplexity == best.perplexity  # type: ignore[union-attr]
    table = study.plan("5.0", trial="best")
    assert set(table["bits"]) >= {4, 8}
    assert list(table["linear"]) == list(uniform["linear"])
    measured = study.measure_plan(table)
    assert 4.9 < measured.size.bits_per_weight <= 5
    table.to_csv(tmp_path / "plan.csv", index=False)
    assert study.measure_plan(pd.read_csv(tmp_path / "plan.csv")).plan == measured.plan
    table["bits"] = 8
    assert study.measure_plan(table).size.bits_per_weight > 8
    written = study.quantize(tmp_path / "eight", plan=table)
    assert written.manifest.bits_per_weight == study.measure_plan(table).size.bits_per_weight
    with pytest.raises(InputError, match="the table, row 1 names no Linear"):
        study.measure_plan(table.drop(columns="linear"))


def test_measuring_uses_the_study_and_its_cache() -> None:
    """The best setting again is the best perplexity again; another one needs no new calibration."""
    study = load("small")
    best = study.record.best
    assert best is not None
    again = study.measure().score
    assert again is not None
    assert again.perplexity == best.perplexity
    other = study.measure(beta=0.123)
    assert other.outcome == "complete"
    assert other.setting is not None
    assert other.setting.beta == 0.123


@pytest.mark.parametrize("key", ["forest", "bits", "history", "memory", "remaining"])
def test_figures_of_the_report_are_figures_here(key: str) -> None:
    """By the same names."""
    assert load("small").figure(key).data


def test_what_mattered_is_asked_of_the_study() -> None:
    """Four trials are too few, and that is what it says."""
    assert "too few" in str(load("small").importances.deciding.reason)


def test_a_study_that_is_not_there_is_named() -> None:
    """With those that are."""
    with pytest.raises(InputError, match="there is no study 'nothing'; there are: small"):
        load("nothing")
