"""`study ls|rm|export|import|repair|retry|upgrade`: studies as wholes.

Responsible for the flags, the table and the notes of these actions.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.commands.command import Action, Command, Group
from hpo.commands.flags import add_storage_flag
from hpo.commands.output import make_table, output
from hpo.commands.stores import made_storage, opened_storage, opened_study, paths_of, read_storage, storage_url

if TYPE_CHECKING:
    import optuna

EXAMPLES = """examples:
  %(prog)s ls
  %(prog)s export mine mine.zip
  %(prog)s import mine.zip --storage postgresql://user@host/studies
"""
LS_EXAMPLES = """examples:
  %(prog)s
  %(prog)s --storage postgresql://user@host/studies --json
"""
RM_EXAMPLES = """examples:
  %(prog)s mine
  %(prog)s mine --force                           even while workers use it
"""
EXPORT_EXAMPLES = """examples:
  %(prog)s mine mine.zip
"""
IMPORT_EXAMPLES = """examples:
  %(prog)s mine.zip --storage postgresql://user@host/studies
  %(prog)s mine.zip --as copy
"""
REPAIR_EXAMPLES = """examples:
  %(prog)s                                        every study of the storage
  %(prog)s mine --storage journal:studies.log     cut off the unfinished line of a dead writer
"""
RETRY_EXAMPLES = """examples:
  %(prog)s mine                                   then continue with `optimize --study mine`
"""
UPGRADE_EXAMPLES = """examples:
  %(prog)s --storage sqlite:///study.db           after Optuna was updated
"""


def list_them(parsed: Namespace) -> None:
    """List the studies of a storage."""
    from hpo.study.objective import OBJECTIVES
    from hpo.workers.administration import list_studies
    from storage.studies.opening import exists, shown
    from storage.typed_json import encode

    url = storage_url(parsed)
    if exists(url):
        with read_storage(parsed) as storage:
            studies, notes = list_studies(storage), []
    else:
        studies, notes = [], [f"storage {shown(url)} does not exist; `optimize` makes it"]
    table = make_table("study", "model", "trials", "best")
    for study in studies:
        trials = ", ".join(f"{count} {state.lower()}" for state, count in study.trials.items())
        objective = OBJECTIVES.get(study.objective or "")
        value = objective.text if objective else "{:.3f}".format
        best = "-" if study.best is None else value(study.best)
        table.add_row(study.name, study.model or "(not made by praqtune)", trials or "-", best)
    output(parsed, {"studies": encode(studies)}, [f"{len(studies)} studies", *notes], table)


def add_rm_flags(parser: ArgumentParser) -> None:
    """Add the flags of `rm`."""
    add_named_flags(parser)
    parser.add_argument("--force", action="store_true", help="remove it even while workers use it")


def remove(parsed: Namespace) -> None:
    """Remove a study; its results are kept."""
    from hpo.study.finding import find_study_of_any_format
    from hpo.workers.administration import remove_study

    with opened_storage(parsed) as storage:
        remove_study(find_study_of_any_format(storage, parsed.study), storage, parsed.force)
    output(parsed, {"removed": parsed.study}, [f"study {parsed.study} is removed; its results are kept"])


def add_export_flags(parser: ArgumentParser) -> None:
    """Add the flags of `export`."""
    add_named_flags(parser)
    parser.add_argument("file", metavar="FILE", help="zip file to write")


def export(parsed: Namespace) -> None:
    """Write a study with its results into one file."""
    from hpo.study.archive import export_study
    from storage.results import ResultStore

    with opened_study(parsed) as study:
        count = export_study(study, ResultStore(paths_of(parsed).results), Path(parsed.file))
    notes = [f"study {parsed.study} with {count} results is in {parsed.file}"]
    output(parsed, {"study": parsed.study, "file": parsed.file, "results": count}, notes)


def add_import_flags(parser: ArgumentParser) -> None:
    """Add the flags of `import`."""
    add_storage_flag(parser)
    parser.add_argument("file", metavar="FILE", help="zip file that `study export` wrote")
    parser.add_argument("--as", dest="as_name", metavar="NAME", help="import it under another name")


def import_one(parsed: Namespace) -> None:
    """Make the study of a file in this storage."""
    from hpo.study.archive import import_study
    from storage.results import ResultStore

    with made_storage(parsed) as storage:
        study = import_study(storage, ResultStore(paths_of(parsed).results), Path(parsed.file), parsed.as_name)
    facts = {"study": study.study_name, "trials": len(study.trials)}
    output(parsed, facts, [f"study {study.study_name} is imported with {facts['trials']} trials"])


def add_repair_flags(parser: ArgumentParser) -> None:
    """Add the flags of `repair`."""
    add_storage_flag(parser)
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name of the study (default: every study)")


def repair(parsed: Namespace) -> None:
    """Queue again what dead workers left, and heal a torn journal."""
    from hpo.standard_error import say
    from hpo.study.finding import find_study
    from hpo.workers.administration import repair_study
    from storage.studies.opening import heal, require_existing

    require_existing(storage_url(parsed))
    cut = heal(storage_url(parsed))
    notes = [f"{cut} bytes of a line without an end were cut off the journal"] if cut else []
    repaired = []
    with opened_storage(parsed) as storage:
        for name in [parsed.study] if parsed.study else _names(storage):
            for number, became in repair_study(find_study(storage, name), storage, say):
                repaired.append({"study": name, "trial": number, "became": became})
                notes.append(f"study {name}, trial {number}: {became}")
    output(parsed, {"cut_bytes": cut, "repaired": repaired}, notes or ["nothing had to be repaired"])


def retry(parsed: Namespace) -> None:
    """Queue failed settings again."""
    from hpo.study.finding import find_study
    from hpo.workers.administration import retry_failed

    with opened_storage(parsed) as storage:
        numbers = retry_failed(find_study(storage, parsed.study), storage)
    notes = [f"{len(numbers)} failed trials are queued again; go on with `optimize`"]
    output(parsed, {"study": parsed.study, "retried": numbers}, notes)


def upgrade(parsed: Namespace) -> None:
    """Bring the tables to the installed Optuna's version."""
    from storage.studies.opening import shown
    from storage.studies.opening import upgrade as upgrade_tables

    url = storage_url(parsed)
    version = upgrade_tables(url)
    output(parsed, {"version": version}, [f"the tables of {shown(url)} are of version {version}"])


