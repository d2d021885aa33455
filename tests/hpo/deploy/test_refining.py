"""What refining reads, and what it says where that is less than was asked for."""

import logging
from pathlib import Path

import pytest
import torch

from hpo.deploy.refining import Refining, text_of
from objectives.errors import InputError
from objectives.refinement.options import RefinementOptions
from objectives.refinement_record import Change
from objectives.trial import Bench
from tests.objectives import tiny


@pytest.mark.parametrize(("samples", "warned"), [(5, False), (6, True)])
def test_less_text_than_was_asked_for_is_said(
    bench: Bench, caplog: pytest.LogCaptureFixture, samples: int, warned: bool
) -> None:
    """With what there is, and where more can come from."""
    training, validation = tiny.sequences([16] * 5, seed=3), tiny.sequences([16] * 4, seed=4)
    refining = Refining(source=None, samples=samples, trials=1, options=RefinementOptions())
    with caplog.at_level(logging.WARNING):
        text = text_of(bench, training, validation, refining)
    assert (text.training, text.validation) == (training, validation)
    said = [record.getMessage() for record in caplog.records]
    expected = (
        f"{training.source} has text left for 5 of the 6 sequences to refine on; --refine-data takes them from another"
    )
    assert said == ([expected] if warned else [])


def test_a_mixture_of_experts_whose_codes_are_to_move_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    """A study would have done all of its trials by the time that codes move; with codes that stay it is read."""
    bench = tiny.bench(tiny.model(tiny.MIXTURES["mixtral"](), dtype=torch.bfloat16), tmp_path)
    texts = tiny.sequences([16] * 5, seed=3), tiny.sequences([16] * 4, seed=4)
    moving, staying = (
        Refining(source=None, samples=5, trials=1, options=RefinementOptions(code_steps=steps)) for steps in (5, 0)
    )
    with pytest.raises(InputError, match="mixture of experts cannot be followed; use --refine-codes 0"):
        text_of(bench, *texts, moving)
    assert text_of(bench, *texts, staying).training == texts[0]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.3, -0.1, "better"), (0.1, 0.3, "worse"), (-0.1, 0.1, "not told apart"), (None, None, "not told apart")],
)
def test_what_a_text_shows_is_said_by_its_interval(low: float | None, high: float | None, verdict: str) -> None:
    """Less divergence is better; one cluster of text has no interval."""
    assert Change(before=1.0, after=1.0, difference=0.0, low=low, high=high).verdict == verdict
