"""What is said of a running study: a lane per worker, lines in a log, objects for a program."""

import json
from dataclasses import replace
from io import StringIO
from time import sleep

import pytest
from rich.console import Console

from hpo import terminal
from hpo.space.space import make_space
from hpo.study.attributes import Beat
from hpo.study.event_lines import event_line
from hpo.study.events import Finished, Looked, Notice, Working
from hpo.study.owner import Owner
from hpo.study.record import TrialRecord
from hpo.terminal import Board, ended_text, event_text, study_display
from quant.setting import Setting
from storage.typed_json import encode
from tests.hpo.made_studies import trial
from tests.processes import wait_until

SPACE = make_space(Setting(), {})


def running(number: int, worker: str, done: int, host: str = "here") -> TrialRecord:
    """A trial at work."""
    made = trial(number, SPACE, Setting(), None, state="RUNNING")
    beat = Beat(count=1, phase="scoring", done=done, total=64, at="2026-01-01T00:00:00+00:00")
    owner = Owner(name=worker, device="cuda:0", host=host, machine=host, pid=int(worker[1:]), started=0.0)
    return replace(made, owner=owner, beat=beat)


@pytest.fixture
def finished() -> Finished:
    """A trial that has ended."""
    made = trial(3, SPACE, Setting(), 28.5)
    return Finished(trial=made, best=made, done=4, budget=10, saved=0.25, seconds_left=61.0)


def drawn(board: Board) -> str:
    """What the board looks like now."""
    console = Console(file=StringIO(), width=120, record=True)
    console.print(board.live.renderable)
    return console.export_text()


@pytest.fixture
def board() -> Board:
    """On a terminal that nobody sees."""
    return Board(Console(file=StringIO(), width=120, force_terminal=True, highlight=False))


def test_a_trial_with_the_weights_of_another_says_so(finished: Finished) -> None:
    """A person and a program can tell that its value is no second measurement."""
    twin = replace(finished, twin="trial 2 g64")
    assert ended_text(twin) == f"{ended_text(finished)}, with the weights of trial 2 g64"
    assert (encode(event_line(finished))["twin_of"], encode(event_line(twin))["twin_of"]) == (None, "trial 2 g64")


def test_every_worker_has_a_lane_of_its_own(board: Board) -> None:
    """With its device, its trial and how far that is; one that leaves takes its lane along."""
    board.listen(Working(trials=(running(1, "w0", 16), running(2, "w1", 32))))
    lines = drawn(board).splitlines()
    assert [line.split("━")[0].strip() for line in lines if line.strip()] == [
        "w0 here cuda:0 trial 1 scoring 16/64",
        "w1 here cuda:0 trial 2 scoring 32/64",
    ]
    assert "16/64" in lines[0]
    board.listen(Working(trials=(running(5, "w1", 8),)))
    assert [line.split("━")[0].strip() for line in drawn(board).splitlines() if line.strip()] == [
        "w1 here cuda:0 trial 5 scoring 8/64"
    ]


def test_workers_of_one_name_on_two_machines_have_two_lanes(board: Board) -> None:
    """Each with its machine."""
    board.listen(Working(trials=(running(1, "w0", 16), running(2, "w0", 32, host="there"))))
    lanes = drawn(board)
    assert "w0 here" in lanes
    assert "w0 there" in lanes


def test_waiting_for_workers_is_one_lane_that_stays(board: Board) -> None:
    """However often it is said; gone when work begins."""
    tasks = []
    for _ in range(3):
        board.listen(Working(trials=()))
        tasks.append(board._lanes.task_ids)
    assert tasks[0] == tasks[1] == tasks[2]
    assert "workers prepare" in drawn(board)
    board.listen(Working(trials=(running(1, "w0", 16),)))
    assert "workers prepare" not in drawn(board)


def test_the_board_keeps_the_best_and_what_is_left_in_sight(board: Board, finished: Finished) -> None:
    """Below the lanes; the trial that ended is printed once and stays."""
    with board.live:
        board.listen(finished)
        board.progress("scoring", 8, 64)
    assert "best 28.500 (trial 3) | 25% of tokens saved | about 0:01:01 left" in drawn(board)
    printed = board.live.console.file
    assert isinstance(printed, StringIO)
    assert printed.getvalue().count("[4/10] trial 3") == 1


def test_text_in_brackets_is_no_markup(board: Board) -> None:
    """Names of files may look like it."""
    with board.live:
        board.listen(Notice(text="[red]data[/red].txt is read"))
        board.progress("reading [bold]data[/bold].txt", 1, 2)
    printed = board.live.console.file
    assert isinstance(printed, StringIO)
    assert "[red]data[/red].txt is read" in printed.getvalue()
    assert "[bold]data[/bold].txt" in drawn(board)


def test_a_program_gets_one_object_per_line(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every event; who is at what only when that changed."""
    working = Working(trials=(running(1, "w0", 16),))
    looked = Looked(trial=running(1, "w0", 16), value=float("inf"), perplexity=float("inf"), read=16, total=64)
    with study_display(quiet=False, as_json=True) as (listen, _):
        for event in (Notice(text="n_calib 512 left out"), working, working, looked, finished):
            listen(event)
    objects = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in objects] == ["notice", "working", "looked", "finished"]
    assert objects[1]["workers"] == [
        {"name": "w0", "host": "here", "device": "cuda:0", "trial": 1, "phase": "scoring 16/64"}
    ]
    assert objects[2] == {"event": "looked", "trial": 1, "read": 16, "total": 64, "value": None, "perplexity": None}
    assert {name: objects[3][name] for name in ("trial", "state", "perplexity", "best", "done", "budget")} == {
        "trial": 3,
        "state": "COMPLETE",
        "perplexity": 28.5,
        "best": 3,
        "done": 4,
        "budget": 10,
    }


def test_a_log_gets_a_line_per_trial(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """And no more than one in a while of what goes on in between."""
    with study_display(quiet=False, as_json=False) as (listen, progress):
        for read in (8, 16, 32):
            listen(Looked(trial=running(1, "w0", read), value=30.0, perplexity=30.0, read=read, total=64))
            progress("scoring", read, 64)
        listen(finished)
    assert capsys.readouterr().err.splitlines() == [event_text(finished)]


def test_quiet_says_nothing(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even of what ended."""
    with study_display(quiet=True, as_json=True) as (listen, progress):
        listen(finished)
        progress("scoring", 1, 2)
    assert capsys.readouterr().err == ""


def test_a_phase_that_says_nothing_is_named_in_a_pipe_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading a model calls nobody back: the line comes while it is under way, once, and short phases have none."""
    clock, printed = [0.0], [""]

    def so_far() -> str:
        printed[0] += capsys.readouterr().err
        return printed[0]

    monkeypatch.setattr(terminal, "monotonic", lambda: clock[0])
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(terminal, "LOOK_SECONDS", 0.01)
    with terminal.progress_display(quiet=False) as progress:
        progress("short", 0, 1)
        progress("loading org/name", 0, 1)
        clock[0] = 3.0
        wait_until(so_far, "a line")
        sleep(0.05)
        assert so_far() == "loading org/name\n"
        progress("loading org/name", 1, 1)
        progress("short again", 0, 1)
    with terminal.progress_display(quiet=True) as progress:
        progress("loading org/name", 0, 1)
        clock[0] = 6.0
        sleep(0.05)
    assert so_far() == "loading org/name\n"
