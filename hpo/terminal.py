"""What a study says while it runs: to a person at a terminal, into a log, or to a program.

Responsible for lines, for a live board with a lane per worker, and for JSON line by line; all of it on standard error,
so that standard output has the result alone. May assume that events come from one thread at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import inf
from threading import Event as ThreadEvent
from threading import Lock, Thread
from time import monotonic
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Lanes
from rich.text import Text

from hpo.standard_error import say
from hpo.study.event_lines import ProgressLine, event_line
from hpo.study.events import Event, Finished, Listener, Looked, Working
from hpo.study.owner import Owner
from hpo.study.record import TrialRecord
from hpo.study.status import phase
from objectives.progress import Progress, silent
from storage.strict_json import json_line
from storage.typed_json import encode

SILENT_SECONDS = 2.0
SECONDS_BETWEEN_LINES = 15.0
LOOK_SECONDS = 0.25
THIS_PROCESS, NOBODY = "this process", ""
WAITING = "workers prepare, or confirm"


@contextmanager
def progress_display(quiet: bool) -> Iterator[Progress]:
    """Show on standard error whatever takes longer than two seconds: a bar on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if quiet:
        yield silent
        return
    if not console.is_terminal:
        with _phase_lines() as report:
            yield report
        return
    display = _lanes(console)
    task = display.add_task("starting", total=None)

    def show(phase: str, done: int, total: int) -> None:
        display.update(task, description=phase, completed=done, total=total)
        if not display.live.is_started:
            display.start()

    try:
        with _looked_at(show, SILENT_SECONDS, 0.0) as report:
            yield report
    finally:
        display.stop()


@contextmanager
def _phase_lines() -> Iterator[Progress]:
    """Write a line for each phase beyond two seconds, and another now and then while it lasts."""

    def write(phase: str, done: int, total: int) -> None:
        say(f"{phase} ({done}/{total})" if total > 1 else phase)

    with _looked_at(write, SILENT_SECONDS, SECONDS_BETWEEN_LINES) as report:
        yield report


@contextmanager
def _looked_at(show: Progress, silent_seconds: float, between: float) -> Iterator[Progress]:
    """Show the phase that is under way, from a thread of its own: much of what takes long says nothing meanwhile.

    Args:
        show: Told of a phase that has taken longer than `silent_seconds`, and again every `between` seconds.
        silent_seconds: What passes without a word.
        between: From one word on a phase to the next.
    """
    lock, ended = Lock(), ThreadEvent()
    state: dict[str, Any] = {"phase": None, "since": 0.0, "said": -inf, "done": 0, "total": 0}

    def report(phase: str, done: int, total: int) -> None:
        with lock:
            if phase != state["phase"]:
                state.update(phase=phase, since=monotonic(), said=-inf)
            state.update(done=done, total=total)

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            with lock:
                now, finished = monotonic(), state["total"] and state["done"] >= state["total"]
                due = now - state["since"] > silent_seconds and now - state["said"] >= between
                if state["phase"] is None or finished or not due:
                    continue
                state["said"] = now
                reached = (state["phase"], state["done"], state["total"])
            show(*reached)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        ended.set()
        thread.join()


@contextmanager
def study_display(quiet: bool, as_json: bool) -> Iterator[tuple[Listener, Progress]]:
    """Choose who listens to a study, and who is told how far it is.

    Args:
        quiet: Say nothing.
        as_json: A program listens: one JSON object per line.
    """
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield _ignore, silent
    elif as_json:
        yield _json_lines()
    elif console.is_terminal:
        board = Board(console)
        with board.live:
            yield board.listen, board.progress
    else:
        with _phase_lines() as report:
            yield _log_lines(), report


