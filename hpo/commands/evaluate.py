"""`evaluate`: measure perplexity, as it is or quantized.

Responsible for the flags and the table of this command.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.table import Table

from hpo.commands.command import Command
from hpo.commands.flags import METHOD_HELP, add_options, add_plan_flags, add_setting_flags, options_of
from hpo.commands.output import make_table, output
from hpo.commands.settings import evaluated_settings, given_budget, given_plans
from hpo.commands.stores import paths_of
from hpo.study.options import BenchOptions
from objectives.errors import InputError
from storage.typed_json import encode

if TYPE_CHECKING:
    from hpo.study.confirmation import Interval
    from objectives.evaluation import Row
    from objectives.plan_files import LinearsSetting
    from quant.setting import Setting

EXAMPLES = """examples:
  %(prog)s                                        the bundled model: full precision, rtn and the presets
  %(prog)s --model org/name --eval-data c4,wikitext2
  %(prog)s --model ./dir --calib-data calib.txt --eval-data eval.jsonl.gz \\
      --method gw-awq,gw-awq+range+alpha+gptq --asymmetric --group-size 64 --json rows.json
  %(prog)s --method gw-awq+full+range+gptq --budget 4.4      each Linear in its own bits
"""


@dataclass(frozen=True, kw_only=True)
class PrintedRow:
    """One setting on one data set; what tells it from full precision is in nats per token, flips in percent of them."""

    dataset: str
    method: str
    perplexity: float
    mean_nll: float
    tokens: int
    tokens_per_second: float
    bits_per_weight: float | None
    seconds: float
    model_bytes: int
    setting: "Setting | None"
    plan: "tuple[LinearsSetting, ...] | None"
    nll_above_full_precision: "Interval | None"
    kl: "Interval | None"
    flips: "Interval | None"


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    add_options(parser, BenchOptions, "model", "text")
    group = parser.add_argument_group("methods")
    # Not given and given differ: without a method, the bundled model is measured with the presets.
    group.add_argument("--method", help=f"one or several by commas: {METHOD_HELP}")
    group.add_argument("--presets", action="store_true", help="measure rtn and the presets of gwh-praq-v2")
    add_plan_flags(group)
    add_setting_flags(parser)


def run(parsed: Namespace) -> None:
    """Measure every setting on every data set."""
    from hpo.study.bench import bench_plan
    from hpo.terminal import progress_display
    from objectives.budget import allocate
    from objectives.evaluation import evaluate, lay_out
    from objectives.model.memory import keep_freed_memory
    from storage.results import ResultStore

    keep_freed_memory()
    options, paths = options_of(parsed, BenchOptions), paths_of(parsed)
    settings = evaluated_settings(parsed, options.model)
    budget, plans = given_budget(parsed), given_plans(parsed, settings)
    if budget is not None and not settings:
        raise InputError("--budget needs a recipe whose bits it allocates; add --method gw-awq+full+range+gptq")
    bench = bench_plan(options, max((plan.n_calib for plan in plans), default=1))
    # Without a method nothing is quantized: a model that is already is measured as it is.
    bench = replace(bench, model=replace(bench.model, accept_quantized=not plans))
    allocated = []
    with progress_display(parsed.quiet) as progress:
        laid_out = lay_out(bench, paths, progress)
        if budget is not None:
            store = ResultStore(paths.results)
            allocated = [allocate(laid_out.bench, recipe, budget, store, progress) for recipe in settings]
            plans = [allocation.plan for allocation in allocated]
        measured = list(evaluate(laid_out, plans, progress))
    rows = [printed_row(row) for row in measured]
    of_rows = dict.fromkeys(f"{row.method}: {note}" for row in measured for note in row.notes)
    notes = [*laid_out.notes, *of_rows, *(allocation.note for allocation in allocated)]
    output(parsed, encode({"rows": rows, "notes": notes}), notes, evaluation_table(rows))


def printed_row(row: "Row") -> PrintedRow:
    """A row of an evaluation as it is printed."""
    from hpo.verdict.words import flips_interval, kl_interval, nats_interval

    return PrintedRow(
        dataset=row.dataset,
        method=row.method,
        perplexity=row.score.perplexity,
        mean_nll=row.score.mean_nll,
        tokens=int(row.score.tokens.sum()),
        tokens_per_second=float(row.score.tokens.sum()) / row.score_seconds,
        bits_per_weight=row.bits_per_weight,
        seconds=row.quantize_seconds + row.score_seconds,
        model_bytes=row.model_bytes,
        setting=row.setting,
        plan=row.plan_settings,
        nll_above_full_precision=None if row.difference is None else nats_interval(row.difference),
        kl=kl_interval(row.kl),
        flips=flips_interval(row.flips),
    )


def evaluation_table(rows: Iterable[PrintedRow]) -> Table:
    """The rows for people."""
    from hpo.verdict.words import margin_text

    table = make_table(
        "data", "method", "perplexity", "NLL above full", "KL", "flips %", "bits/weight", "MB", "tokens/s", "s"
    )
    for row in rows:
        gap = row.nll_above_full_precision
        table.add_row(
            row.dataset,
            row.method,
            f"{row.perplexity:.3f}",
            f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" if gap else "-",
            margin_text(row.kl, 4),
            margin_text(row.flips, 1),
            "-" if row.bits_per_weight is None else f"{row.bits_per_weight:.3f}",
            f"{row.model_bytes / 1e6:.1f}",
            f"{row.tokens_per_second:.0f}",
            f"{row.seconds:.1f}",
        )
    return table


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
