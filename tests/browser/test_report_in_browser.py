"""The report as people see it: on a phone, on a desk, in the dark, on paper, without scripts."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from hpo.report.figures import DRAWN as FIGURES_OF_A_REPORT
from tests.browser.conftest import watched

pytestmark = pytest.mark.slow
# The study of the report has settings alone; those of plans have three figures more.
FIGURES = len(FIGURES_OF_A_REPORT.keys() - {"stored", "contributed", "additivity", "volume"})
PLOTS = "document.querySelectorAll('.plot').length"
# What a figure consists of when plotly has drawn it: an SVG of some size with marks on it.
DRAWN = """[...document.querySelectorAll('.plot')].filter(plot => {
    const svg = plot.querySelector('.main-svg');
    const marks = plot.querySelectorAll('.main-svg path, .main-svg image, .main-svg text').length;
    return svg && svg.getBoundingClientRect().width > 100 && marks > 3;
}).length"""
PICTURES = """[...document.images].filter(image =>
    getComputedStyle(image).display !== 'none' && image.naturalWidth > 100 && image.alt.length > 30).length"""
# Perceived lightness of text and paper (WCAG), from computed colours.
CONTRAST = """(() => {
    const light = text => {
        const [r, g, b] = text.match(/[0-9.]+/g).map(part => {
            const c = part / 255;
            return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const texts = [...document.querySelectorAll('p, td, th, dd, figcaption, a, .plot text')];
    const worst = texts.filter(one => one.getClientRects().length).map(one => {
        const style = getComputedStyle(one);
        const ink = light(one instanceof SVGElement ? style.fill : style.color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    });
    return Math.min(...worst);
})()"""


@pytest.fixture(scope="module")
def report(browser: Browser, mixed_report: Path) -> str:
    """The address of a report with every figure; not written where there is no browser."""
    return (mixed_report / "index.html").as_uri()


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1400])
def test_every_figure_is_drawn(browser: Browser, complaints: list[str], report: str, width: int, scheme: str) -> None:
    """Nothing complains, nothing is wider than the screen, and text can be read."""
    page = watched(
        browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme),  # type: ignore[arg-type]
        complaints,
    )
    page.goto(report)
    page.wait_for_function(f"{DRAWN} === {PLOTS}")
    assert page.evaluate(PLOTS) >= 18
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate(PICTURES) == 0
    assert complaints == []
    page.close()


def test_a_change_of_the_colour_scheme_is_followed(browser: Browser, complaints: list[str], report: str) -> None:
    """Text of figures, too, while the page is open."""
    page = watched(browser.new_page(color_scheme="light"), complaints)
    page.goto(report)
    page.wait_for_function(f"{DRAWN} === {PLOTS}")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{CONTRAST} >= 4.5")
    assert complaints == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_has_pictures_on_white(browser: Browser, report: str, scheme: str) -> None:
    """In print there is a picture for every figure, whatever the screen's colours were."""
    page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(report)
    page.wait_for_function(f"{DRAWN} === {PLOTS}")
    page.emulate_media(media="print", color_scheme=scheme)  # type: ignore[arg-type]
    assert page.evaluate(PICTURES) == page.evaluate("document.querySelectorAll('figure').length") == FIGURES
    assert not any(plot.is_visible() for plot in page.locator(".plot").all())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRAST) >= 4.5
    page.close()


def test_without_scripts_there_are_pictures(browser: Browser, report: str) -> None:
    """Where scripts are off, as in some mail programs."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    visible = [picture.is_visible() for picture in page.locator("figure img").all()]
    assert visible == [True] * FIGURES
    context.close()


def test_commands_can_be_reached_by_keyboard(browser: Browser, report: str) -> None:
    """What scrolls sideways on a phone takes the focus, so that its end can be read."""
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(report)
    beyond = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(one => one.scrollWidth > one.clientWidth + 1 && "
        "['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one.tabIndex !== 0 && "
        "!one.closest('.plot')).map(one => one.className)"
    )
    assert beyond == []
    page.close()
