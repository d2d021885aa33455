"""Run a study with workers that a launcher of one's own starts: processes of Python's own pools, one for each worker.

`python examples/own_launcher.py` takes half a minute. In the product a launcher is a file of `hpo/launch/` and its line
in `LAUNCHERS`; `hpo/launch/launcher.py` says what each of its methods has to do.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context

from tune_and_deploy import PLAN, tell

from hpo.launch.launch import LAUNCHERS, Fleet
from hpo.launch.launcher import Death, Job
from hpo.together import optimize_together
from hpo.workers.worker import Budget
from storage.paths import Paths
from storage.studies.opening import chosen_url


class Pools:
    def __init__(self, request, task):
        self.request, self.task, self.running = request, task, {}

    @staticmethod
    def refusal(request):
        return None if request.workers else "--backend pools needs --workers N"

    def jobs(self):
        return [Job(name=f"pool-{index}", device="cpu") for index in range(self.request.workers)]

    def start(self, job):
        self.running[job.name] = ProcessPoolExecutor(1, get_context("spawn")).submit(self.task, job)

    def poll(self):
        done = {name: self.running.pop(name) for name, future in list(self.running.items()) if future.done()}
        return {
            name: Death(name="a process") if future.exception() else future.result() for name, future in done.items()
        }

    def stop(self):
        for process in active_children():
            process.terminate()


if __name__ == "__main__":
    LAUNCHERS["pools"] = Pools
    paths, fleet = Paths.default(), Fleet(backend="pools", workers=2)
    print(*optimize_together(PLAN, chosen_url(None, paths), paths, fleet, Budget(trials=8), tell), sep="\n")
