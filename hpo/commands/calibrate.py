"""`calibrate`: fill the calibration cache in advance.

Responsible for the flags and the table of this command.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, replace
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING

from hpo.commands.command import Command
from hpo.commands.flags import add_options, options_of
from hpo.commands.output import make_table, output
from hpo.commands.stores import paths_of
from hpo.study.options import BenchOptions
from objectives.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from objectives.evaluation import BenchPlan

NOT_RUN = "counted from config.json; nothing was run, read or written"
EXAMPLES = """examples:
  %(prog)s                                        the bundled model, 16 to 128 samples
  %(prog)s --model org/name --calib-data wikitext2 --sizes 64,128,512
  %(prog)s --model org/name --dry-run               what it would take: config.json is read, nothing is run or written
"""


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    add_options(parser, BenchOptions, "model", "text")
    parser.add_argument("--sizes", default="16,32,64,128", help="numbers of sequences, by commas (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only print what it would take; run and write nothing")


def run(parsed: Namespace) -> None:
    """Compute the statistics that the cache lacks."""
    from hpo.study.bench import bench_plan
    from hpo.terminal import progress_display
    from objectives.calibration.reach import expert_tokens
    from objectives.evaluation import lay_out
    from objectives.model.memory import keep_freed_memory

    keep_freed_memory()
    sizes = sorted(calibration_sizes(parsed.sizes))
    plan = bench_plan(options_of(parsed, BenchOptions), sizes[-1])
    if parsed.dry_run:
        _count(parsed, plan)
        return
    started = monotonic()
    with progress_display(parsed.quiet) as progress:
        # The evaluation text is read too: the same documents are left out as in a study, and the number type is the
        # one that the study will compute in.
        laid_out = lay_out(plan, paths_of(parsed), progress)
        bench = laid_out.bench
        computed = bench.calibration.ensure(sizes, progress)
    keys = {size: bench.calibration.first(size).key for size in sizes}
    record = {"model": plan.model.name, "source": plan.calibration.source, "entries": keys, "samples_read": computed}
    record["seconds"] = round(monotonic() - started, 3)
    table = make_table("samples", "entry")
    for size, key in keys.items():
        table.add_row(str(size), key)
    read = f"{computed} samples were read, the others were in the cache"
    tokens = expert_tokens(bench.calibration, bench.blocks, sizes[-1])
    if tokens:
        record["expert_tokens"] = tokens
    tables = [table, _expert_table(tokens, sizes[-1])] if tokens else [table]
    output(parsed, record, [*laid_out.notes, read], *tables)


def _expert_table(tokens: "Mapping[str, Sequence[int]]", size: int) -> "Table":
    """Show how evenly the tokens of the text reach the experts of each block."""
    table = make_table(
        f"tokens of {size} samples that are routed to the experts of",
        "experts",
        "least",
        "median",
        "most",
        "without any",
    )
    for name, counts in tokens.items():
        figures = (len(counts), min(counts), f"{median(counts):.0f}", max(counts), counts.count(0))
        table.add_row(name, *map(str, figures))
    return table


def _count(parsed: Namespace, plan: "BenchPlan") -> None:
    """Print what a study would take whose trials are like the recommended recipe."""
    from objectives.costs import count
    from objectives.model.skeleton import load_skeleton
    from objectives.suitability import require_experts
    from quant.recipes import recipe_name
    from quant.setting import PRESETS, RECIPE

    setting = replace(PRESETS[RECIPE], n_calib=plan.calibration.count)
    module, blocks = load_skeleton(plan.model, plan.allow_partial)
    scored = plan.data[0]
    if plan.route_all:
        require_experts(plan.model.name, blocks)
    read, evaluated = setting.n_calib * plan.calibration.length, scored.count * scored.length
    costs = count(module, blocks, setting, read, evaluated, plan.route_all)
    table = make_table("what", "costs")
    for name, value in (
        ("weights", f"{costs.weights / 1e6:,.1f} of {costs.parameters / 1e6:,.1f} million in decoder blocks"),
        (
            "cache",
            f"{costs.entries * costs.entry_bytes / 1e9:.2f} GB: {costs.entries} entries",
        ),
        ("a trial reads", f"{costs.entry_bytes / 1e9:.2f} GB, {costs.entry_bytes / 1e9:.1f} s at 1 GB/s"),
        (
            "memory for sums",
            f"{costs.recording_bytes / 1e9:.2f} GB, or {costs.block_recording_bytes / 1e9:.2f} GB "
            "with --max-memory and a pass for each block",
        ),
        (
            "calibrating",
            f"{_tera(costs.calibrating)} once, {setting.n_calib} samples of {plan.calibration.length} tokens",
        ),
        ("quantizing", f"{_tera(costs.quantizing)} a trial, by {recipe_name(setting)} with n_grid {setting.n_grid}"),
        ("scoring", f"{_tera(costs.scoring)} a trial, {scored.count} sequences of {scored.length} tokens"),
    ):
        table.add_row(name, value)
    output(parsed, {"model": plan.model.name, "setting": setting.as_dict(), **asdict(costs)}, [NOT_RUN], table)


def _tera(operations: float) -> str:
    return f"{operations / 1e12:,.2f} TFLOP"


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
