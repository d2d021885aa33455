"""What a report says: sentences and tables in the order in which they are read.

Responsible for putting the verdict first and for the Markdown form of the report. May assume a ranked study.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpo.importance import Importances
from hpo.ranking import INDIFFERENT_PERCENT, Level, headline
from hpo.record import StudyRecord
from hpo.report.captions import Caption
from hpo.report.tables import (
    Table,
    confirmation_tables,
    contract_table,
    cost_table,
    failure_table,
    importance_tables,
    number,
    ranking_tables,
    setting_text,
)

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
NO_VERDICT = "No trial is complete, so there is no verdict yet."
NO_TRIAL = "What is ranked below was measured beside the search."
UNCONFIRMED = (
    "Nothing was confirmed on other text yet; the text that was searched on makes the best of many trials look better "
    "than it is."
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report without its figures.

    Attributes:
        study: Its name.
        verdict: Of the leading level of bits.
        trials: How many, by state.
        recommendation: Sentences.
        ranking: Verdict and table of each level of bits.
        confirmed: What other text says.
        confirmation: Tables of it.
        importances: Tables.
        cost: Table.
        failures: Table; without rows where nothing failed.
        contract: Table.
    """

    study: str
    verdict: str
    trials: str
    recommendation: tuple[str, ...]
    ranking: tuple[tuple[str, Table], ...]
    confirmed: str
    confirmation: tuple[Table, ...]
    importances: tuple[Table, ...]
    cost: Table
    failures: Table
    contract: Table


def make_page(record: StudyRecord, levels: Sequence[Level], importances: Importances) -> Page:
    """Everything a report says of a study."""
    lead = headline(levels)
    confirmed = UNCONFIRMED if record.confirmation is None else str(record.confirmation["sentence"])
    tables = ranking_tables(record, levels)
    return Page(
        study=record.name,
        verdict=lead.verdict() if lead else NO_VERDICT,
        trials=_trials(record),
        recommendation=(_recommendation(lead), confirmed) if lead else (NO_TRIAL,),
        ranking=tuple((level.verdict(), table) for level, table in zip(levels, tables, strict=True)),
        confirmed=confirmed,
        confirmation=tuple(confirmation_tables(record)),
        importances=tuple(importance_tables(importances)),
        cost=cost_table(record, levels),
        failures=failure_table(record),
        contract=contract_table(record.contract),
    )


def markdown(page: Page, said: Sequence[Caption]) -> str:
    """The report for documents and mails; pictures are named, not contained."""
    return "\n\n".join(_blocks(page, said)) + "\n"


def _blocks(page: Page, said: Sequence[Caption]) -> Iterator[str]:
    yield f"# {_escaped(page.verdict)}"
    yield f"Study {_escaped(page.study)}: {page.trials}"
    yield from map(_escaped, page.recommendation)
    yield "## Ranking"
    for verdict, table in page.ranking:
        yield _escaped(verdict)
        yield from _table(table)
    yield "## Confirmation"
    yield _escaped(page.confirmed)
    for table in page.confirmation:
        yield from _table(table)
    yield "## Figures"
    for caption in said:
        yield f"### {caption.title}"
        if caption.missing is not None:
            yield caption.missing
        else:
            yield caption.reading
            yield f"![{caption.alt}]({caption.key}.png)"
        if caption.key == "importances":
            for table in page.importances:
                yield from _table(table)
    yield "## Cost"
    yield from _table(page.cost)
    yield from _table(page.failures)
    yield "## Contract"
    yield from _table(page.contract)


def _table(table: Table) -> Iterator[str]:
    if table.rows:
        yield f"**{_escaped(table.title)}**"
        ruler = ["---" if place < table.words else "---:" for place in range(len(table.columns))]
        rows = [table.columns, ruler, *table.rows]
        yield "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows)
    if table.note:
        yield _escaped(table.note)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for character in "\\|<>*`_[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _trials(record: StudyRecord) -> str:
    counts = Counter(STATES.get(trial.state, trial.state.lower()) for trial in record.trials)
    named = [f"{counts[name]} {name}" for name in STATES.values() if counts[name]]
    total = f"{len(record.trials)} trial{'' if len(record.trials) == 1 else 's'}"
    return f"{total}: {', '.join(named)}." if named else f"{total}."


def _recommendation(lead: Level) -> str:
    chosen = lead.recommended
    bits = number(chosen.measured.bits_per_weight)
    return (
        f"Recommended: {chosen.measured.name} ({setting_text(chosen.measured)}, {chosen.measured.footprint}), "
        f"perplexity {number(chosen.score.perplexity)} at {bits} bits per weight: the simplest setting within "
        f"{INDIFFERENT_PERCENT} % and within noise of the best at {lead.footprint}."
    )
