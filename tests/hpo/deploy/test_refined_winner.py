"""What is said of a refined winner by held-out text, also where texts disagree, and when it is said no more."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.deploy.refined_winner import judgement
from hpo.study.confirmation import ConfirmedComparison, Interval
from hpo.verdict.snapshot import ranked
from tests.hpo.made_studies import confirmed_study, refined_confirmation

NEARER, FARTHER, LITTLE, UNKNOWN = (-0.02, 0.001), (0.02, 0.001), (-0.0005, 0.001), (-0.02, 0.6)


def compared(*differences: tuple[float, float]) -> list[ConfirmedComparison]:
    """Of each text the difference in nats per token, and the corrected p-value."""
    return [
        ConfirmedComparison(
            dataset=f"text {number}",
            name="trial 7 refined",
            against="trial 7",
            percent=Interval(value=0.0, low=-1.0, high=1.0),
            kl=Interval(value=value, low=value - 0.1, high=value + 0.1),
            p_value=holm,
            holm=holm,
        )
        for number, (value, holm) in enumerate(differences, 1)
    ]


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ((NEARER, NEARER), "confirmed as nearer to full precision"),
        ((FARTHER, FARTHER), "confirmed as farther from it"),
        ((UNKNOWN, UNKNOWN), "not confirmed as different"),
        ((NEARER, FARTHER), "nearer to full precision on text 1, farther from full precision on text 2"),
        ((UNKNOWN, FARTHER), "farther from full precision on text 2, not confirmed as different elsewhere"),
        ((LITTLE, LITTLE), "nearer to full precision on text 1, nearer to full precision on text 2"),
    ],
)
def test_a_text_that_is_hurt_is_named(differences: tuple[tuple[float, float], ...], words: str) -> None:
    """Also where another text gains."""
    assert judgement(compared(*differences)) == words


def test_what_was_refined_is_shown_while_it_is_what_is_recommended(tmp_path: Path) -> None:
    """A study that went on and recommends another setting has nothing that is refined."""
    study = confirmed_study(tmp_path)
    chosen = study.snapshot.recommendation
    assert chosen is not None
    for name, is_shown in ((chosen.measured.name, True), ("trial 999", False)):
        record = replace(study.record, refined=replace(refined_confirmation(), refined=name))
        assert (ranked(record, study.snapshot.scores).record.refined is not None) is is_shown
