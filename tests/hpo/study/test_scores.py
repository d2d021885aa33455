"""Stored scores are read once, and what cannot be read is refused or left out, never misread."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.space.space import make_space
from hpo.study.record import StudyRecord
from hpo.study.scores import Scores
from quant.setting import Setting
from storage.errors import DamagedEntryError
from storage.results import ResultStore
from tests.hpo.made_studies import TEXT, Maker, study_of


def searched(store: ResultStore, trials: int = 3) -> StudyRecord:
    """A study of random settings."""
    maker = Maker(store, make_space(Setting(), {"group_size": 64}))
    return study_of(maker, [maker.complete(number, maker.draw()) for number in range(trials)]).record


def damage(directory: Path, key: str | None) -> None:
    (directory / f"{key}.safetensors").write_bytes(b"no result")


def test_a_score_is_read_once_with_its_documents(tmp_path: Path) -> None:
    """What happens to its file afterwards changes nothing: equal keys mean equal measurements."""
    record = searched(ResultStore(tmp_path))
    scores = Scores(ResultStore(tmp_path))
    first = scores.of(record.trials[0])
    assert first.perplexity == record.trials[0].perplexity
    assert first.clusters.tolist() == list(TEXT.clusters)
    damage(tmp_path, record.trials[0].result)
    assert scores.of(record.trials[0]) is first


def test_a_score_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """With the file's name, or the setting's where no file belongs to it."""
    record = searched(ResultStore(tmp_path))
    damage(tmp_path, record.trials[1].result)
    scores = Scores(ResultStore(tmp_path))
    with pytest.raises(DamagedEntryError, match=str(record.trials[1].result)):
        scores.of(record.trials[1])
    with pytest.raises(DamagedEntryError, match="trial 2 has no values per sequence"):
        scores.of(replace(record.trials[2], result=None))


def test_what_cannot_be_read_is_left_out_and_said_once(tmp_path: Path) -> None:
    """The others keep their order; a file that was repaired is read after all."""
    store = ResultStore(tmp_path)
    record, said = searched(store), list[DamagedEntryError]()
    before = Scores(store).of(record.trials[1])
    damage(tmp_path, record.trials[1].result)
    scores = Scores(store, said.append)
    for _ in range(3):
        assert [trial.number for trial, _ in scores.readable(record.trials)] == [0, 2]
    assert [error.key for error in said] == [record.trials[1].result]
    searched(store)
    assert [trial.number for trial, _ in scores.readable(record.trials)] == [0, 1, 2]
    assert scores.of(record.trials[1]).nll.equal(before.nll)
