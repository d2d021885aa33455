"""`compare`: methods and models side by side.

Responsible for the flags of this command and for what it writes.
"""

from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.commands.command import Command
from hpo.commands.flags import (
    PARAMETER_FLAGS,
    add_options,
    add_setting_flags,
    add_storage_flag,
    given_parameters,
    options_of,
)
from hpo.commands.output import output, report_table
from hpo.commands.settings import require_read
from hpo.commands.stores import opened_study, paths_of
from hpo.study.options import BenchOptions

if TYPE_CHECKING:
    from hpo.comparison.plan import ComparePlan

EXAMPLES = """examples:
  %(prog)s                                        every method on the bundled model, two data sets
  %(prog)s --methods rtn,gw-awq,gwh-praq-v2 --model org/name --datasets c4,wikitext2 --group-size 64
  %(prog)s --methods gw-awq,gw-awq+gptq,gw-awq+range+alpha+gptq --asymmetric --group-size 64
  %(prog)s --methods all --study mine --csv rows.csv --json rows.json --plots ./comparison
  %(prog)s --methods gw-awq --models gptq=./my-gptq,autoround=./my-autoround --model org/name
"""


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    group = parser.add_argument_group("what to compare, and where to write it")
    group.add_argument(
        "--methods", default="all", help="methods by commas, with ingredients (gw-awq+range+gptq), or all (default)"
    )
    group.add_argument("--models", metavar="NAME=DIR,...", help="ready-made models to compare with, each under a name")
    group.add_argument("--study", metavar="S", help="add what this study recommends as a row")
    group.add_argument(
        "--trial",
        metavar="N|best|recommended",
        help="of the study: recommended (default), best (lowest perplexity or KL, whatever its size) or a number",
    )
    add_storage_flag(group)
    group.add_argument("--csv", metavar="FILE", type=Path, help="write the rows as CSV")
    group.add_argument("--plots", metavar="DIR", type=Path, help="write a page with pictures")
    group.add_argument("--datasets", dest="eval_data", default=SUPPRESS, help="the same as --eval-data")
    add_options(parser, BenchOptions, "model", "text")
    add_setting_flags(parser)


def run(parsed: Namespace) -> None:
    """Measure what is compared, and write it where it is wanted."""
    from hpo.comparison.compare import compare
    from hpo.comparison.export import printed_comparison, rows_csv
    from hpo.comparison.tables import pair_note, tables
    from hpo.terminal import progress_display
    from objectives.model.memory import keep_freed_memory
    from storage.files import write_file
    from storage.typed_json import encode

    keep_freed_memory()
    plan = compare_plan(parsed)
    with progress_display(parsed.quiet) as progress:
        comparison = compare(plan, paths_of(parsed), progress)
    notes = [*(choice.sentence for choice in comparison.choices), pair_note(comparison), *comparison.notes]
    if parsed.csv:
        write_file(parsed.csv, rows_csv(comparison).encode())
    if parsed.plots:
        # Imported here: matplotlib takes a second.
        from hpo.comparison.page import write_page

        notes.append(f"page: {write_page(comparison, parsed.plots)}")
    output(parsed, encode(printed_comparison(comparison)), notes, *map(report_table, tables(comparison)))


def compare_plan(parsed: Namespace) -> "ComparePlan":
    """What is compared."""
    from hpo.comparison.plan import ComparePlan, method_settings, model_directories
    from hpo.deploy.choosing import choose
    from hpo.study.bench import bench_plan
    from hpo.study.choosing import RECOMMENDED
    from hpo.verdict.snapshot import read_ranked_if_possible
    from objectives.errors import InputError

    values = given_parameters(parsed, PARAMETER_FLAGS)
    settings = method_settings(parsed.methods, values)
    require_read(settings, values)
    models = model_directories(parsed.models) if parsed.models else {}
    samples = [setting.n_calib for setting in settings]
    record, chosen = None, None
    notes: list[str] = []
    if parsed.trial and not parsed.study:
        raise InputError(f"--trial {parsed.trial} is one of a study; give --study NAME as well")
    if parsed.study:
        with opened_study(parsed) as stored:
            study = read_ranked_if_possible(stored, paths_of(parsed))
        chosen, notes = choose(study, parsed.trial or RECOMMENDED)
        record = study.record
        samples += [chosen.setting.n_calib] if chosen.setting else []
    bench = bench_plan(options_of(parsed, BenchOptions), max(samples))
    return ComparePlan(bench=bench, settings=settings, models=models, study=record, chosen=chosen, notes=tuple(notes))


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
