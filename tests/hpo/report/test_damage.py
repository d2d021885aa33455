"""What settings cost by two measures is what their scores say, and settings without a divergence are left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.report.damage import Damage, damages, disagreements
from hpo.space.size_class import size_class_of
from hpo.verdict.snapshot import Study
from objectives.paired import Difference, distance, paired_difference
from quant.setting import Setting
from storage.results import ResultStore
from tests.hpo.made_studies import mixed_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return mixed_study(ResultStore(tmp_path), trials=12).snapshot


def test_every_row_has_both_measures(study: Study) -> None:
    """Its divergence, and its paired distance from full precision."""
    full = study.scores.of(study.record.references[0])
    rows = [row for ranking in study.rankings for row in ranking.rows]
    collected = damages(study)
    assert [damage.name for damage in collected] == [row.measured.name for row in rows]
    for damage, row in zip(collected, rows, strict=True):
        assert damage.kl == distance(row.score, "kl")
        assert damage.nll == paired_difference(row.score, full)
    assert {damage.kind for damage in collected} == {"reference", "trial"}


def test_scores_from_before_divergence_are_left_out(study: Study) -> None:
    """The others stay."""
    ranking = study.rankings[0]
    older = replace(ranking.rows[0], score=replace(ranking.rows[0].score, kl=None, flips=None))
    changed = replace(study, rankings=[replace(ranking, rows=(older, *ranking.rows[1:])), *study.rankings[1:]])
    assert len(damages(changed)) == len(damages(study)) - 1


def at(kl: float, nll: float, group_size: int = 64) -> Damage:
    def of(value: float) -> Difference:
        return Difference(value=value, standard_error=0.1, low=value - 0.2, high=value + 0.2, p_value=0.5, clusters=9)

    size_class = size_class_of(Setting(group_size=group_size))
    return Damage(name="rtn", kind="reference", size_class=size_class, kl=of(kl), nll=of(nll))


def test_pairs_that_are_ordered_differently_are_counted_at_equal_bits() -> None:
    """Two of three pairs agree; another size class is compared with nothing."""
    assert disagreements((at(0.1, 0.3), at(0.2, 0.4), at(0.3, 0.35), at(0.05, 0.9, group_size=32))) == (1, 3)
    assert disagreements(()) == (0, 0)
