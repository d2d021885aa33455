"""What refining reads, and what it says where that is less than was asked for."""

import logging

import pytest

from hpo.deploy.refining import Refining, text_of
from objectives.refinement.options import RefinementOptions
from tests.objectives import tiny


@pytest.mark.parametrize(("samples", "warned"), [(5, False), (6, True)])
def test_less_text_than_was_asked_for_is_said(caplog: pytest.LogCaptureFixture, samples: int, warned: bool) -> None:
    """With what there is, and where more can come from."""
    training, validation = tiny.sequences([16] * 5, seed=3), tiny.sequences([16] * 4, seed=4)
    refining = Refining(source=None, samples=samples, trials=1, options=RefinementOptions())
    with caplog.at_level(logging.WARNING):
        text = text_of(training, validation, refining)
    assert (text.training, text.validation) == (training, validation)
    said = [record.getMessage() for record in caplog.records]
    expected = (
        f"{training.source} has text left for 5 of the 6 sequences to refine on; --refine-data takes them from another"
    )
    assert said == ([expected] if warned else [])
