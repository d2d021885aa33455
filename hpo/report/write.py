"""The report of a study: one folder with a page, pictures and the numbers.

Responsible for writing it, verdict first. May assume that the study was ranked; what is not known yet is left out with
a sentence that says why. A file appears whole or not at all, so a report can be read while it is renewed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from optuna.distributions import BaseDistribution

from hpo.importance import importances
from hpo.ranking import Level
from hpo.record import StudyRecord
from hpo.report.captions import Caption, captions
from hpo.report.charts import ChartData, chart_data
from hpo.report.export import study_json, trials_csv
from hpo.report.page import Page, make_page, markdown
from storage.files import disk_errors, write_file
from storage.results import ResultStore
from storage.strict_json import json_text

TEMPLATE = "report.html.j2"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One interactive figure: its heading where there are several, its height in pixels, and itself as JSON."""

    title: str
    height: int
    json: Markup


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What the page shows below one heading."""

    caption: Caption
    plots: tuple[Plot, ...]


def write_report(
    record: StudyRecord,
    levels: Sequence[Level],
    store: ResultStore,
    distributions: Mapping[str, BaseDistribution],
    directory: Path,
) -> Path:
    """Write `index.html`, `report.md`, `result.json`, `trials.csv` and a PNG file per figure into `directory`.

    Args:
        record: The study.
        levels: Its ranking.
        store: Where the layers of its best trial are.
        distributions: Of Optuna's parameters, by their names.
        directory: Made where it is missing; files of an earlier report are replaced.

    Returns:
        The page.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    shares = importances(record, distributions)
    data = chart_data(record, levels, store, distributions, shares)
    said = captions(data)
    page = make_page(record, levels, shares)
    result = {**study_json(record, levels), "importances": shares.as_dict()}
    _write_pictures(said, data, directory)
    write_file(directory / "trials.csv", trials_csv(record).encode())
    write_file(directory / "result.json", json_text(result).encode())
    write_file(directory / "report.md", markdown(page, said).encode())
    index = directory / "index.html"
    write_file(index, _html(page, said, data).encode())
    return index


def _write_pictures(said: Sequence[Caption], data: ChartData, directory: Path) -> None:
    # Imported here: `show` needs `study_json` at once, and matplotlib takes a second.
    from hpo.report.plots import picture

    for caption in said:
        path = directory / f"{caption.key}.png"
        if caption.missing is None:
            write_file(path, picture(caption.key, data))
        else:
            with disk_errors(path):
                path.unlink(missing_ok=True)


def _html(page: Page, said: Sequence[Caption], data: ChartData) -> str:
    # Imported here: `show` needs `study_json` at once, and plotly takes a second.
    from plotly.offline import get_plotlyjs

    panels = [Panel(caption=caption, plots=_plots(caption, data)) for caption in said]
    return templates().get_template(TEMPLATE).render(page=page, panels=panels, plotly=Markup(get_plotlyjs()))


def templates(*directories: Path) -> Environment:
    """Where pages come from: these directories, and what they share with the report."""
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
