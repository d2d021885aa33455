"""The main job, straight through: lay out, create or join the study, work, rank, confirm, take apart, record.

Responsible for the order of things and for fitting the space to the model and the text. May assume that plans were
validated when they were made.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from optuna.storages import BaseStorage

from hpo.deploy.refined_winner import confirm_refined, lay_out_to_refine
from hpo.deploy.refining import refine_flags
from hpo.plan import StudyPlan, search_mode
from hpo.search.proposal import presets
from hpo.search.pruners.registry import Pruning
from hpo.search.stopping import convergence, noise_of
from hpo.space.dimension import Value
from hpo.space.loadable import loadable
from hpo.space.size_class import SIZE_CLASS_FIELDS
from hpo.space.space import Space
from hpo.study.attributes import CONFIRMATION, REFINED, SEARCH, WATERFALL
from hpo.study.events import Listener, Notice
from hpo.study.owner import Owner
from hpo.study.record import read_study
from hpo.study.searching import require_same_runtime
from hpo.verdict.confirmation import confirm, front_members
from hpo.verdict.snapshot import Study, ranked, read
from hpo.workers.interrupts import Interrupts
from hpo.workers.measuring import measure_steps
from hpo.workers.planning import Planning, keep_predictions, probe
from hpo.workers.preparation import make_contract, open_study, prepare
from hpo.workers.queue import Queue
from hpo.workers.worker import Budget, Worker
from objectives.budget import Budget as Size
from objectives.budget import require_affordable, size_limits
from objectives.errors import InputError, RunError
from objectives.evaluation import LaidOut
from objectives.progress import Progress
from objectives.quantization import model_size
from objectives.results import pin
from objectives.suitability import divides, group_sizes_text
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore
from storage.typed_json import encode

TYPED = 3
"""Decimals of a budget in bits per weight."""
UNSUITABLE = "it does not divide the input widths of this model"


def optimize(
    plan: StudyPlan,
    storage: BaseStorage,
    paths: Paths,
    budget: Budget,
    listen: Listener,
    progress: Progress,
    name: str | None = None,
) -> Study:
    """Begin, resume or join a study and work on it, as the worker `name`, until the budget is used up.

    Raises:
        InputError: If the plan does not suit the model, the text or the existing study.
        RunError: If trials fail one after the other.
        StorageError: If disk or database refuse.
        KeyboardInterrupt: On SIGINT or SIGTERM; the running trial is back in the queue.
    """
    store = ResultStore(paths.results)
    laid_out, learned_from = lay_out_to_refine(plan.bench, plan.refining, paths, progress)
    bench, (tuning, *held_out) = laid_out.bench, laid_out.data
    space = fit(plan, laid_out, listen)
    texts = list(zip(plan.bench.data, laid_out.data, strict=True))
    contract = make_contract(
        bench.model, bench.blocks, space, bench.calibration, texts, plan.bench.seed, plan.objective
    )
    study = open_study(storage, plan.name, contract)
    if SEARCH in study.user_attrs:
        require_same_runtime(read_study(study).search, search_mode(plan), plan.name)
    else:
        study.set_user_attr(SEARCH, encode(search_mode(plan)))
    pin(store, tuning)
    owner = Owner.this(str(bench.model.device), name)
    queue = Queue(study=study, storage=storage, space=space, owner=owner)
    interrupts = Interrupts()
    progress = interrupts.checked(progress)
    planning = Planning(bench=bench, store=store, space=space, progress=progress)
    with interrupts.watched():
        prepare(study, queue, bench, store, tuning, progress)
        worker = Worker(
            queue=queue,
            store=store,
            bench=bench,
            tuning=tuning,
            sampler=plan.sampler,
            pruning=Pruning(name="none") if plan.presets_only else plan.pruning,
            objective=plan.objective,
            stopping=plan.stopping,
            seed=plan.bench.seed,
            listen=listen,
            progress=progress,
            trial_timeout=plan.trial_timeout,
            interrupts=interrupts,
            planned=planning.plan,
        )
        worker.work(replace(budget, trials=len(presets(space))) if plan.presets_only else budget)
        snapshot = read(study, paths)
        keep_predictions(study, snapshot.record, planning)
        if not (plan.presets_only or plan.stopping.converged):
            noise = noise_of(snapshot.record, snapshot.scores)
            converged = convergence(space, snapshot.record, noise, plan.bench.seed)
            if converged is not None:
                listen(Notice(text=f"{converged}; --until converged would have ended here or before"))
        if snapshot.lead is not None and held_out and not plan.presets_only:
            members = front_members(snapshot.rankings, snapshot.lead) if space.is_front else ()
            confirmation = confirm(bench, store, snapshot.lead, held_out, progress, planning.plan, members)
            study.set_user_attr(CONFIRMATION, encode(confirmation))
            confirmed = ranked(replace(snapshot.record, confirmation=confirmation), snapshot.scores)
            chosen = recommended_setting(confirmed)
            steps = measure_steps(bench, store, snapshot.record, chosen, tuning, progress, planning.plan)
            study.set_user_attr(WATERFALL, encode(steps))
            if plan.refining is not None and learned_from is not None:
                try:
                    refined = confirm_refined(
                        bench, store, confirmed, plan.refining, learned_from, held_out, progress, planning.plan
                    )
                except (InputError, RunError) as error:
                    # The study is done, and its report is not to be lost for this.
                    listen(Notice(text=f"not refined: {error}"))
                else:
                    study.set_user_attr(REFINED, encode(refined))
                    again = replace(snapshot.record.search, **refine_flags(plan.refining))
                    study.set_user_attr(SEARCH, encode(again))
            # Other workers may have gone on meanwhile.
            snapshot = read(study, paths)
    return replace(snapshot, notes=laid_out.notes)


def recommended_setting(snapshot: Study) -> Setting:
    """What a study with a complete trial recommends; full precision never is."""
    chosen = snapshot.recommendation
    assert chosen is not None
    assert chosen.measured.setting is not None
    return chosen.measured.setting


def fit(plan: StudyPlan, laid_out: LaidOut, listen: Listener) -> Space:
    """Fit the plan's space: leave out what does not suit model, text, runtime or the bits that are allowed."""
    bench, space = laid_out.bench, plan.space
    if plan.deployment is not None:
        space, notices = loadable(space, plan.deployment, bench, allocated=bool(plan.sizes))
        for notice in notices:
            listen(Notice(text=notice))
    if plan.sizes:
        space = _under(space, bench, plan.sizes, listen)
    suitable = [size for size in space.sizes("group_size") if bench.allow_partial_groups or divides(bench.blocks, size)]
    unsuitable = UNSUITABLE if suitable else f"{UNSUITABLE}, as {group_sizes_text(bench.blocks)} would"
    samples = len(bench.calibration.text)
    limits: list[tuple[str, list[Value], str]] = [
        ("group_size", [*suitable], unsuitable),
        ("n_calib", [n for n in space.numbers("n_calib") if n <= samples], f"there is text for {samples} samples"),
    ]
    for name, allowed, reason in limits:
        space = _limited(space, name, allowed, reason, listen)
    if plan.max_bits is not None:
        space = _within_bits(space, bench, plan.max_bits, listen)
    if plan.presets_only:
        for name in SIZE_CLASS_FIELDS:
            used = {getattr(setting, name) for _, setting in presets(space)}
            space, _ = space.limited(name, used, "no preset uses it")
    return space


