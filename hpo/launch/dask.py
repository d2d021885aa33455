"""Workers as tasks of an existing Dask cluster, through joblib.

Responsible for handing the tasks over and for waiting. May assume that every machine of the cluster reaches the storage
and the shared directory under the same names; Dask itself starts the tasks of a machine that died again elsewhere.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import joblib

from hpo.launch.devices import AUTO
from hpo.launch.launcher import Death, Job, Report, Task, WorkerRequest


class Dask:
    """The launcher `dask`."""

    def __init__(self, request: WorkerRequest, task: Task) -> None:
        self._request, self._task = request, task
        # The context of joblib belongs to a thread, and the one that calls watches.
        self._thread = ThreadPoolExecutor(1)
        self._started: list[Job] = []
        self._reports: Future[list[Report]] | None = None

    @staticmethod
    def refusal(request: WorkerRequest) -> str | None:
        """Refuse what lacks an address or a number: a cluster does not say how many workers are right."""
        if not request.scheduler:
            return "--backend dask needs the --scheduler of a running cluster, tcp://HOST:8786 for example"
        if not request.workers:
            return "--backend dask needs --workers N: how many tasks the cluster shall run"
        return None

    def jobs(self) -> Sequence[Job]:
        """List one per task, named dask-0, dask-1, ..."""
        return [Job(name=f"dask-{index}", device=AUTO) for index in range(self._request.workers or 1)]

    def start(self, job: Job) -> None:
        """Note a task; all go to the cluster together, at the first look."""
        self._started.append(job)

    def poll(self) -> Mapping[str, Report | Death]:
        """Return all reports at once, when the last task has ended."""
        if self._reports is None:
            self._reports = self._thread.submit(self._run)
        if not self._reports.done():
            return {}
        return {job.name: report for job, report in zip(self._started, self._reports.result(), strict=True)}

    def stop(self) -> None:
        """Wait: tasks of a cluster end when the study does."""
        self._thread.shutdown()

    def _run(self) -> list[Report]:
        with joblib.parallel_config("dask", scheduler_host=self._request.scheduler):
            reports: list[Report] = joblib.Parallel(n_jobs=len(self._started), batch_size=1, pre_dispatch="all")(
                joblib.delayed(self._task)(job) for job in self._started
            )
            return reports
