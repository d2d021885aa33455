"""Kill workers without warning, again and again, and count what was lost.

Several workers tune the bundled model on a real PostgreSQL, each started as a person would start it. Workers are
killed with SIGKILL: some at random moments from outside, some by themselves at the very start of a phase (claiming,
calibrating, quantizing, scoring, keeping, telling, ending). Each is replaced at once. When all kills were done the
study is left to complete, and everything that ever was in the storage is compared with what is there at the end.

    python benchmarks/chaos.py --kills 20 --json chaos.json
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
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    seen: dict[int, tuple[str, float | None]] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        for _ in range(self.workers):
            self._start()
        next_random = time.monotonic()
        while self.processes:
            if time.monotonic() - started > PATIENCE:
                raise SystemExit("the study did not end")
            self._watch()
            if self._left() > 0 and time.monotonic() > next_random:
                self._kill_one()
                next_random = time.monotonic() + self.random.uniform(0.1, 2)
            for process in [process for process in self.processes if process.poll() is not None]:
                self._ended(process)
            time.sleep(0.1)
        self._watch()
        return self._verdict(time.monotonic() - started)

    def _left(self) -> int:
        return self.kills - self.killed.total()

    def _start(self) -> None:
        # About every second victim dies by itself, each time at the start of another phase; calibration is only once.
        armed = sum(getattr(process, "phase", None) is not None for process in self.processes)
        index = sum(self.killed[phase] for phase in PHASES) + armed
        dies = FIRST if not self.processes and not self.killed else PHASES[index % len(PHASES)]
        phase = (
            dies if dies == FIRST or (self._left() > armed and self.kills > 4 and self.random.random() < 0.5) else None
        )
        command = [sys.executable, str(Path(__file__).resolve()), "worker", phase or "-"]
        command += ["optimize", *FLAGS, "--trials", str(self.trials), "--storage", f"@{self.home / 'url'}"]
        command += ["--cache", str(self.home / "cache"), "--out", str(self.home / "report")]
        log = (self.home / "workers.log").open("ab")
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.home, env=environ)
        process.phase = phase  # type: ignore[attr-defined]
        self.processes.append(process)

    def _kill_one(self) -> None:
        """One that is at a trial, or now and then one that loads, calibrates, measures references or confirms."""
        running = [trial for trial in self._frozen() if trial.state.name == "RUNNING"]
        busy = {trial.user_attrs.get("owner", {}).get("pid") for trial in running}
        free = [process for process in self.processes if process.phase is None]  # type: ignore[attr-defined]
        victims = [process for process in free if process.pid in busy]
        if not victims and self.random.random() < 0.05:
            victims = free
        if victims:
            victim = self.random.choice(victims)
            victim.kill()
            victim.wait()
            victim.phase = "random"  # type: ignore[attr-defined]

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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="praqtune-chaos-") as name, postgresql(Path(name) / "pg") as url:
        home = Path(name)
        (home / "url").write_text(url)
        chaos = Chaos(url, home, options.workers, options.trials, options.kills, random.Random(options.seed))
        verdict = chaos.run()
    for key, value in verdict.items():
        print(f"{key.replace('_', ' ')}: {value}")
    if options.json:
        options.json.write_text(json.dumps(verdict, indent=1) + "\n")
    wrong = ("finished_trials_lost", "settings_run_twice", "budget_missed_by", "left_running", "left_waiting")
    sys.exit(any(verdict[key] for key in wrong))


if __name__ == "__main__":
    main()
