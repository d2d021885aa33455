"""Real processes for tests: forked from a server that has imported the project once, so each starts in milliseconds.

Targets must be importable functions, so they live in modules beside the tests and not in test functions.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

PATIENCE = 120.0
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "storage.cache",
        "cli",
        "objectives.calibration.calibration",
        "objectives.model.loading",
        "objectives.text.sequences",
        "transformers.models.llama.modeling_llama",
        "hpo.optimize",
        "hpo.report.write",
        "tests.preloaded",
        "tests.storage.workers",
    ]
)


def start(target: Callable[..., Any], *arguments: Any, **named: Any) -> BaseProcess:
    """Run an importable function in a process of its own, which dies with this one."""
    process = CONTEXT.Process(target=target, args=arguments, kwargs=named, daemon=True)
    process.start()
    return process


class ForkedPool(ProcessPoolExecutor):
    """What loky's pool is to a launcher, with processes that are forked as those of `start` are."""

    def __init__(self, max_workers: int, timeout: None, env: Mapping[str, str]) -> None:
        super().__init__(max_workers, mp_context=CONTEXT, initializer=_add_to_environment, initargs=(dict(env),))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:
        """By then the launcher has waited for its workers."""
        super().shutdown(wait=wait, cancel_futures=cancel_futures)


def _add_to_environment(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def finish(*processes: BaseProcess) -> list[int | None]:
    """The exit codes of processes that must end by themselves."""
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"{process.name} did not end within {PATIENCE:.0f} s")
    return [process.exitcode for process in processes]


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Poll until `condition` holds."""
    deadline = monotonic() + PATIENCE
    while not condition():
        if monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {PATIENCE:.0f} s")
        sleep(0.005)


def run_script(path: Path, home: Path, arguments: Sequence[str], output: Path) -> None:
    """Run a Python file as `python FILE ARGUMENTS` does, with its home and its output as `run_cli` has them."""
    redirect(output)
    os.environ["PRAQTUNE_HOME"] = str(home)
    os.environ.pop("PRAQTUNE_STORAGE", None)
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def redirect(output: Path) -> None:
    """Have this process print to `output`.out and `output`.err."""
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)


def run_cli(arguments: Sequence[str], output: Path) -> None:
    """Run the command line as a program would: its output goes to `output`.out and `output`.err."""
    redirect(output)
    import transformers

    import cli

    # Whoever runs the tests in the background may have them ignore SIGINT, and what they start inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The command line asks for this by a variable that is read when transformers is imported, which is long ago here.
    transformers.utils.logging.disable_progress_bar()
    sys.exit(cli.main(arguments))


def run_worker(arguments: Sequence[str], output: Path) -> None:
    """As `run_cli`, but its report has no pictures: they take longer to draw than a small study to make."""
    import hpo.report.write

    hpo.report.write._pictures = lambda said, data: {f"{caption.key}.png": None for caption in said}
    run_cli(arguments, output)


def run_impatient(arguments: Sequence[str], output: Path) -> None:
    """As `run_worker`, but a worker is dead after three seconds without a heartbeat."""
    import hpo.workers.heartbeat
    import hpo.workers.queue

    hpo.workers.heartbeat.BEAT_SECONDS, hpo.workers.queue.GRACE_SECONDS = 0.5, 3.0
    run_worker(arguments, output)
