"""What a report says: sentences and tables in the order in which they are read.

Responsible for putting the verdict first and for the Markdown form of the report. May assume a ranked study.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpo.deploy.reproduce import repeat_command
from hpo.report.caption import Caption
from hpo.report.charts import ChartData
from hpo.report.glance import Answer, confirmed_text, glance
from hpo.report.plan_data import step_tables
from hpo.report.tables import (
    Table,
    confirmation_tables,
    contract_table,
    cost_table,
    failure_table,
    importance_tables,
    ranking_tables,
    waterfall_tables,
)
from hpo.study.record import StudyRecord
from hpo.verdict.snapshot import Study

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
NO_VERDICT = "No trial is complete, so there is no verdict yet."
NO_TRIAL = "What is ranked below was measured beside the search."


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report without its figures.

    Attributes:
        study: Its name.
        verdict: Of the leading ranking.
        trials: How many, by state.
        recommendation: Sentences.
        answers: The study at a glance.
        ranking: Verdict and table of each size class.
        confirmed: What other text says.
        confirmation: Tables of it.
        beside: Tables that stand with a figure, by its key.
        cost: Table.
        failures: Table; without rows where nothing failed.
        contract: Table.
        command: What begins the study anew.
    """

    study: str
    verdict: str
    trials: str
    recommendation: str
    answers: tuple[Answer, ...]
    ranking: tuple[tuple[str, Table], ...]
    confirmed: str
    confirmation: tuple[Table, ...]
    beside: Mapping[str, Sequence[Table]]
    cost: Table
    failures: Table
    contract: Table
    command: str


def make_page(study: Study, data: ChartData) -> Page:
    """Collect everything a report says of a study.

    Args:
        study: The study.
        data: What its figures show.
    """
    record, chosen = study.record, study.recommendation
    tables = ranking_tables(study)
    return Page(
        study=record.name,
        verdict=chosen.verdict if chosen else NO_VERDICT,
        trials=_trials(record),
        recommendation=chosen.sentence() if chosen else NO_TRIAL,
        answers=tuple(glance(study, data)),
        ranking=tuple(
            (study.recommended(ranking).verdict, table) for ranking, table in zip(study.rankings, tables, strict=True)
        ),
        confirmed=confirmed_text(study),
        confirmation=tuple(confirmation_tables(record)),
        beside={
            "bits": step_tables(study),
            "importances": importance_tables(data.importances),
            "waterfall": waterfall_tables(study),
        },
        cost=cost_table(study),
        failures=failure_table(record),
        contract=contract_table(record.contract.parts),
        command=repeat_command(record, len(record.trials) or None),
    )


def markdown(page: Page, captions: Sequence[Caption]) -> str:
    """Write the report for documents and mails; pictures are named, not contained."""
    return "\n\n".join(_blocks(page, captions)) + "\n"


def _blocks(page: Page, captions: Sequence[Caption]) -> Iterator[str]:
    yield f"# {escaped(page.verdict)}"
    yield f"Study {escaped(page.study)}: {page.trials}"
    yield escaped(page.recommendation)
    for answer in page.answers:
        yield f"**{answer.question}:** {escaped(answer.text)}"
        yield from map(code_lines, answer.commands)
    yield "## Ranking"
    for verdict, table in page.ranking:
        yield escaped(verdict)
        yield from table_lines(table)
    yield "## Confirmation"
    yield escaped(page.confirmed)
    for table in page.confirmation:
        yield from table_lines(table)
    yield "## Figures"
    for caption in captions:
        yield f"### {caption.title}"
        if caption.missing is not None:
            yield caption.missing
        else:
            yield caption.reading
            yield f"![{caption.alt}]({caption.key}.png)"
        for table in page.beside.get(caption.key, ()):
            yield from table_lines(table)
    yield "## Cost"
    yield from table_lines(page.cost)
    yield from table_lines(page.failures)
    yield "## Contract"
    yield code_lines(page.command)
    yield from table_lines(page.contract)


def table_lines(table: Table) -> Iterator[str]:
    """Yield a table in Markdown: title, rows, note, as far as there are any."""
    if table.rows:
        yield f"**{escaped(table.title)}**"
        ruler = ["---" if place < table.words else "---:" for place in range(len(table.columns))]
        rows = [table.columns, ruler, *table.rows]
        yield "\n".join(f"| {' | '.join(map(escaped, row))} |" for row in rows)
    if table.note:
        yield escaped(table.note)


def code_lines(command: str) -> str:
    """Set a command apart as Markdown does."""
    return f"```bash\n{command}\n```"


def escaped(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on one line."""
    for character in "\\|<>*`_[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _trials(record: StudyRecord) -> str:
    counts = Counter(STATES.get(trial.state, trial.state.lower()) for trial in record.trials)
    named = [f"{counts[name]} {name}" for name in STATES.values() if counts[name]]
    total = f"{len(record.trials)} trial{'' if len(record.trials) == 1 else 's'}"
    return f"{total}: {', '.join(named)}." if named else f"{total}."