class Board:
    """A lane per worker with its device, trial and phase; below them the best so far, what was saved, what is left."""

    def __init__(self, console: Console) -> None:
        self._lanes = _lanes(console)
        self._tasks: dict[str, TaskID] = {}
        self._footer = Text()
        self._trial = ""
        self.live = Live(Group(self._lanes, self._footer), console=console, transient=True, refresh_per_second=4)

    def listen(self, event: Event) -> None:
        """Move the lanes, or print what stays."""
        match event:
            case Looked():
                self._trial = f"{trial_text(event.trial)}: {event.trial.objective.number(event.value)}"
                self._move(THIS_PROCESS, self._trial, event.read, event.total)
            case Working():
                self._all(event.trials)
            case Finished():
                self._trial = ""
                self._footer.plain = progress_text(event)
                self.live.console.print(ended_text(event), soft_wrap=True, markup=False)
            case _:
                self.live.console.print(event.text, soft_wrap=True, markup=False)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show what this process is at."""
        self._move(THIS_PROCESS, f"{phase} ({self._trial})" if self._trial else phase, done, total)

    def _all(self, trials: tuple[TrialRecord, ...]) -> None:
        # Two machines may give their workers the same names.
        lanes = {_process(trial.owner): trial for trial in trials}
        for key in self._tasks.keys() - (lanes.keys() or {NOBODY}):
            self._lanes.remove_task(self._tasks.pop(key))
        for key, trial in lanes.items():
            beat = trial.beat
            self._move(key, worker_text(trial), beat.done if beat else 0, beat.total if beat else None)
        if not trials:
            self._move(NOBODY, WAITING, 0, None)

    def _move(self, name: str, text: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._lanes.add_task("", total=None)
        self._lanes.update(self._tasks[name], description=text, completed=done, total=total)


def _lanes(console: Console, disable: bool = False) -> Lanes:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Lanes(*columns, console=console, transient=True, disable=disable)


def _ignore(_: Event) -> None:
    return


def _log_lines() -> Listener:
    """Log a line per trial, and what the study is at now and then."""
    may_say = _now_and_then()

    def listen(event: Event) -> None:
        if not isinstance(event, Looked | Working) or may_say():
            say(event_text(event))

    return listen


def _json_lines() -> tuple[Listener, Progress]:
    """Write every event; how far a phase is only now and then, and who is at what only when it changed."""
    may_say = _now_and_then()
    last: dict[str, str] = {}

    def listen(event: Event) -> None:
        line = json_line(encode(event_line(event)))
        if not isinstance(event, Working) or line != last.get("working"):
            say(line)
        if isinstance(event, Working):
            last["working"] = line

    def progress(phase: str, done: int, total: int) -> None:
        if may_say():
            say(json_line(encode(ProgressLine(phase=phase, done=done, total=total))))

    return listen, progress


def _now_and_then() -> Callable[[], bool]:
    at = monotonic()

    def may_say() -> bool:
        nonlocal at
        passed = monotonic() - at > SECONDS_BETWEEN_LINES
        at = monotonic() if passed else at
        return passed

    return may_say


def event_text(event: Event) -> str:
    """Write one line for one event."""
    match event:
        case Looked():
            value = event.trial.objective.number(event.value)
            return f"{trial_text(event.trial)}: {value} after {event.read}/{event.total}"
        case Finished():
            return f"{ended_text(event)} | {progress_text(event)}"
        case Working():
            return " | ".join(worker_text(trial) for trial in event.trials) or WAITING
        case _:
            return event.text


def worker_text(trial: TrialRecord) -> str:
    """Write what one worker is at: `w1 node7 cuda trial 12 scoring 16/64`."""
    owner = trial.owner
    worker = f"{owner.name} {owner.host} {owner.device}" if owner else "?"
    return f"{worker} trial {trial.number} {phase(trial)}"


def _process(owner: Owner | None) -> str:
    return "?" if owner is None else f"{owner.host} {owner.machine} {owner.pid}"


def ended_text(event: Finished) -> str:
    """Write which trial ended, and how: `[12/40] trial 12 g64 ...: perplexity 28.1`."""
    twin = f", with the weights of {event.twin}" if event.twin else ""
    return f"[{event.done}/{event.budget}] {trial_text(event.trial)}: {_result_text(event.trial)}{twin}"


def progress_text(event: Finished) -> str:
    """Write the best so far, the tokens that pruning saved, and the time that is left."""
    best = event.best
    if best is None or best.value is None:
        best_text = "no trial is complete yet"
    else:
        best_text = f"best {best.objective.number(best.value)} (trial {best.number})"
    left = timedelta(seconds=round(event.seconds_left))
    return f"{best_text} | {event.saved:.0%} of tokens saved | about {left} left"


def trial_text(trial: TrialRecord) -> str:
    """Write a trial with its setting."""
    assert trial.setting is not None
    size = "" if trial.group_size is None else f"g{trial.group_size} "
    samples = f" n_calib={trial.setting.n_calib}" if "n_calib" in trial.setting.reads else ""
    return f"{trial.name} {size}{trial.label}{samples}"


def _result_text(trial: TrialRecord) -> str:
    if trial.value is not None:
        return trial.objective.text(trial.value)
    if trial.state == "PRUNED":
        guess = f", estimated {trial.objective.number(trial.estimate.value)}" if trial.estimate else ""
        return f"pruned after {max(trial.running, default=0)} sequences{guess}"
    return f"{trial.state.lower()}: {trial.outcome}"
