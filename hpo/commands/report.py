"""`report`: write a study's report.

Responsible for the flags of this command.
"""

from argparse import ArgumentParser, Namespace

from hpo.commands.command import STUDY_EXAMPLES, Command
from hpo.commands.flags import add_report_flag, add_study_flags
from hpo.commands.ranking import conclude, report_directory
from hpo.commands.stores import opened_study, paths_of


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    add_report_flag(add_study_flags(parser))


def run(parsed: Namespace) -> None:
    """Write the report, and print the ranking and the verdicts."""
    from hpo.verdict.snapshot import read

    with opened_study(parsed) as stored:
        study = read(stored, paths_of(parsed))
    conclude(parsed, study, report_directory(parsed, study))


COMMAND = Command(examples=STUDY_EXAMPLES, add_flags=add_flags, run=run)
