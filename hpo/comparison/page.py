"""A comparison as one page and its pictures.

Responsible for writing them: recommendation first, then tables, figures and all pairs. The page contains its pictures,
so that it can be mailed. May assume a judged comparison.
"""

import base64
from dataclasses import dataclass
from pathlib import Path

from hpo.comparison.plots import pictures
from hpo.comparison.tables import pair_table, tables
from hpo.comparison.verdict import EQUAL_BITS, Comparison
from hpo.report.tables import contract_table
from hpo.report.write import templates
from storage.files import disk_errors, write_file

TEMPLATE = "comparison.html.j2"
CAPTIONS = {
    "perplexity": ("Perplexity", "Shorter is better; bars of one colour have equal bits per weight, others do not."),
    "increase": ("Increase over full precision", "Paired on the same sequences; the line is the 95 % interval."),
    "bits": ("Perplexity against bits per weight", "Lower and further left is better; outliers stand at the edge."),
    "generalisation": ("Generalisation", "A method that fits its first data set loses more on the others."),
}
RANKS = (
    "Rows of one rank do not differ significantly from its best row, after Holm's correction for all pairs; the next "
    "rank is the place of its best row (1, 1, 3). Rows of neighbouring ranks may still be alike: all pairs are below."
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure: its heading, how to read it, what it shows, and itself as base64."""

    key: str
    title: str
    reading: str
    alt: str
    data: str


def write_page(comparison: Comparison, directory: Path) -> Path:
    """Write `index.html` and one PNG file per figure into `directory`; returns the page.

    Raises:
        StorageError: If the disk is full or refuses.
    """
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    figures = []
    for key, data in pictures(comparison).items():
        write_file(directory / f"{key}.png", data)
        title, reading = CAPTIONS[key]
        alt = f"{title} of {len(comparison.entries) - 1} rows on {', '.join(comparison.datasets)}."
        figures.append(Picture(key=key, title=title, reading=reading, alt=alt, data=base64.b64encode(data).decode()))
    page = directory / "index.html"
    text = (
        templates(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            comparison=comparison,
            rule=EQUAL_BITS,
            ranks=RANKS,
            tables=tables(comparison),
            pictures=figures,
            pairs=pair_table(comparison),
            about=contract_table(comparison.about),
        )
    )
    write_file(page, text.encode())
    return page
