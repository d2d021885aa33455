"""The acceptance of a device: it compares what it says it compares, and a device that computes otherwise fails."""

from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import Check, Place, agreement, main, parsed, place, settings
from objectives.scoring import Score


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The bundled model on two short sequences."""
    return place(parsed(["--eval-samples", "2"]), "cpu", "float32", tmp_path_factory.mktemp("processor"))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate on two samples."""
    monkeypatch.setattr(gpu_check, "N_CALIB", 2)


def test_a_device_agrees_with_itself(processor: Place) -> None:
    """Statistics and full precision of one device are equal to its own, and say so."""
    checks = list(agreement(processor, processor, []))
    assert [check.passed for check in checks] == [True, True]
    assert "Gram matrices 0.0e+00 apart" in str(checks[0])
    assert str(checks[1]).startswith("PASS  full precision: mean NLL")


def test_a_device_that_scores_otherwise_fails(processor: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a nat is no rounding error."""

    class Wrong(Place):
        def score(self, setting: object) -> Score:
            score = processor.score(None)
            return replace(score, nll=score.nll + 0.01 * score.tokens)

    checks = list(agreement(Wrong(bench=processor.bench, text=processor.text), processor, []))
    assert [check.passed for check in checks] == [True, False]
    assert "+1.0e-02 from the processor's" in str(checks[1])


def test_every_rounding_and_range_search_is_compared_on_both_grids() -> None:
    """What a study searches is what is accepted."""
    chosen = settings(64)
    assert {setting.rounding for setting in chosen} == {"nearest", "gptq"}
    assert {setting.range_search for setting in chosen} == {"none", "diagonal", "block"}
    assert {setting.symmetric for setting in chosen} == {True, False}


def test_what_is_only_measured_is_neither_passed_nor_failed() -> None:
    """A rate has no verdict."""
    assert str(Check(name="scoring", detail="1.0 s")) == "      scoring: 1.0 s"


@pytest.mark.slow
def test_the_whole_acceptance_passes_on_the_processor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics, settings, rates, a study with two workers and a packed model, and the exit status."""
    monkeypatch.setattr(gpu_check, "MINUTES", 60)
    assert main(["--device", "cpu", "--eval-samples", "8", "--trials", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all passed"
    assert sum(line.startswith("PASS") for line in lines) == 14
    assert torch.__version__ in lines[0]
    assert any(line.startswith("PASS  packed model, scored anew") for line in lines)
