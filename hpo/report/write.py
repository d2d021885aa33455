"""The report of a study: one folder with a page, pictures and the numbers.

Responsible for writing it, verdict first. May assume that the study was ranked; what is not known yet is left out with
a sentence that says why. A file appears whole or not at all, so a report can be read while it is renewed.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hpo.report.caption import Caption
from hpo.report.captions import captions
from hpo.report.charts import ChartData, chart_data
from hpo.report.export import result_json, trials_csv
from hpo.report.page import Page, make_page, markdown
from hpo.verdict.snapshot import Study
from storage.files import disk_errors, write_file
from storage.strict_json import json_text

TEMPLATE, PAGE = "report.html.j2", "index.html"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One interactive figure: its heading where there are several, its height in pixels, and itself as JSON."""

    title: str
    height: int
    json: Markup


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What the page shows below one heading: interactive figures, and a picture for paper as base64."""

    caption: Caption
    plots: tuple[Plot, ...]
    picture: str


def write_report(study: Study, directory: Path) -> Path:
    """Write the files of `report_files` into `directory`.

    Args:
        study: The study.
        directory: Made where it is missing; files of an earlier report are replaced.

    Returns:
        The page.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    files = report_files(study)
    for name, content in files.items():
        path = directory / name
        if content is not None:
            write_file(path, content)
        else:
            with disk_errors(path):
                path.unlink(missing_ok=True)
    return directory / PAGE


def report_files(study: Study) -> dict[str, bytes | None]:
    """Make a report by the names of its files: a PNG and an SVG per figure, `trials.csv`, `result.json`, `report.md`,
    and `index.html`, which needs none of the others; None for a figure that is left out."""
    data = chart_data(study)
    caption_list = captions(data)
    page = make_page(study, data)
    drawn = _pictures(caption_list, data)
    result = result_json(study, data.importances)
    return {
        **drawn,
        "trials.csv": trials_csv(study.record).encode(),
        "result.json": json_text(result).encode(),
        "report.md": markdown(page, caption_list).encode(),
        PAGE: _html(page, caption_list, data, drawn).encode(),
    }


def _pictures(caption_list: Sequence[Caption], data: ChartData) -> dict[str, bytes | None]:
    # Imported here: `show` needs `study_json` at once, and matplotlib takes a second.
    from hpo.report.plots import pictures

    files: dict[str, bytes | None] = {}
    for caption in caption_list:
        drawn = pictures(caption.key, data) if caption.missing is None else {}
        files |= {f"{caption.key}.{ending}": drawn.get(ending) for ending in ("png", "svg")}
    return files


def _html(page: Page, caption_list: Sequence[Caption], data: ChartData, drawn: Mapping[str, bytes | None]) -> str:
    # Imported here: `show` needs `study_json` at once, and plotly takes a second.
    from plotly.offline import get_plotlyjs

    panels = [
        Panel(
            caption=caption,
            plots=_plots(caption, data),
            picture=base64.b64encode(drawn[f"{caption.key}.png"] or b"").decode(),
        )
        for caption in caption_list
    ]
    return templates().get_template(TEMPLATE).render(page=page, panels=panels, plotly=Markup(get_plotlyjs()))


def templates(*directories: Path) -> Environment:
    """Open the templates of pages: those in these directories, and what they share with the report."""
    return Environment(
        loader=FileSystemLoader([*directories, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def _plots(caption: Caption, data: ChartData) -> tuple[Plot, ...]:
    from hpo.report.figures import figures

    if caption.missing is not None:
        return ()
    # Plotly escapes what could end the script element that its JSON stands in.
    return tuple(
        Plot(title=title, height=figure.layout.height, json=Markup(figure.to_json()))
        for title, figure in figures(caption.key, data)
    )
