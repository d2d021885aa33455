"""A running dashboard for tests, as a process of its own."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from storage.paths import Paths
from storage.results import ResultStore
from storage.studies.opening import open_storage
from tests.hpo.made_studies import mixed_study
from tests.processes import PATIENCE, start, wait_until


@dataclass(frozen=True, kw_only=True)
class Served:
    """A dashboard of one made-up study, whose id is 1; `url` is its storage's."""

    process: BaseProcess
    address: str
    url: str
    output: Path

    def read(self, path: str) -> bytes:
        """What it answers to a GET."""
        with urllib.request.urlopen(f"{self.address}{path}", timeout=60) as answer:
            return bytes(answer.read())

    def detail(self) -> dict[str, Any]:
        """Everything it knows of the study."""
        found: dict[str, Any] = json.loads(self.read("api/studies/1"))
        return found

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Until it knows something of the study; asked now and then, because it has other work."""
        deadline = monotonic() + PATIENCE
        while not condition(self.detail()):
            if monotonic() > deadline:
                raise AssertionError(f"{what} did not appear")
            sleep(0.5)


@contextmanager
def dashboard(home: Path, trials: int, command: Callable[..., None]) -> Iterator[Served]:
    """Serve a study of so many trials until the block ends, on a free port, by a function that runs command lines."""
    url = f"sqlite:///{home}/studies.db"
    mixed_study(ResultStore(Paths(home).results), trials).stored(open_storage(url))
    output = home / "dashboard"
    arguments = ["dashboard", "--storage", url, "--cache", str(home), "--port", "0"]
    process = start(command, arguments, output)
    errors = output.with_suffix(".err")
    wait_until(lambda: errors.is_file() and "dashboard: http" in errors.read_text(), "the dashboard's address")
    try:
        yield Served(process=process, address=errors.read_text().split()[1], url=url, output=output)
    finally:
        process.kill()
