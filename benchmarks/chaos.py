"""Kill workers without warning, again and again, and count what was lost.

Several workers tune the bundled model on a real PostgreSQL, each started as a person would start it. Workers are
killed with SIGKILL: some at random moments from outside, some by themselves at the very start of a phase (claiming,
calibrating, quantizing, scoring, keeping, telling, ending). Each is replaced at once. When all kills were done the
study is left to complete, and everything that ever was in the storage is compared with what is there at the end.

    python benchmarks/chaos.py --kills 20 --json chaos.json

With `--streamed` one worker at a time brings the model's blocks from its files, on a SQLite file, and is killed at
random moments of everything that it does, start and report included. The same study is then made once more without a
kill: trials, statistics in the cache and files of the recommended model are compared byte by byte.

    python benchmarks/chaos.py --streamed --kills 20 --trials 12
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.servers import postgresql  # noqa: E402

FLAGS = ["--group-size", "64,128", "--n-calib", "16,32", "--n-grid", "5..10", "--eval-samples", "16"]
FLAGS += ["--dtype", "float32", "--study", "chaos", "--sampler", "tpe"]
PHASES = ("claiming", "quantizing", "scoring", "keeping", "telling", "ending")
FIRST = "calibrating"
ENDED = ("COMPLETE", "PRUNED", "FAIL")
PATIENCE = 900.0
TIGHT = ["--device-memory", "0.011", "--max-memory", "0.05"]
ONE_PASS = 45.0
"""Seconds between a streamed worker's start and its end, at most: a few trials."""
MOST_TAKEOVERS = 2
"""How often a trial is begun again; what kills its worker once more is taken for its own fault."""


def die_at(phase: str) -> None:
    """Make this process kill itself when it enters `phase`."""
    import objectives.calibration.calibration
    import objectives.trial
    from hpo.workers import ledger, queue, worker

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any, **named: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        return killed

    place: Any
    place, name = {
        "claiming": (queue.Queue, "_begun"),
        "calibrating": (objectives.calibration.calibration, "record"),
        "quantizing": (objectives.trial, "quantize_model"),
        "scoring": (ledger.Ledger, "is_worth"),
        "keeping": (worker, "save_result"),
        "telling": (ledger.Ledger, "tell"),
        "ending": (ledger.Ledger, "_describe"),
    }[phase]
    setattr(place, name, deadly(getattr(place, name)))


@dataclass
class Chaos:
    """Workers of one study, and who kills them."""

    url: str
    home: Path
    workers: int
    trials: int
    kills: int
    random: random.Random
    streamed: bool = False
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    seen: dict[int, tuple[str, float | None]] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        for _ in range(self.workers):
            self._start()
        next_random = time.monotonic() + (self._pause() if self.streamed else 0)
        while self.processes:
            if time.monotonic() - started > PATIENCE * (4 if self.streamed else 1):
                raise SystemExit("the study did not end")
            self._watch()
            if self._left() > 0 and time.monotonic() > next_random:
                self._kill_one()
                next_random = time.monotonic() + self._pause()
            for process in [process for process in self.processes if process.poll() is not None]:
                self._ended(process)
            time.sleep(0.1)
        self._watch()
        return self._verdict(time.monotonic() - started)

    def _left(self) -> int:
        return self.kills - self.killed.total()

    def _pause(self) -> float:
        return self.random.uniform(0, ONE_PASS) if self.streamed else self.random.uniform(0.1, 2)

    def _start(self) -> None:
        # About every second victim dies by itself, each time at the start of another phase; calibration is only once.
        armed = sum(getattr(process, "phase", None) is not None for process in self.processes)
        index = sum(self.killed[phase] for phase in PHASES) + armed
        dies = FIRST if not self.processes and not self.killed else PHASES[index % len(PHASES)]
        phase = (
            dies if dies == FIRST or (self._left() > armed and self.kills > 4 and self.random.random() < 0.5) else None
        )
        phase = None if self.streamed else phase
        command = [sys.executable, str(Path(__file__).resolve()), "worker", phase or "-", *self.command()]
        log = (self.home / "workers.log").open("ab")
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.home, env=environ)
        process.phase = phase  # type: ignore[attr-defined]
        self.processes.append(process)

    def command(self) -> list[str]:
        command = ["optimize", *FLAGS, *(TIGHT if self.streamed else []), "--trials", str(self.trials)]
        command += ["--storage", f"@{self.home / 'url'}"]
        return [*command, "--cache", str(self.home / "cache"), "--out", str(self.home / "report")]

    def _kill_one(self) -> None:
        """One that is at a trial, or now and then one that loads, calibrates, measures references or confirms."""
        running = [trial for trial in self._frozen() if trial.state.name == "RUNNING"]
        if self.streamed and self._may_not_die():
            return
        busy = {trial.user_attrs.get("owner", {}).get("pid") for trial in running}
        free = [process for process in self.processes if process.phase is None]  # type: ignore[attr-defined]
        victims = [process for process in free if process.pid in busy]
        if self.streamed or (not victims and self.random.random() < 0.05):
            victims = free
        if victims:
            victim = self.random.choice(victims)
            victim.kill()
            victim.wait()
            victim.phase = "random"  # type: ignore[attr-defined]

    def _may_not_die(self) -> bool:
        """Whether one more kill would be the fault of a trial."""
        from hpo.study.record import read_study

        if not self._frozen():
            return False
        running = [trial for trial in read_study(self._study).trials if trial.state not in ENDED]
        return any(trial.takeovers >= MOST_TAKEOVERS for trial in running)

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        self.processes.remove(process)
        if process.returncode == 0:
            return
        if process.returncode != -signal.SIGKILL:
            lines = (self.home / "workers.log").read_text().splitlines()[-15:]
            raise SystemExit("\n".join(["a worker failed:", *lines]))
        self.killed[process.phase] += 1  # type: ignore[attr-defined]
        self._start()

    def _watch(self) -> None:
        """Whatever has ended must stay as it is."""
        for number, state, value in self._trials():
            if number in self.seen and self.seen[number] != (state, value):
                self.lost.append(number)
            if state in ENDED:
                self.seen[number] = (state, value)

    def _trials(self) -> list[tuple[int, str, float | None]]:
        return [
            (trial.number, trial.state.name, trial.value if trial.state.name == "COMPLETE" else None)
            for trial in self._frozen()
        ]

    def _frozen(self) -> list[Any]:
        import optuna

        if "chaos" not in optuna.get_all_study_names(self._storage):
            return []
        return list(self._study.get_trials(deepcopy=False))

    @cached_property
    def _storage(self) -> Any:
        import optuna

        from storage.studies.opening import open_storage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return open_storage(self.url)

    @cached_property
    def _study(self) -> Any:
        import optuna

        return optuna.load_study(storage=self._storage, study_name="chaos")

    def _verdict(self, seconds: float) -> dict[str, Any]:
        from hpo.study.record import read_study

        record = read_study(self._study)
        states = Counter(trial.state for trial in record.trials)
        settings = Counter(trial.setting.canonical() for trial in record.counted if trial.setting)
        ended = sum(trial.state in ENDED for trial in record.counted)
        numbers = {trial.number for trial in record.trials}
        return {
            "kills": self.killed.total(),
            "killed_at": dict(self.killed),
            "workers": self.workers,
            "finished_trials_lost": len(set(self.lost)) + len(set(self.seen) - numbers),
            "settings_run_twice": sum(count - 1 for count in settings.values()),
            "budget": self.trials,
            "budget_missed_by": ended - self.trials,
            "left_running": states["RUNNING"],
            "left_waiting": states["WAITING"],
            "failed": states["FAIL"],
            "failed_because": sorted({str(trial.outcome) for trial in record.trials if trial.state == "FAIL"}),
            "takeovers": sum(trial.takeovers for trial in record.trials),
            "seconds": round(seconds, 1),
        }


