"""`quantize`: write a quantized model directory.

Responsible for the flags and the tables of this command.
"""

from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hpo.commands.command import Command
from hpo.commands.flags import (
    METHOD_HELP,
    add_options,
    add_plan_flags,
    add_setting_flags,
    add_storage_flag,
    given,
    options_of,
)
from hpo.commands.output import make_table, output
from hpo.commands.settings import given_budget, one_plan
from hpo.commands.stores import opened_study, paths_of
from hpo.study.options import BenchOptions, RefineOptions
from objectives.errors import InputError
from objectives.export.formats import DEFAULT_FORMAT, FORMATS, formats_help
from storage.typed_json import encode

if TYPE_CHECKING:
    from hpo.deploy.deploy import Chosen, Written
    from objectives.evaluation import BenchPlan
    from objectives.export.manifest import Manifest
    from storage.paths import Paths

ALLOCATED = "its recipe is used, and bits are allocated under the budget: no trial of the study measured that"
UNPROVEN = (
    f"{DEFAULT_FORMAT} weights are of full size, and no fresh process has proven them; to ship the model, give another "
    f"--format: {', '.join(name for name in FORMATS if name != DEFAULT_FORMAT)}"
)
EXAMPLES = """examples:
  %(prog)s --study mine --format compressed-tensors --output-dir ./best-int4    recommended, as INT4 that vLLM loads
  %(prog)s --method gw-awq+range+alpha+gptq --asymmetric --group-size 64 --format compressed-tensors --output-dir ./int4
  %(prog)s --model org/name --calib-data wikitext2 --method gw-awq+full+range+alpha+gptq --symmetric --group-size 64 \\
      --format gptq --output-dir ./gptq
  %(prog)s --study mine --output-dir ./best       the same, full-size (dense), for experiments
  %(prog)s --study mine --format awq,gptq --output-dir ./best    into ./best/awq and ./best/gptq
  %(prog)s --study mine --format awq --refine --output-dir ./refined    codes, scales, norms and biases tuned
  %(prog)s --method gw-awq+full+range+gptq --budget 4.4 --format compressed-tensors --output-dir ./4.4
  %(prog)s --study mine --budget 4.3 --format compressed-tensors --output-dir ./4.3    of a front, as it was measured
  %(prog)s --plan plan.csv --output-dir ./mine    a setting for each Linear
  %(prog)s --study mine --trial 17 --storage sqlite:///study.db --output-dir ./trial-17
"""


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command; what is not given of model and text comes from the study, where there is one."""
    add_options(parser, BenchOptions, "model", "text")
    add_setting_flags(parser)
    add_options(parser, RefineOptions, "refining")
    group = parser.add_argument_group("what to write")
    group.add_argument("--method", default=SUPPRESS, help=METHOD_HELP)
    group.add_argument(
        "--study",
        metavar="S",
        help="quantize as this study recommends, or as --trial says; model and text are the study's",
    )
    group.add_argument(
        "--trial",
        metavar="N|best|recommended",
        help="recommended (default), best (lowest perplexity or KL, whatever its size) or a number",
    )
    add_plan_flags(group)
    add_storage_flag(group)
    group.add_argument("--format", metavar="F[,F...]", help=f"one or several of {formats_help()}")
    group.add_argument(
        "--tensor-parallel",
        metavar="N",
        type=int,
        default=1,
        help="refuse what a runtime could not split over N devices (default 1)",
    )
    group.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        required=True,
        help="new or empty directory; of several formats, each gets a directory of its name in it",
    )


def run(parsed: Namespace) -> None:
    """Write the model and print what it became."""
    from hpo.deploy.deploy import deploy
    from hpo.deploy.refining import make_refining
    from hpo.terminal import progress_display
    from objectives.model.memory import keep_freed_memory

    keep_freed_memory()
    paths = paths_of(parsed)
    chosen, plan, notes = what_to_write(parsed, paths)
    refining = make_refining(options_of(parsed, RefineOptions), plan.seed)
    formats = DEFAULT_FORMAT if parsed.format is None else parsed.format
    directories = directories_of(formats, parsed.output_dir)
    with progress_display(parsed.quiet) as progress:
        written = deploy(plan, chosen, directories, paths, progress, refining, parsed.tensor_parallel)
    notes = list(dict.fromkeys([*notes, *(note for model in written.values() for note in model.notes)]))
    if parsed.format is None:
        # Whoever names it knows what it is.
        notes.append(UNPROVEN)
    facts = {name: facts_of(model, notes) for name, model in written.items()}
    [first, *others] = written.values()
    if others:
        output(parsed, {"formats": facts}, notes, *several_tables(list(written.values())))
    else:
        output(parsed, facts[formats.strip()], notes, written_table(first))


def directories_of(formats: str, directory: Path) -> dict[str, Path]:
    """The directory of every format in a list: the one that was given, or one in it for each of several.

    Raises:
        InputError: If a format is named twice, or none is.
    """
    names = [name.strip() for name in formats.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise InputError(f"--format {formats} has to name formats, each once; choose of {', '.join(FORMATS)}")
    return {name: directory if len(names) == 1 else directory / name for name in names}


def facts_of(written: "Written", notes: list[str]) -> dict[str, Any]:
    """What a program reads of a written model."""
    manifest = encode(written.manifest)
    return {"directory": str(written.directory), **manifest, "disk_bytes": written.disk_bytes, "notes": notes}


def what_to_write(parsed: Namespace, paths: "Paths") -> tuple["Chosen", "BenchPlan", list[str]]:
    """What is quantized, with which model and text, and what a person should know of it."""
    from hpo.deploy.choosing import choose, front_member
    from hpo.deploy.deploy import Chosen
    from hpo.study.bench import bench_plan, stored_bench_plan
    from hpo.study.choosing import RECOMMENDED
    from hpo.verdict.snapshot import read_ranked_if_possible
    from quant.plan import Plan

    budget, own = given_budget(parsed), one_plan(parsed)
    if own is not None:
        return Chosen(plan=own, budget=budget), bench_plan(options_of(parsed, BenchOptions), own.n_calib), []
    with opened_study(parsed) as stored:
        study = read_ranked_if_possible(stored, paths)
    plan = stored_bench_plan(study.record.contract, **given(parsed, BenchOptions))
    if budget is not None and parsed.trial is None and study.record.contract.space.is_front:
        measured, notes = front_member(study, budget)
        return Chosen.of(study, measured), plan, notes
    measured, notes = choose(study, parsed.trial or RECOMMENDED)
    assert measured.setting is not None
    if budget is None:
        return Chosen.of(study, measured), plan, notes
    return Chosen(plan=Plan.uniform(measured.setting.recipe), budget=budget), plan, [*notes, ALLOCATED]


def written_table(written: "Written") -> Table:
    """What a person reads of a written model."""
    manifest, table = written.manifest, make_table("", "")
    for name, text in (
        ("written to", str(written.directory)),
        ("method", written.plan.label()),
        ("bits per weight", f"{manifest.bits_per_weight:.3f}"),
        *refinement_rows(manifest),
        *proof_rows(manifest),
        ("MB when packed", f"{manifest.model_bytes / 1e6:.2f}"),
        (f"MB on disk, {manifest.weights}", f"{written.disk_bytes / 1e6:.2f}"),
    ):
        table.add_row(name, text)
    return table


def refinement_rows(manifest: "Manifest") -> list[tuple[str, str]]:
    """What refining changed, on text that is held back and on text that had no part in it."""
    refinement = manifest.refinement
    if refinement is None:
        return []
    held_back = f"{refinement.before:.4f} before, {refinement.after:.4f} after"
    return [
        ("KL, held back from refining", f"{held_back} {refinement.kept_step} of {refinement.steps} steps"),
        *((f"KL, {gain.source} ({gain.part})", f"{gain.kl}: {gain.kl.verdict}") for gain in refinement.gains),
    ]


def several_tables(written: Sequence["Written"]) -> list[Table]:
    """What a person reads of one model in several formats: what it is, and a row for every format."""
    manifest, about = written[0].manifest, make_table("", "")
    about.add_row("method", written[0].plan.label())
    about.add_row("bits per weight", f"{manifest.bits_per_weight:.3f}")
    proofs = [model.manifest.proof for model in written if model.manifest.proof is not None]
    for proof in proofs[:1]:
        about.add_row("perplexity, measured", f"{proof.measured:.4f} on {proof.sequences} sequences of {proof.source}")
        about.add_row("perplexity, unfolded", f"{proof.unfolded:.4f} with every folded scale undone")
    rows = make_table("format", "directory", "MB on disk", "bits per weight, in the file", "perplexity", "read by")
    for model in written:
        bits, own = model.manifest.stored_bits_per_weight, model.manifest.proof
        scored = ("-", "-") if own is None else (f"{own.packed:.4f}", own.reader)
        size = f"{model.disk_bytes / 1e6:.2f}"
        rows.add_row(
            model.manifest.weights, str(model.directory), size, "-" if bits is None else f"{bits:.3f}", *scored
        )
    return [about, rows]


def proof_rows(manifest: "Manifest") -> list[tuple[str, str]]:
    """What only a packed model has: bits in its file, and what it scores there against what was measured."""
    proof = manifest.proof
    if proof is None:
        return []
    return [
        ("bits per weight, in the file", f"{manifest.stored_bits_per_weight:.3f}"),
        ("perplexity, measured", f"{proof.measured:.4f} on {proof.sequences} sequences of {proof.source}"),
        ("perplexity, unfolded", f"{proof.unfolded:.4f} with every folded scale undone"),
        ("perplexity, reloaded", f"{proof.packed:.4f} in a fresh process, by {proof.reader}"),
    ]


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
