"""Workers as processes of this machine, each pinned to its device.

Responsible for starting, pinning and ending them. Each is a loky process of its own, so one that dies takes no other
with it.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from hpo.launch.devices import allowed_gpus, assigned, gpus, name_inside, usable_cores, worker_environment
from hpo.launch.launcher import Death, Job, Report, Task, WorkerRequest

STOP_SECONDS = 30.0


class _Process:
    """One loky process at work."""

    def __init__(self, task: Task, job: Job, environ: dict[str, str]) -> None:
        self._pool = ProcessPoolExecutor(max_workers=1, timeout=None, env=environ)
        self.pid: int = self._pool.submit(os.getpid).result()
        self._future: Future[Report] = self._pool.submit(task, job)

    def ending(self) -> Report | Death | None:
        """Return how it ended; None while it runs."""
        if not self._future.done():
            return None
        try:
            return self._future.result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            return Death(name=f"process {self.pid}")

    def stop(self) -> None:
        """Ask it to hand its trial back."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait for it a while, then let it go."""
        # How it ended matters to nobody any more.
        wait([self._future], timeout=STOP_SECONDS)
        self._pool.shutdown(wait=False, kill_workers=True)


class Processes:
    """The launcher `loky`."""

    def __init__(self, request: WorkerRequest, task: Task) -> None:
        self._task = task
        self._devices = assigned(request.workers, request.devices, gpus())
        self._visible, self._cores = allowed_gpus(os.environ), usable_cores()
        self._running: dict[str, _Process] = {}

    @staticmethod
    def refusal(request: WorkerRequest) -> str | None:
        """Refuse nothing before the devices are counted."""
        return None

    def jobs(self) -> Sequence[Job]:
        """List one per worker, named w0, w1, ..., on the devices in turn."""
        return [Job(name=f"w{index}", device=device) for index, device in enumerate(self._devices)]

    def start(self, job: Job) -> None:
        """Start a worker in a process that sees nothing but its device."""
        environ = worker_environment(job.device, self._devices, self._visible, self._cores)
        self._running[job.name] = _Process(self._task, Job(name=job.name, device=name_inside(job.device)), environ)

    def poll(self) -> Mapping[str, Report | Death]:
        """Return how processes ended since the last call."""
        endings = {name: ending for name, process in self._running.items() if (ending := process.ending())}
        for name, ending in endings.items():
            process = self._running.pop(name)
            if isinstance(ending, Report):
                process.end()
        return endings

    def stop(self) -> None:
        """Terminate those that run; they are asked all at once, and waited for one after the other."""
        for process in self._running.values():
            process.stop()
        for process in self._running.values():
            process.end()
