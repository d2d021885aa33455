"""`show`: everything that is known of a study.

Responsible for the flags of this command.
"""

from argparse import Namespace

from hpo.commands.command import STUDY_EXAMPLES, Command
from hpo.commands.flags import add_study_flags
from hpo.commands.output import output
from hpo.commands.ranking import ranking_tables, verdicts
from hpo.commands.stores import opened_study, paths_of


def run(parsed: Namespace) -> None:
    """Print the ranking and the verdicts."""
    from hpo.report.export import study_json
    from hpo.verdict.snapshot import read

    with opened_study(parsed) as stored:
        study = read(stored, paths_of(parsed))
    output(parsed, study_json(study), [*study.notes, *verdicts(study)], *ranking_tables(study))


COMMAND = Command(examples=STUDY_EXAMPLES, add_flags=add_study_flags, run=run)
