"""What a study needs of its storage, asked of every kind: SQLite, a real PostgreSQL, and a journal file."""

import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from hpo.study.archive import export_study, import_study
from hpo.study.attributes import CONTRACT, OWNER, RESULT
from hpo.study.owner import Owner
from hpo.study.record import read_study
from hpo.workers.administration import list_studies, remove_study, repair_study, retry_failed
from hpo.workers.preparation import open_study
from hpo.workers.queue import Queue
from objectives.errors import InputError
from storage.results import ResultStore
from storage.studies.exclusive import exclusive
from storage.studies.opening import open_storage
from storage.typed_json import encode
from tests.hpo import made_studies
from tests.hpo.processes import SPACE, ask_all, claim_all, count_up, hold, queue_of
from tests.processes import finish, start, wait_until
from tests.servers import Database

STORAGES = ("sqlite", "postgresql", "journal")
CONTRACT_OF_S = replace(
    made_studies.CONTRACT,
    model=replace(made_studies.CONTRACT.model, name="m"),
    tuning=replace(made_studies.CONTRACT.tuning, fingerprint="f"),
)
# What takes several processes seconds is seen quickly on one of them.
AT_ONCE = pytest.mark.parametrize(
    "url", ["sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in STORAGES[1:])], indirect=True
)


@pytest.fixture(params=STORAGES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A storage with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
    elif request.param == "journal":
        yield f"journal:{tmp_path}/study.log"
    else:
        database: Database = request.getfixturevalue("database")
        with database.fresh() as address:
            yield address


@pytest.fixture
def queue(url: str) -> Queue:
    """The queue of a study with nothing in it."""
    open_study(open_storage(url), "s", CONTRACT_OF_S)
    return queue_of(url)


@pytest.fixture
def keep() -> Callable[[ResultStore, str], None]:
    """Keeps something under a key."""

    def save(store: ResultStore, key: str) -> None:
        store.save(key, {"of": key}, {"nll": torch.arange(4.0)})

    return save


class TestEveryStorage:
    """The contract."""

    def test_trials_come_back_as_they_were_written(self, queue: Queue, url: str) -> None:
        """States, values, parameters, attributes and looks, read by another connection."""
        setting = SPACE.at([0.3] * 5)
        queue.add(setting, "preset balanced")
        trial = queue.claim()
        assert trial is not None
        trial.report(40.25, 8)
        trial.set_user_attr("seconds", {"score": 1.5})
        queue.study.tell(trial, 39.5)
        (read,) = read_study(queue_of(url).study).trials
        assert (read.state, read.perplexity, read.setting, read.running) == ("COMPLETE", 39.5, setting, {8: 40.25})
        assert SPACE.setting(read.params) == setting
        assert read.seconds == {"score": 1.5}

    @AT_ONCE
    def test_processes_that_claim_at_once_get_every_trial_once(self, queue: Queue, url: str, tmp_path: Path) -> None:
        """Twenty queued trials, three processes: twenty claims, and no storage that is locked."""
        for index in range(20):
            queue.add(SPACE.at([(index + 0.5) / 20] * 5), "gp")
        assert finish(*(start(claim_all, url, tmp_path / f"{index}.txt") for index in range(3))) == [0] * 3
        claimed = [int(line) for index in range(3) for line in (tmp_path / f"{index}.txt").read_text().split()]
        assert sorted(claimed) == list(range(20))

    @AT_ONCE
    @pytest.mark.parametrize("budget", [16, pytest.param(64, marks=pytest.mark.slow)])
    def test_processes_that_ask_at_once_keep_the_budget_exactly(
        self, queue: Queue, url: str, tmp_path: Path, budget: int
    ) -> None:
        """Four processes: as many settings as the budget allows, none twice, each told by its process."""
        targets = [tmp_path / f"{index}.txt" for index in range(4)]
        assert finish(*(start(ask_all, url, tmp_path, budget, target) for target in targets)) == [0] * 4
        asked = [int(line) for target in targets for line in target.read_text().split()]
        assert sorted(asked) == list(range(budget))
        trials = read_study(queue.study).trials
        assert len({trial.setting for trial in trials}) == len(trials) == budget
        assert {trial.state for trial in trials} == {"COMPLETE"}

    @AT_ONCE
    def test_the_lock_lets_one_process_in_at_a_time(self, queue: Queue, url: str, tmp_path: Path) -> None:
        """Three processes that read and write a number lose none of thirty steps."""
        counter = tmp_path / "counter"
        counter.write_text("0")
        assert finish(*(start(count_up, url, counter, 10) for _ in range(3))) == [0] * 3
        assert counter.read_text() == "30"

    def test_the_lock_of_a_killed_process_is_free(self, queue: Queue, url: str, tmp_path: Path) -> None:
        """Nobody has to guess whether its holder is dead."""
        holder = start(hold, url, tmp_path / "ready")
        wait_until((tmp_path / "ready").exists, "the lock")
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        with exclusive(queue.storage, "s"):
            pass
        with exclusive(queue.storage, "another"), exclusive(queue.storage, "s"):
            pass

    def test_what_a_dead_worker_left_is_repaired(self, queue: Queue) -> None:
        """Its trial waits again; what lives is left alone."""
        for index in range(2):
            queue.add(SPACE.at([(index + 0.5) / 4] * 5), "gp")
        dead = queue.claim()
        assert dead is not None
        dead.set_user_attr(OWNER, encode(replace(Owner.this(), pid=2**22 + 1)))
        assert [number for number, _ in repair_study(queue.study, queue.storage, print)] == [0]
        assert [trial.state for trial in read_study(queue.study).trials] == ["WAITING", "WAITING"]

    def test_failed_settings_are_tried_again_once(self, queue: Queue) -> None:
        """With their parameters, and without counting twice."""
        setting = SPACE.at([0.3] * 5)
        queue.add(setting, "start-up")
        trial = queue.claim()
        assert trial is not None
        queue.study.tell(trial, state=TrialState.FAIL)
        assert retry_failed(queue.study, queue.storage) == [0]
        assert retry_failed(queue.study, queue.storage) == []
        again = queue.claim()
        assert again is not None
        assert SPACE.setting(again.params) == setting
        assert [trial.number for trial in read_study(queue.study).counted] == [1]

    def test_studies_are_listed_and_removed(self, queue: Queue) -> None:
        """One that is worked on only by force."""
        queue.add(SPACE.at([0.3] * 5), "gp")
        queue.claim()
        (listed,) = list_studies(queue.storage)
        assert (listed.name, listed.model, listed.trials, listed.best) == ("s", "m", {"RUNNING": 1}, None)
        with pytest.raises(InputError, match=r"running trials \(0\)"):
            remove_study(queue.study, queue.storage, force=False)
        remove_study(queue.study, queue.storage, force=True)
        assert list_studies(queue.storage) == []

    def test_a_study_moves_with_everything_that_is_known_of_it(
        self, queue: Queue, tmp_path: Path, keep: Callable[[ResultStore, str], None]
    ) -> None:
        """Into another storage and another directory, and from there on: what runs waits again."""
        here, there = ResultStore(tmp_path / "here"), ResultStore(tmp_path / "there")
        keep(here, "text-f")
        for index, state in enumerate(("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")):
            queue.add(SPACE.at([(index + 0.5) / 6] * 5), f"preset {state}")
            if state == "WAITING":
                continue
            trial = queue.claim()
            assert trial is not None
            trial.report(40.0 + index, 8)
            if state == "RUNNING":
                continue
            keep(here, f"r{index}")
            trial.set_user_attr(RESULT, f"r{index}")
            queue.study.tell(trial, 39.5 if state == "COMPLETE" else None, state=TrialState[state])
        count = export_study(queue.study, here, tmp_path / "s.zip")
        assert count == 4
        other = open_storage(f"sqlite:///{tmp_path}/other.db")
        moved = read_study(import_study(other, there, tmp_path / "s.zip"))
        before = read_study(queue.study)
        ended = [trial for trial in before.trials if trial.state not in ("RUNNING", "WAITING")]
        assert [trial for trial in moved.trials if trial.number < 3] == ended
        assert [trial.state for trial in moved.trials[3:]] == ["WAITING", "WAITING"]
        assert [trial.setting for trial in moved.trials] == [trial.setting for trial in before.trials]
        assert (moved.contract, moved.name) == (before.contract, "s")
        assert there.encoded("r0") == here.encoded("r0")
        onward = Queue(study=optuna.load_study(storage=other, study_name="s"), storage=other, space=SPACE)
        claimed = onward.claim()
        assert claimed is not None
        assert SPACE.setting(claimed.params) == before.trials[3].setting
        with pytest.raises(InputError, match="import it under another name"):
            import_study(other, there, tmp_path / "s.zip")
        copy = import_study(other, there, tmp_path / "s.zip", "copy")
        assert copy.user_attrs[CONTRACT] == encode(CONTRACT_OF_S)


def test_a_file_that_is_no_study_leaves_nothing_behind(tmp_path: Path) -> None:
    """Garbage, a foreign archive, and one with a path in it."""
    storage, store = open_storage(f"sqlite:///{tmp_path}/s.db"), ResultStore(tmp_path / "results")
    (tmp_path / "garbage.zip").write_bytes(b"garbage")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("other.txt", "x")
    with zipfile.ZipFile(tmp_path / "path.zip", "w") as archive:
        archive.writestr("study.json", '{"format": 1, "name": "s", "attributes": {}, "trials": []}')
        archive.writestr("results/../../evil.safetensors", "x")
    with zipfile.ZipFile(tmp_path / "trial.zip", "w") as archive:
        archive.writestr("study.json", '{"format": 1, "name": "s", "attributes": {}, "trials": [{"state": "X"}]}')
    for name, message in (
        ("absent.zip", "cannot be read"),
        ("garbage.zip", "is no exported study"),
        ("foreign.zip", "is no exported study"),
        ("path.zip", "unexpected entry"),
        ("trial.zip", "holds what cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            import_study(storage, store, tmp_path / name)
    assert optuna.get_all_study_names(storage) == []
    assert not (tmp_path / "results").exists()


def test_a_journal_whose_writer_died_in_a_line_goes_on(tmp_path: Path) -> None:
    """The torn line is cut off before the next one is written; nothing whole is lost."""
    path = tmp_path / "study.log"
    open_study(open_storage(f"journal:{path}"), "s", CONTRACT_OF_S)
    queue = queue_of(f"journal:{path}")
    queue.add(SPACE.at([0.3] * 5), "gp")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 9, "trial_id"')
    assert [trial.state for trial in read_study(queue_of(f"journal:{path}").study).trials] == ["WAITING"]
    queue.add(SPACE.at([0.6] * 5), "gp")
    trials = read_study(queue_of(f"journal:{path}").study).trials
    assert [trial.setting for trial in trials] == [SPACE.at([0.3] * 5), SPACE.at([0.6] * 5)]
    assert path.read_bytes().startswith(whole)