def add_named_flags(parser: ArgumentParser) -> None:
    """Add where studies are, and which one is meant."""
    add_storage_flag(parser)
    parser.add_argument("study", metavar="STUDY", help="name of the study")


def _names(storage: "optuna.storages.BaseStorage") -> list[str]:
    from hpo.study.contract import FORMAT
    from hpo.workers.administration import list_studies

    return [study.name for study in list_studies(storage) if study.format == FORMAT]


COMMAND = Group(
    examples=EXAMPLES,
    actions={
        "ls": Action(
            summary="list the studies of a storage",
            command=Command(examples=LS_EXAMPLES, add_flags=add_storage_flag, run=list_them),
        ),
        "rm": Action(
            summary="remove a study", command=Command(examples=RM_EXAMPLES, add_flags=add_rm_flags, run=remove)
        ),
        "export": Action(
            summary="write a study with its results into one file",
            command=Command(examples=EXPORT_EXAMPLES, add_flags=add_export_flags, run=export),
        ),
        "import": Action(
            summary="create the study of an exported file in this storage",
            command=Command(examples=IMPORT_EXAMPLES, add_flags=add_import_flags, run=import_one),
        ),
        "repair": Action(
            summary="queue again the trials of dead workers; mend a torn journal",
            command=Command(examples=REPAIR_EXAMPLES, add_flags=add_repair_flags, run=repair),
        ),
        "retry": Action(
            summary="queue the settings of failed trials again",
            command=Command(examples=RETRY_EXAMPLES, add_flags=add_named_flags, run=retry),
        ),
        "upgrade": Action(
            summary="upgrade the database tables to the installed Optuna's version",
            command=Command(examples=UPGRADE_EXAMPLES, add_flags=add_storage_flag, run=upgrade),
        ),
    },
)
