"""What `optimize`, `show` and `report` print of a study: tables by size class, and the verdicts.

Responsible for the choice and the order. May assume a snapshot of the study.
"""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hpo.commands.output import make_table, output
from storage.files import file_name

if TYPE_CHECKING:
    from hpo.verdict.snapshot import Study


def report_directory(parsed: Namespace, study: "Study") -> Path:
    """Where the study's report goes."""
    return parsed.out or Path("reports") / file_name(study.record.name)


def conclude(parsed: Namespace, study: "Study", directory: Path | None) -> None:
    """Print the ranking and the verdicts, and write the report into `directory` where there is one."""
    from hpo.report.export import study_json
    from hpo.report.write import write_report

    notes = [*verdicts(study), *study.notes]
    if study.record.confirmation:
        notes.insert(2, study.record.confirmation.sentence)
    if study.record.refined:
        notes += [study.record.refined.tuned, study.record.refined.sentence]
    if directory is not None:
        notes.append(f"report: {write_report(study, directory)}")
    output(parsed, study_json(study), notes, *ranking_tables(study))


def verdicts(study: "Study") -> list[str]:
    """Say what won, what to use, and what more bits would buy; the leading size class first."""
    from hpo.verdict.ranking import frontier_text

    rankings, leading = study.rankings, study.lead
    ordered = sorted(rankings, key=lambda ranking: ranking is not leading)
    lines = [study.recommended(ranking).verdict for ranking in ordered]
    if study.recommendation is not None:
        lines.insert(1, study.recommendation.sentence())
    return [*lines, *([frontier_text(rankings)] if len(rankings) > 1 else [])]


def ranking_tables(study: "Study") -> list[Table]:
    """One table for every size class."""
    from hpo.verdict.words import flips_text, kl_text

    tables = []
    for ranking in study.rankings:
        table = make_table(
            str(ranking.size_class), "setting", "perplexity", "above the best", "KL", "flips %", "bits/weight"
        )
        for row in ranking.rows:
            mark = " *" if row is ranking.recommended else ""
            table.add_row(
                row.measured.name + mark,
                row.measured.label,
                f"{row.score.perplexity:.3f}",
                "best" if row is ranking.best else ranking.objective.change_text(row.difference),
                kl_text(row.kl),
                flips_text(row.flips),
                f"{row.measured.bits_per_weight:.3f}",
            )
        tables.append(table)
    return tables