def _under(space: Space, bench: Bench, sizes: Sequence[Size], listen: Listener) -> Space:
    """Make it a space of plans, and leave out grids whose smallest plan is above the smallest size.

    Raises:
        InputError: If a size is below the smallest or above the largest plan of every grid, or the sizes are one.
    """
    grids = {bool(symmetric): probe(space, bool(symmetric)) for symmetric in space.values("symmetric")}
    limits = {symmetric: size_limits(bench, recipe) for symmetric, recipe in grids.items()}
    smallest = min(limits, key=lambda symmetric: limits[symmetric][0].model_bytes)
    for size in sizes:
        require_affordable(bench, grids[smallest], size)
    # In what can be typed; rounded down, so that what is promised is held.
    bits = [math.floor(size.bits(limits[smallest][0]) * 10**TYPED + 1e-6) / 10**TYPED for size in sizes]
    if len(set(bits)) < len(sizes) or bits != sorted(bits):
        raise InputError(f"a front from {sizes[0]} to {sizes[-1]} has no two sizes; give the smaller one first")
    space = space.under(bits[0], bits[-1])
    least = min(space.numbers("bit_budget"))
    fitting = [symmetric for symmetric, (small, _) in limits.items() if small.bits_per_weight <= least]
    needed = max(small.bits_per_weight for small, _ in limits.values())
    reason = f"its plans take {needed:.3f} bits per weight or more, and {least:g} are allowed"
    return _limited(space, "symmetric", fitting, reason, listen)


def _within_bits(space: Space, bench: Bench, most: float, listen: Listener) -> Space:
    """Leave out what costs more bits than are allowed: grids on which nothing fits, and sizes that do not fit on all.

    Raises:
        InputError: If nothing is left, with the least that settings cost.
    """
    names = [name for name in SIZE_CLASS_FIELDS if name in space.reads]
    combinations = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(space.values(name) for name in names))
    ]
    settings = [replace(space.base, **values) for values in combinations]  # type: ignore[arg-type]
    costs = [model_size(bench.model, bench.blocks, Plan.uniform(setting)).bits_per_weight for setting in settings]
    fits = [cost <= most for cost in costs]
    too_large = f"it costs more than {most:g} bits per weight"
    if not any(fits):
        least = math.ceil(min(costs) * 10**TYPED) / 10**TYPED
        raise InputError(f"{space.base.method}: {too_large}, {least:g} at the least; give a larger --max-bits")
    grids = {values["symmetric"] for values, fit in zip(combinations, fits, strict=True) if fit}
    space = _limited(space, "symmetric", grids, too_large, listen)
    for name in [name for name in names if name != "symmetric"]:
        above = {
            values[name]
            for values, fit in zip(combinations, fits, strict=True)
            if not fit and values["symmetric"] in grids
        }
        allowed = [value for value in space.values(name) if value not in above]
        space = _limited(space, name, allowed, too_large, listen)
    return space


def _limited(space: Space, name: str, allowed: Iterable[Value], reason: str, listen: Listener) -> Space:
    """Limit a space, and say what it lost."""
    space, notice = space.limited(name, allowed, reason)
    if notice:
        listen(Notice(text=notice))
    return space