def differences(killed: Chaos, home: Path) -> dict[str, Any]:
    """Make the study once more without a kill, and write what both recommend; counts what is not the same."""
    (home / "url").write_text(f"sqlite:///{home / 'study.db'}")
    calm = Chaos((home / "url").read_text(), home, 1, killed.trials, 0, killed.random, streamed=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    cli = [sys.executable, str(ROOT / "cli.py")]
    subprocess.run([*cli, *calm.command(), "--quiet"], check=True, env=environ, stdout=subprocess.DEVNULL)
    for study in (killed, calm):
        command = [*cli, "quantize", "--study", "chaos", "--storage", f"@{study.home / 'url'}", *TIGHT, "--quiet"]
        command += ["--cache", str(study.home / "cache"), "--out", str(study.home / "model")]
        subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    outcomes = [
        {trial.number: (trial.state.name, trial.params, trial.value) for trial in study._frozen()}
        for study in (killed, calm)
    ]
    numbers = {*outcomes[0], *outcomes[1]}
    result: dict[str, Any] = {
        "trials_compared": len(numbers),
        "trials_that_differ": sum(outcomes[0].get(number) != outcomes[1].get(number) for number in numbers),
    }
    for place in ("cache/calibration", "model"):
        files = [_files(study.home / place) for study in (killed, calm)]
        names = {*files[0], *files[1]}
        label = place.rpartition("/")[2]
        result[f"files_of_{label}_compared"] = len(names)
        result[f"files_of_{label}_that_differ"] = sorted(n for n in names if files[0].get(n) != files[1].get(n))
    return result


def _files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        import cli

        if sys.argv[2] != "-":
            die_at(sys.argv[2])
        sys.exit(cli.main(sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--streamed", action="store_true", help="one worker at a time, and little memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="praqtune-chaos-") as name:
        home = Path(name) / "killed"
        home.mkdir()
        storage = nullcontext(f"sqlite:///{home / 'study.db'}") if options.streamed else postgresql(Path(name) / "pg")
        with storage as url:
            (home / "url").write_text(url)
            workers = 1 if options.streamed else options.workers
            whose = random.Random(options.seed)
            chaos = Chaos(url, home, workers, options.trials, options.kills, whose, options.streamed)
            verdict = chaos.run()
        if options.streamed:
            (Path(name) / "calm").mkdir()
            verdict |= differences(chaos, Path(name) / "calm")
    for key, value in verdict.items():
        print(f"{key.replace('_', ' ')}: {value}")
    if options.json:
        options.json.write_text(json.dumps(verdict, indent=1) + "\n")
    wrong: tuple[str, ...] = (
        "finished_trials_lost",
        "settings_run_twice",
        "budget_missed_by",
        "left_running",
        "left_waiting",
    )
    wrong += ("failed", *(key for key in verdict if key.endswith("differ"))) if options.streamed else ()
    sys.exit(any(verdict[key] for key in wrong))


if __name__ == "__main__":
    main()
