"""What a study is to be, from what a person says of it.

Responsible for what decides about a study before anything is read; command line and workers share it. May assume that
spaces and benches check their own values.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hpo.deploy.refining import Refining, make_refining, refine_flags
from hpo.search.pruners.registry import Pruning
from hpo.search.samplers.registry import SAMPLERS
from hpo.search.stopping import Stopping
from hpo.space.loadable import loadable
from hpo.space.space import Space
from hpo.study.bench import new_bench_plan
from hpo.study.contract import require_name
from hpo.study.objective import OBJECTIVES, PERPLEXITY, Objective
from hpo.study.options import BenchOptions, RefineOptions, SearchOptions
from hpo.study.searching import SearchMode
from objectives.budget import Budget, parse_budget
from objectives.errors import InputError
from objectives.evaluation import BenchPlan
from objectives.export.deployment import Deployment, find_deployment
from objectives.export.limits import unfit_for_budgets
from objectives.refinement.refine import require_refinable
from quant.plan import Plan

OF_ONE_VALUE = ("tpe",)
"""Samplers that cannot seek a front."""
OF_SEVERAL_VALUES = ("paired", "none")
"""Pruners that can be told of several values; Optuna's own refuse."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study is to be.

    Attributes:
        name: Of the study.
        bench: Model and text; its data are the tuning text and the confirmation texts, in this order.
        space: What is searched, before it is fitted to the model and the text.
        objective: What a trial's value is.
        sampler: Who proposes.
        pruning: Who gives trials up, and when.
        stopping: When the study has seen enough.
        sizes: What plans may take, each Linear the bits that count there: one budget, or both ends of a front; empty
            where all Linears are stored alike.
        max_bits: Most bits per weight a setting may cost; None for any.
        deployment: The runtime that has to load every setting; None for any.
        presets_only: Measure the presets and nothing else.
        trial_timeout: Seconds without progress after which a trial fails; None for any number.
        refining: How what is recommended is refined in the end; None where it is not.
    """

    name: str
    bench: BenchPlan
    space: Space
    objective: Objective = PERPLEXITY
    sampler: str = SearchOptions.sampler
    pruning: Pruning = field(default_factory=Pruning)
    stopping: Stopping = field(default_factory=Stopping)
    sizes: tuple[Budget, ...] = ()
    max_bits: float | None = None
    deployment: Deployment | None = None
    presets_only: bool = False
    trial_timeout: float | None = None
    refining: Refining | None = None

    def __post_init__(self) -> None:
        require_name(self.name)
        problems = []
        if self.refining is not None:
            require_refinable(Plan.uniform(self.space.base))
            if self.presets_only:
                problems.append("--presets-only confirms nothing that --refine could refine; leave one of them out")
        if self.deployment is not None:
            loadable(self.space, self.deployment)
        if self.sizes:
            problems += self._unfit_for_sizes()
        if self.sampler not in SAMPLERS:
            problems.append(f"sampler {self.sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
        if self.trial_timeout is not None and not self.trial_timeout > 0:
            problems.append(f"--trial-timeout {self.trial_timeout:g} is not above 0")
        if problems:
            raise InputError("; ".join(problems))

    def _unfit_for_sizes(self) -> list[str]:
        """List what cannot be together with a budget or a front."""
        problems = []
        if self.deployment is not None:
            given = f"--for {self.deployment.runtime}"
            problems += unfit_for_budgets(self.deployment.form.limits, given, "--for vllm")
        if self.max_bits is not None:
            problems.append("--max-bits is for settings that store all Linears alike; leave it out, or the budget")
        if len(self.sizes) > 1:
            if self.presets_only:
                problems.append("--presets-only searches nothing, and a front is searched; leave one of them out")
            if self.sampler in OF_ONE_VALUE:
                problems.append(f"--sampler {self.sampler} seeks one value; with --front give gp, random, qmc or grid")
            if self.pruning.name not in OF_SEVERAL_VALUES:
                problems.append(f"--pruner {self.pruning.name} compares one value; with --front give paired or none")
        return problems


def plan_study(
    bench: BenchOptions,
    search: SearchOptions,
    space: Space,
    name: str | None = None,
    refine: RefineOptions | None = None,
) -> StudyPlan:
    """Plan a study.

    Args:
        bench: Which model and text.
        search: How it searches.
        space: What it searches.
        name: Of the study; None for the model's.
        refine: How what it recommends is refined; None for not at all.

    Raises:
        InputError: If a value cannot be.
    """
    default_name = Path(bench.model).name + ("-presets" if search.presets_only else "")
    return StudyPlan(
        name=name or default_name,
        bench=new_bench_plan(bench, space.sizes("n_calib")),
        space=space,
        objective=chosen_objective(search.objective),
        sampler=search.sampler,
        pruning=Pruning(name=search.pruner, error=search.prune_error, first_look=search.first_look),
        stopping=Stopping(converged=search.until == "converged", patience=search.patience),
        sizes=given_sizes(search.budget, search.front),
        max_bits=search.max_bits,
        deployment=find_deployment(search.for_, search.tensor_parallel),
        presets_only=search.presets_only,
        trial_timeout=search.trial_timeout,
        refining=make_refining(refine or RefineOptions(), bench.seed),
    )


def given_sizes(budget: str | None, front: str | None) -> tuple[Budget, ...]:
    """Read what plans may take: nothing, one budget, or both ends of a front.

    Raises:
        InputError: If one cannot be read, both are given, or a front has no two ends.
    """
    if budget is not None and front is not None:
        raise InputError("--budget is one size and --front several; give one of them")
    if front is None:
        return () if budget is None else (parse_budget(budget),)
    ends = front.split("..")
    if len(ends) != 2:
        raise InputError(f"the front {front!r} has no two sizes; give both ends, such as 4.25..5 or 110MB..120MB")
    return tuple(map(parse_budget, ends))


def chosen_objective(name: str) -> Objective:
    """Find an objective by its name.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def search_mode(plan: StudyPlan) -> SearchMode:
    """Collect what the contract leaves open, to repeat the study."""
    return SearchMode(
        sampler=plan.sampler,
        pruner=plan.pruning.name,
        prune_error=plan.pruning.error,
        first_look=plan.pruning.first_look,
        until="converged" if plan.stopping.converged else None,
        patience=plan.stopping.patience,
        presets_only=plan.presets_only,
        for_=None if plan.deployment is None else plan.deployment.runtime,
        tensor_parallel=1 if plan.deployment is None else plan.deployment.devices,
        trust_remote_code=plan.bench.model.trust_remote_code,
        allow_partial=plan.bench.allow_partial,
        allow_partial_groups=plan.bench.allow_partial_groups,
        **({} if plan.refining is None else refine_flags(plan.refining)),
    )
