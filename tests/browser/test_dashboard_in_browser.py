"""The dashboard as people see it: the study in the list, its best value, note, graphs and files."""

import re
from collections.abc import Iterator
from time import monotonic

import optuna
import pytest
from optuna.trial import Trial
from playwright.sync_api import Browser, Page, expect

from hpo.dashboard.graphs import GRAPHS
from hpo.dashboard.pictures import PICTURE, TABLE
from hpo.study.attributes import RESULT
from storage.studies.opening import open_storage
from tests.browser.conftest import watched
from tests.dashboards import Served, dashboard
from tests.processes import run_cli

TRIALS = 24
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A dashboard whose refresher has been through everything once; not started where there is no browser."""
    with dashboard(tmp_path_factory.mktemp("home"), TRIALS, run_cli) as served:
        served.wait_for(lambda found: len(found["artifacts"]) == 2, "the study's files")
        ended = {"Complete", "Pruned", "Fail"}
        served.wait_for(
            lambda found: all(trial["note"]["body"] for trial in found["trials"] if trial["state"] in ended),
            "the notes of all trials",
        )
        yield served


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    page = watched(browser.new_page(viewport={"width": 1400, "height": 1000}), complaints)
    yield page
    page.close()


def test_the_study_is_listed_and_opens(page: Page, served: Served, complaints: list[str]) -> None:
    """From the list to its best value; nothing complains."""
    page.goto(f"{served.address}dashboard")
    page.get_by_text("1. study").first.click()
    expect(page).to_have_url(re.compile(r"/dashboard/studies/1"))
    best = min(trial["values"][0] for trial in served.detail()["trials"] if trial["state"] == "Complete")
    expect(page.get_by_text(f"{best:.10f}"[:10]).first).to_be_visible()
    assert complaints == []


def test_the_projects_own_graphs_are_drawn(page: Page, served: Served, complaints: list[str]) -> None:
    """Each once, with its title, beside the dashboard's own."""
    page.goto(f"{served.address}dashboard/studies/1")
    for key, (_, title) in GRAPHS.items():
        graph = page.locator(f"[id='user-defined-plot:{key}']")
        expect(graph).to_have_count(1)
        expect(graph.locator(".main-svg").first).to_be_visible()
        expect(graph.locator(".gtitle")).to_contain_text(title.split(":")[0])
    assert complaints == []


def test_files_are_shown(page: Page, served: Served, complaints: list[str]) -> None:
    """The report and the trials beside the study; the picture of a trial as a picture, its layers as a table."""
    page.goto(f"{served.address}dashboard/studies/1")
    for name in ("report.html", "trials.csv"):
        expect(page.get_by_text(name).first).to_be_visible()
    complete = next(trial["number"] for trial in served.detail()["trials"] if trial["state"] == "Complete")
    page.goto(f"{served.address}dashboard/studies/1/trials?numbers={complete}")
    picture = page.locator(f"img[alt='{PICTURE}']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300
    expect(page.get_by_text(TABLE).first).to_be_visible()
    assert complaints == []


def test_notes_are_shown(page: Page, served: Served, complaints: list[str]) -> None:
    """Of the study with its command, and of a trial with the layers that hurt; neither is wider than the screen."""
    page.goto(f"{served.address}dashboard/studies/1/note")
    for heading in ("Best so far", "References", "What is tuned", "What the numbers mean", "Attach a worker"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.get_by_text("optimize --model tiny/llama")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    complete = next(trial["number"] for trial in served.detail()["trials"] if trial["state"] == "Complete")
    page.goto(f"{served.address}dashboard/studies/1/trials?numbers={complete}")
    expect(page.get_by_text("Where it hurts most").first).to_be_visible()
    assert complaints == []


def test_the_report_opens_from_the_note(page: Page, served: Served, complaints: list[str]) -> None:
    """By its link, with every figure drawn."""
    page.goto(f"{served.address}dashboard/studies/1/note")
    address = page.get_by_role("link", name="report.html").first.get_attribute("href")
    page.goto(f"{served.address}{str(address).lstrip('/')}")
    expect(page.locator("h1")).to_contain_text("Group size")
    page.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg')) && "
        "document.querySelectorAll('.plot').length > 10"
    )
    assert complaints == []


def test_an_open_page_moves_with_its_study(page: Page, served: Served, complaints: list[str]) -> None:
    """A trial that a worker ends appears as the best one, in the note and among the graphs, without a reload."""
    page.goto(f"{served.address}dashboard/studies/1")
    expect(page.get_by_text("Best Trial").first).to_be_visible()
    study = optuna.load_study(storage=open_storage(served.url), study_name="study")
    [running] = [trial for trial in study.get_trials() if trial.state.name == "RUNNING"]
    best = study.best_trial
    trial = Trial(study, running._trial_id)
    trial.set_user_attr(RESULT, best.user_attrs[RESULT])
    study.tell(trial, 1.0)
    expect(page.get_by_text(f"Best Trial (number={running.number})")).to_be_visible(timeout=60_000)
    served.wait_for(lambda found: f"trial {running.number}" in found["note"]["body"], "a note of the new best")
    page.get_by_text("Best Trial").first.wait_for()
    assert complaints == []


def test_a_page_opens_quickly(page: Page, served: Served) -> None:
    """Within the seconds that a person waits."""
    started = monotonic()
    page.goto(f"{served.address}dashboard/studies/1")
    expect(page.get_by_text("Best Trial").first).to_be_visible(timeout=30_000)
    assert monotonic() - started < 15
