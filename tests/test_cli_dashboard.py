"""`dashboard` as a user has it: a process that serves until it is told to stop."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import cli
from storage.paths import Paths
from storage.results import ResultStore
from storage.studies import open_storage
from tests.hpo.studies import mixed_study
from tests.processes import finish, run_cli, start, wait_until


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running dashboard."""

    process: BaseProcess
    address: str
    output: Path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Of one study, on a free port."""
    url = f"sqlite:///{tmp_path}/studies.db"
    mixed_study(ResultStore(Paths(tmp_path).results), 12).stored(open_storage(url))
    output = tmp_path / "dashboard"
    arguments = ["dashboard", "--storage", url, "--cache", str(tmp_path), "--port", "0"]
    process = start(run_cli, arguments, output)
    errors = output.with_suffix(".err")
    wait_until(lambda: errors.is_file() and "dashboard: http" in errors.read_text(), "the dashboard's address")
    yield Served(process=process, address=errors.read_text().split()[1], output=output)
    process.kill()


def read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return bytes(answer.read())


def test_the_dashboard_serves_until_it_is_told_to_stop(served: Served) -> None:
    """Page, list of studies, notes and files; SIGTERM ends it with exit code 0 and without a traceback."""
    assert b"<html" in read(f"{served.address}dashboard")
    (study,) = json.loads(read(f"{served.address}api/studies"))["study_summaries"]
    assert study["study_name"] == "study"

    def detail() -> dict[str, list[dict[str, str]]]:
        found: dict[str, list[dict[str, str]]] = json.loads(read(f"{served.address}api/studies/{study['study_id']}"))
        return found

    wait_until(lambda: len(detail()["artifacts"]) == 2, "the study's files")
    (report,) = [one for one in detail()["artifacts"] if one["filename"] == "report.html"]
    page = read(f"{served.address}artifacts/{study['study_id']}/{report['artifact_id']}")
    assert page.startswith(b"<!DOCTYPE html>")
    served.process.terminate()
    assert finish(served.process) == [0]
    assert served.output.with_suffix(".err").read_text().splitlines() == [f"dashboard: {served.address}"]


def test_a_port_that_cannot_be_had_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2."""
    url = f"sqlite:///{tmp_path}/studies.db"
    assert cli.main(["dashboard", "--storage", url, "--cache", str(tmp_path), "--port", "70000"]) == 2
    assert "cannot listen on 127.0.0.1:70000" in capsys.readouterr().err
