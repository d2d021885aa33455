"""`dashboard` as a user has it: a process that serves until it is told to stop."""

import json
from pathlib import Path

import pytest

import cli
from tests.dashboards import dashboard
from tests.processes import finish, run_worker


@pytest.mark.slow
def test_the_dashboard_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """Page, list of studies, notes and files; SIGTERM ends it with exit code 0 and without a traceback."""
    with dashboard(tmp_path, 8, run_worker) as served:
        assert b"<html" in served.read("dashboard")
        (study,) = json.loads(served.read("api/studies"))["study_summaries"]
        assert study["study_name"] == "study"
        served.wait_for(lambda found: len(found["artifacts"]) == 2, "the study's files")
        (report,) = [artifact for artifact in served.detail()["artifacts"] if artifact["filename"] == "report.html"]
        assert served.read(f"artifacts/1/{report['artifact_id']}").startswith(b"<!DOCTYPE html>")
        served.process.terminate()
        assert finish(served.process) == [0]
        assert served.output.with_suffix(".err").read_text().splitlines() == [f"dashboard: {served.address}"]


def test_a_port_that_cannot_be_had_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2."""
    url = f"sqlite:///{tmp_path}/studies.db"
    assert cli.main(["dashboard", "--storage", url, "--cache", str(tmp_path), "--port", "70000"]) == 2
    assert "cannot listen on 127.0.0.1:70000" in capsys.readouterr().err
