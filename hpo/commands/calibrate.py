"""`calibrate`: fill the calibration cache in advance.

Responsible for the flags and the table of this command.
"""

from argparse import ArgumentParser, Namespace
from time import monotonic

from hpo.commands.command import Command
from hpo.commands.flags import add_options, options_of
from hpo.commands.output import make_table, output
from hpo.commands.stores import paths_of
from hpo.study.options import BenchOptions
from objectives.errors import InputError

EXAMPLES = """examples:
  %(prog)s                                        the bundled model, 16 to 128 samples
  %(prog)s --model org/name --calib-data wikitext2 --sizes 64,128,512
"""


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    add_options(parser, BenchOptions, "model", "text")
    parser.add_argument("--sizes", default="16,32,64,128", help="calibration sizes, separated by commas")


def run(parsed: Namespace) -> None:
    """Compute the statistics that the cache lacks."""
    from hpo.study.bench import bench_plan
    from hpo.terminal import progress_display
    from objectives.evaluation import lay_out
    from objectives.model.memory import keep_freed_memory

    keep_freed_memory()
    sizes = sorted(calibration_sizes(parsed.sizes))
    plan = bench_plan(options_of(parsed, BenchOptions), sizes[-1])
    started = monotonic()
    with progress_display(parsed.quiet) as progress:
        # The evaluation text is read too: the same documents are left out as in a study, and the number type is the
        # one that the study will compute in.
        laid_out = lay_out(plan, paths_of(parsed), progress)
        bench = laid_out.bench
        computed = bench.calibration.ensure(sizes, progress)
    keys = {size: [segment.key for segment in bench.calibration.segments(size)] for size in sizes}
    record = {"model": plan.model.name, "source": plan.calibration.source, "entries": keys, "samples_read": computed}
    record["seconds"] = round(monotonic() - started, 3)
    table = make_table("samples", "entries")
    for size, entries in keys.items():
        table.add_row(str(size), " ".join(entries))
    read = f"{computed} samples were read, the others were in the cache"
    output(parsed, record, [*laid_out.notes, read], table)


def calibration_sizes(text: str) -> list[int]:
    """Whole numbers above 0 that are separated by commas.

    Raises:
        InputError: If they are not.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--sizes {text!r} is not a list of whole numbers; write 16,32,64, for example") from None
    if min(numbers) < 1:
        raise InputError(f"--sizes {text!r} has a number below 1")
    return numbers


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
