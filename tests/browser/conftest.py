"""A headless Chromium for the tests of pages, where there is one."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The second: containers have little shared memory. The last: what a page draws is looked at, so nothing may depend on
# the machine's own font smoothing.
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--font-render-hinting=none")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this process."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"browser tests are left out: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What pages of this test wrote to their consoles as errors or warnings."""
    return []


def watched(page: Page, complaints: list[str]) -> Page:
    """A page whose complaints are collected."""
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url} failed"))
    return page
