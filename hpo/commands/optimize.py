"""`optimize`: begin, resume or join a study.

Responsible for the flags of this command, and for who works: this process, or workers that it starts.
"""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from hpo.commands.command import Command
from hpo.commands.flags import (
    ORIGINAL,
    SPACE_WORDS,
    add_group,
    add_options,
    add_report_flag,
    add_space_flags,
    add_study_flags,
    given_parameters,
    options_of,
)
from hpo.commands.ranking import conclude, report_directory
from hpo.commands.settings import OWN_GROUP_SIZES
from hpo.commands.stores import paths_of, storage_url
from hpo.study.options import BenchOptions, RefineOptions, SearchOptions, WorkerOptions
from objectives.errors import InputError
from quant.parameters import PARAMETERS, SEARCHED

if TYPE_CHECKING:
    from hpo.launch.launch import Fleet
    from hpo.space.space import Space
    from hpo.verdict.snapshot import Study

EXAMPLES = """examples:
  %(prog)s                                        a study of the bundled model
  %(prog)s --trials 100                           continue it
  %(prog)s --model org/name --calib-data wikitext2 --eval-data c4 --group-size 64,128 --trials 60 --study mine
  %(prog)s --model ./dir --eval-data eval.txt --beta 0.1..0.6 --tau 2 --n-calib 128 --storage sqlite:///study.db
  %(prog)s --method praq-mixed --keep-ratio 0.05..0.2 --tau-risk=-5..-1 --beta-risk 3
  %(prog)s --presets-only --json presets.json     the presets and the references, ranked
  %(prog)s --budget 4.3                           at most 4.3 bits per weight; 110MB: of the whole model
  %(prog)s --front 4.2..5 --objective kl          the best plan of every size between two
  %(prog)s --devices auto --trials 200 --storage @/run/secrets/storage     one worker per GPU
"""
FIXED = tuple(name for name in PARAMETERS if name not in SEARCHED)


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    add_options(parser, BenchOptions, "model", "text", "confirmation")
    add_options(parser, SearchOptions, "search")
    add_options(parser, RefineOptions, "refining")
    add_options(parser, WorkerOptions, "workers")
    space = parser.add_argument_group("space", SPACE_WORDS)
    add_group(space, SearchOptions, "space")
    add_space_flags(space)
    add_report_flag(add_study_flags(parser))


def run(parsed: Namespace) -> None:
    """Work on the study, and report it."""
    from objectives.model.memory import keep_freed_memory

    keep_freed_memory()
    search = options_of(parsed, SearchOptions)
    study = worked_on(parsed, search)
    conclude(parsed, study, None if search.presets_only else report_directory(parsed, study))


def worked_on(parsed: Namespace, search: SearchOptions) -> "Study":
    """The study after its budget is used up."""
    from hpo.optimize import optimize
    from hpo.plan import plan_study
    from hpo.study.events import Notice
    from hpo.terminal import study_display
    from hpo.workers.worker import Budget
    from storage.studies.opening import limits, open_storage, storage_errors

    paths, bench = paths_of(parsed), options_of(parsed, BenchOptions)
    refine = options_of(parsed, RefineOptions)
    plan = plan_study(bench, search, searched_space(parsed), parsed.study, refine)
    budget = Budget(
        trials=search.trials, deadline=monotonic() + (math.inf if search.timeout is None else search.timeout)
    )
    workers = options_of(parsed, WorkerOptions)
    url, fleet = storage_url(parsed), fleet_of(workers, bench.device)
    with storage_errors(url), study_display(parsed.quiet, parsed.json == "-") as (listen, progress):
        for line in limits(url):
            listen(Notice(text=f"note: {line}"))
        if fleet is None:
            return optimize(plan, open_storage(url), paths, budget, listen, progress, workers.worker_name)
        from hpo.study.finding import find_study
        from hpo.together import optimize_together
        from hpo.verdict.snapshot import read

        notes = optimize_together(plan, url, paths, fleet, budget, listen)
        study = read(find_study(open_storage(url), plan.name), paths)
        return replace(study, notes=[*study.notes, *notes])


def searched_space(parsed: Namespace) -> "Space":
    """The space that flags and a file describe; flags win, and where nothing is said the ingredients are searched."""
    from hpo.space.given import read_space_file
    from hpo.space.space import INGREDIENTS, make_space
    from quant.recipes import recipe_fields
    from quant.setting import Setting

    values = {} if parsed.space == ORIGINAL else dict(INGREDIENTS)
    if parsed.space not in (None, ORIGINAL):
        values |= read_space_file(Path(parsed.space))
    given = recipe_fields(given_parameters(parsed))
    if "group_size" in {**values, **given} and (hasattr(parsed, "budget") or hasattr(parsed, "front")):
        raise InputError(OWN_GROUP_SIZES)
    fixed = Setting(**{name: value for name, value in given.items() if name in FIXED})
    return make_space(fixed, {**values, **{name: value for name, value in given.items() if name in SEARCHED}})


def fleet_of(workers: WorkerOptions, device: str) -> "Fleet | None":
    """The workers to start; None where this process is the worker."""
    from hpo.launch.launch import Fleet

    wanted = (workers.workers, workers.devices, workers.scheduler)
    if wanted == (None, None, None) and workers.backend == WorkerOptions.backend:
        return None
    return Fleet(
        workers=workers.workers,
        devices=workers.devices or device,
        backend=workers.backend,
        scheduler=workers.scheduler,
    )


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
