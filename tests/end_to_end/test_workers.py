"""Many workers on one study, as real processes on real storages: nothing is lost, and nothing is done twice."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import sleep

import optuna
import pytest
import transformers
from optuna.trial import TrialState

import cli
from hpo.study.attributes import BEAT
from hpo.study.record import StudyRecord, read_study
from storage.cache import TensorCache
from storage.paths import Paths
from storage.studies.opening import open_storage
from tests.processes import finish, run_impatient, run_worker, start, wait_until
from tests.servers import Database

ROOT = Path(cli.__file__).parent
SMALL = ["--space", "original", "--group-size", "128", "--n-calib", "16", "--n-grid", "2..5", "--eval-samples", "8"]
SMALL += ["--dtype", "float32", "--seq-len", "64", "--study", "s", "--pruner", "none"]
SMALL += ["--confirm-data", "bundled:docstrings"]
Begin = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration that all studies of these tests share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def here(no_pictures: None, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRAQTUNE_HOME", str(home))
    transformers.utils.logging.disable_progress_bar()


def study(url: str) -> StudyRecord:
    """The study as anyone sees it."""
    return read_study(optuna.load_study(storage=open_storage(url), study_name="s"))


def states(url: str) -> Counter[str]:
    """How many trials are in which state; nothing before there is a study."""
    try:
        return Counter(trial.state for trial in study(url).trials)
    except KeyError:
        return Counter()


def is_measuring(url: str) -> bool:
    """Whether a trial is past the lock that it was proposed under: its heartbeat begins after that."""
    try:
        trials = optuna.load_study(storage=open_storage(url), study_name="s").trials
    except KeyError:
        return False
    return any(trial.state == TrialState.RUNNING and BEAT in trial.user_attrs for trial in trials)


def suspend(process: BaseProcess, database: Path) -> None:
    """Stop a process where it is not writing: SQLite's lock of a stopped writer would stop everyone else, too."""
    assert process.pid is not None
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        with closing(sqlite3.connect(database, timeout=1)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError:
                os.kill(process.pid, signal.SIGCONT)
                sleep(0.05)


def assert_whole(url: str, budget: int) -> None:
    """Exactly the budget was spent, every trial has ended, and no setting was tried twice."""
    record = study(url)
    assert len(record.trials) == budget
    assert {trial.state for trial in record.trials} == {"COMPLETE"}
    assert len({trial.setting for trial in record.trials}) == budget


def worker(url: str, home: Path, output: Path, *flags: str, target: Callable[..., None] = run_worker) -> BaseProcess:
    """One worker, started as on another machine: the same command with the same storage."""
    where = ["--storage", url, "--cache", str(home), "--out", str(output.parent / "report")]
    return start(target, ["optimize", *SMALL, *where, *flags], output)


@pytest.mark.slow
def test_one_command_starts_workers_that_share_a_study(
    database: Database, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes on PostgreSQL: one study, both at work, the closing table and the report as from one."""
    with database.fresh() as url:
        assert cli.main(["optimize", *SMALL, "--trials", "6", "--workers", "2", "--storage", url]) == 0
        assert_whole(url, 6)
        record = study(url)
        assert {trial.owner and trial.owner.name for trial in record.trials} == {"w0", "w1"}
        assert {trial.owner and trial.owner.device for trial in record.trials} == {"cpu"}
        printed = capsys.readouterr()
        assert "[6/6]" in printed.err
        assert "Recommended at group size 128" in printed.out
        assert len(record.references) == 4
        assert record.confirmation is not None
        assert cli.main(["status", "--storage", url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["trials"] == {"COMPLETE": 6}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 8])
def test_workers_that_start_together_on_nothing_make_one_study(count: int, home: Path, tmp_path: Path) -> None:
    """One contract, presets queued once, every reference, segment of calibration and teacher computed once."""
    url, own = f"sqlite:///{tmp_path}/s.db", tmp_path / "own"
    workers = [worker(url, own, tmp_path / f"{index}", "--trials", "5") for index in range(count)]
    assert finish(*workers) == [0] * count
    assert_whole(url, 5)
    origins = [trial.origin for trial in study(url).trials]
    assert len({origin for origin in origins if origin.startswith("preset")}) == sum(
        origin.startswith("preset") for origin in origins
    )
    assert len(study(url).references) == 4
    # Full precision on the tuning text and on what the winner was confirmed on.
    entries = [entry.about.get("holds", "statistics") for entry in TensorCache(Paths(own)).entries()]
    assert Counter(entries) == {"statistics": 1, "last hidden states of full precision": 2}
    errors = "".join((tmp_path / f"{index}.err").read_text() for index in range(count))
    assert "Traceback" not in errors
    assert "locked" not in errors


@pytest.mark.slow
def test_a_suspended_worker_loses_its_trial_and_tells_nothing_late(tmp_path: Path) -> None:
    """Stopped for longer than the grace period, then continued: its successor told the trial, once."""
    url = f"sqlite:///{tmp_path}/s.db"
    # Where nothing is measured yet, a trial lasts long enough to be seen.
    home = tmp_path / "own"
    first = worker(url, home, tmp_path / "first", "--trials", "4", target=run_impatient)
    wait_until(lambda: is_measuring(url), "a trial with a heartbeat")
    suspend(first, tmp_path / "s.db")
    second = worker(url, home, tmp_path / "second", "--trials", "4", target=run_impatient)
    assert finish(second) == [0]
    assert_whole(url, 4)
    before = study(url).trials
    assert first.pid is not None
    os.kill(first.pid, signal.SIGCONT)
    assert finish(first) == [0]
    assert study(url).trials == before
    assert "gave no sign of life" in (tmp_path / "second.err").read_text()


@pytest.mark.slow
def test_a_database_that_is_restarted_costs_nothing(database: Database, tmp_path: Path) -> None:
    """Every connection is cut in the middle of a study, and it goes on."""
    home = tmp_path / "own"
    with database.fresh() as url:
        running = worker(url, home, tmp_path / "worker", "--trials", "6")
        wait_until(lambda: states(url)["COMPLETE"] > 1 and states(url)["RUNNING"], "two ended trials")
        database.restart()
        assert finish(running) == [0], (tmp_path / "worker.err").read_text()
        assert_whole(url, 6)


@pytest.mark.slow
def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    """The chaos benchmark with two kills: nothing is lost, run twice, or left behind."""
    arguments = ["--kills", "2", "--trials", "10", "--workers", "2", "--json", str(tmp_path / "chaos.json")]
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["kills"] >= 2
    wrong = ("finished_trials_lost", "settings_run_twice", "budget_missed_by", "left_running", "left_waiting")
    assert [found[name] for name in wrong] == [0] * 5


@pytest.mark.slow
def test_tasks_of_a_dask_cluster_share_a_study(home: Path, tmp_path: Path) -> None:
    """A real cluster of two worker processes runs the same function through joblib."""
    from dask.distributed import LocalCluster

    url = f"sqlite:///{tmp_path}/s.db"
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        flags = ["--trials", "5", "--workers", "2", "--backend", "dask", "--scheduler", cluster.scheduler_address]
        assert finish(worker(url, home, tmp_path / "driver", *flags)) == [0], (tmp_path / "driver.err").read_text()
    assert_whole(url, 5)
    assert {trial.owner and trial.owner.name for trial in study(url).trials} <= {"dask-0", "dask-1"}


@pytest.mark.slow
def test_a_study_moves_from_sqlite_to_postgresql_and_goes_on(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported, imported into another storage and another directory, and continued there with everything known."""
    here, there = f"sqlite:///{tmp_path}/s.db", str(tmp_path / "there")
    assert cli.main(["optimize", *SMALL, "--trials", "4", "--storage", here]) == 0
    assert cli.main(["study", "export", "s", "s.zip", "--storage", here]) == 0
    with database.fresh() as url:
        assert cli.main(["study", "import", "s.zip", "--storage", url, "--cache", there]) == 0
        before = study(url).trials
        assert before == study(here).trials
        assert cli.main(["optimize", *SMALL, "--trials", "6", "--storage", url, "--cache", there]) == 0
        assert_whole(url, 6)
        assert study(url).trials[:4] == before
        capsys.readouterr()
        assert cli.main(["study", "ls", "--storage", url, "--json"]) == 0
        (listed,) = json.loads(capsys.readouterr().out)["studies"]
        assert (listed["name"], listed["trials"]) == ("s", {"COMPLETE": 6})
        assert cli.main(["study", "upgrade", "--storage", url]) == 0
        assert cli.main(["study", "repair", "--storage", url]) == 0
        assert cli.main(["study", "retry", "s", "--storage", url, "--json"]) == 0
        assert cli.main(["study", "rm", "s", "--storage", url]) == 0
        assert cli.main(["study", "rm", "s", "--storage", url]) == 2


def test_a_storage_may_be_named_by_a_file_and_its_password_is_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither printed, nor in the error of a server that does not answer."""
    (tmp_path / "url").write_text("postgresql://me:hushhush@127.0.0.1:1/db\n")
    assert cli.main(["status", "--storage", f"@{tmp_path}/url"]) == 1
    printed = capsys.readouterr()
    assert "hushhush" not in printed.out + printed.err
    assert cli.main(["status", "--storage", f"@{tmp_path}/absent"]) == 2
    assert "the file cannot be read" in capsys.readouterr().err


def test_a_directory_that_others_may_write_to_is_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What others put there would be taken for measurements."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert cli.main(["cache", "ls", "--cache", str(shared)]) == 2
    assert f"others may write to {shared} (mode 777)" in capsys.readouterr().err
    assert cli.main(["cache", "ls", "--cache", str(shared), "--allow-shared-cache"]) == 0
    shared.chmod(stat.S_IRWXU)
    assert cli.main(["cache", "ls", "--cache", str(shared)]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "--workers 0 is not at least 1"),
        (["--devices", "cuda:9"], "cuda:9 is not there; there are: cpu"),
        (["--workers", "2", "--backend", "ray"], "backend 'ray' is unknown; choose one of loky, dask"),
        (["--workers", "2", "--backend", "dask"], "needs the --scheduler of a running cluster"),
        (["--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"], "needs --workers N"),
        (["--trial-timeout", "0"], "--trial-timeout 0 is not above 0"),
    ],
)
def test_workers_that_cannot_be_are_refused_in_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 2, and no process was started."""
    assert cli.main(["optimize", *SMALL, *flags, "--storage", f"sqlite:///{tmp_path}/s.db"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_workers_that_refuse_the_plan_end_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line is the one that a single worker prints; nothing is started again and again."""
    flags = ["--workers", "1", "--eval-samples", "100000", "--storage", f"sqlite:///{tmp_path}/s.db"]
    assert cli.main(["optimize", *SMALL, *flags]) == 2
    assert "not for 100000" in capsys.readouterr().err
