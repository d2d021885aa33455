"""From the setting of a trial to the plan that it stands for.

Responsible for which sensitivities plans are made from: those of one recipe for a whole study, so that a trial costs no
more than a uniform one. What each site alone loses is measured once, and its losses once for every grid; trials differ
in how they quantize, and in their budget. May assume that the bench was laid out, and that the study's space suits it.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace

import optuna

from hpo.search.proposal import presets
from hpo.space.space import Space
from hpo.study.attributes import PREDICTED_KL, SITE_DAMAGES
from hpo.study.record import Measured, StudyRecord
from objectives.budget import Budget, size_limits
from objectives.progress import Progress
from objectives.results import load_result
from objectives.sensitivity import Sensitivities, measure_sensitivities, site_settings
from objectives.trial import Bench
from quant.allocation import Allocation, Allocator
from quant.plan import Plan
from quant.setting import Setting
from storage.errors import DamagedEntryError
from storage.results import ResultStore


@dataclass(frozen=True, kw_only=True)
class Planning:
    """How one study makes plans.

    Attributes:
        bench: Model, roles, calibration.
        store: Where what is measured for it is kept.
        space: Of the study.
        progress: Told how far the measuring is.
    """

    bench: Bench
    store: ResultStore
    space: Space
    progress: Progress
    _solved: dict[bool, tuple[Sensitivities, Allocator]] = field(default_factory=dict, repr=False)

    def plan(self, setting: Setting) -> Plan:
        """Return the plan of a setting: itself for every Linear, or what is best under its budget.

        Raises:
            InputError: If its recipe cannot be allocated bits.
            RunError: If sites cannot be measured.
        """
        if not setting.is_allocated:
            return Plan.uniform(setting)
        sensitivities, _ = self.solved(setting.symmetric)
        return sensitivities.plan(self._allocation(setting).choices, setting.recipe)

    def predicted_kl(self, setting: Setting) -> float:
        """Return what a setting's plan is predicted to diverge, nats per token, by the recipe that was measured."""
        return self._allocation(setting).damage

    def site_damages(self, setting: Setting) -> dict[str, float]:
        """Return what each site of a setting's plan is predicted to lose, nats per token, by each of its Linears."""
        plan, (sensitivities, _) = self.plan(setting), self.solved(setting.symmetric)
        return {
            linear: row.damage(site_settings(setting.recipe, row.site).index(plan.setting_for(linear)))
            for row in sensitivities.sites
            for linear in row.site.linears
        }

    def _allocation(self, setting: Setting) -> Allocation:
        _, allocator = self.solved(setting.symmetric)
        smallest, _ = size_limits(self.bench, setting.recipe)
        budget = Budget(bits_per_weight=setting.bit_budget)
        return allocator.at(allocator.smallest + budget.spare(smallest))

    def solved(self, symmetric: bool) -> tuple[Sensitivities, Allocator]:
        """Return what sites lose on a grid, and every allocation of it, measured and solved when first asked for."""
        if symmetric not in self._solved:
            measured = measure_sensitivities(self.bench, probe(self.space, symmetric), self.store, self.progress)
            self._solved[symmetric] = measured, Allocator(measured.options)
        return self._solved[symmetric]


def kept_plan(measured: Measured, store: ResultStore) -> Plan | None:
    """Return the plan by which something was measured under a budget; None where it was not kept here."""
    allocated = measured.setting is not None and measured.setting.is_allocated
    if allocated and measured.result is not None and measured.result in store:
        with suppress(DamagedEntryError):
            return load_result(store, measured.result).plan
    return None


def plan_of(study: StudyRecord, measured: Measured, bench: Bench, store: ResultStore, progress: Progress) -> Plan:
    """Return the plan by which a study measured something, as it was kept; made again where it was not kept here.

    Raises:
        InputError: If its recipe cannot be allocated bits.
        RunError: If sites cannot be measured.
    """
    assert measured.setting is not None
    kept = kept_plan(measured, store)
    if kept is not None:
        return kept
    planning = Planning(bench=bench, store=store, space=study.contract.space, progress=progress)
    return planning.plan(measured.setting)


def keep_predictions(study: optuna.Study, record: StudyRecord, planning: Planning) -> None:
    """Keep with a study what the plans of its completed trials were predicted to lose; nothing where there are none."""
    settings = {trial.number: trial.setting for trial in record.complete if trial.setting is not None}
    allocated = {str(number): setting for number, setting in settings.items() if setting.is_allocated}
    if not allocated:
        return
    study.set_user_attr(PREDICTED_KL, {number: planning.predicted_kl(setting) for number, setting in allocated.items()})
    if record.best is not None and str(record.best.number) in allocated:
        study.set_user_attr(SITE_DAMAGES, planning.site_damages(allocated[str(record.best.number)]))


def probe(space: Space, symmetric: bool) -> Setting:
    """The recipe of a space by which its sites are measured: its last preset, which is the one known to be good."""
    _, setting = presets(space)[-1]
    return replace(setting.recipe, symmetric=symmetric)
