"""What a report shows of plans, as numbers: what the best one stores and loses where, the front as it grew, its steps.

Responsible for what is drawn and tabulated of a budget or a front, without a word on how. May assume a ranked study.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpo.report.additivity import Prediction, predictions
from hpo.report.layer_map import LayerMap, map_layers
from hpo.report.tables import Table
from hpo.search.acquisition import nats_of
from hpo.search.front import hypervolume, least
from hpo.study.record import StudyRecord
from hpo.verdict.ranking import Ranked, frontier
from hpo.verdict.snapshot import Study
from objectives.quantized_blocks import LayerResult
from objectives.results import load_result
from quant.plan import Plan
from quant.setting import Setting
from storage.errors import DamagedEntryError
from storage.results import ResultStore

SCALE_BITS = 16


@dataclass(frozen=True, kw_only=True)
class PlanData:
    """What is drawn of plans.

    Attributes:
        name: Of the best trial, whose plan is shown.
        bits: Bits per weight that each of its Linears is stored in; None where its result is not kept here.
        damages: Nats per token that the site of each Linear is predicted to lose; None where that is not known.
        volume: Trials by number, with the hypervolume of the front after each; empty where there is no front.
        predictions: Plans whose divergence was predicted and measured.
    """

    name: str
    bits: LayerMap | None = None
    damages: LayerMap | None = None
    volume: tuple[tuple[int, float], ...] = ()
    predictions: tuple[Prediction, ...] = ()


def plan_data(study: Study) -> PlanData | None:
    """Collect what is known of the plans of a study; None where all Linears are stored alike."""
    record = study.record
    best = record.best
    if best is None or best.setting is None or not best.setting.is_allocated:
        return None
    plan, layers = _kept(best.result, study.store)
    volume = tuple(_volume(record)) if record.contract.space.is_front else ()
    if plan is None:
        return PlanData(name=best.full_name, volume=volume, predictions=predictions(study))
    damages = record.site_damages
    return PlanData(
        name=best.full_name,
        bits=map_layers(layers, lambda layer: bits_of(plan.setting_for(layer.name))),
        damages=map_layers(layers, lambda layer: damages.get(layer.name)) if damages else None,
        volume=volume,
        predictions=predictions(study),
    )


def bits_of(setting: Setting) -> float:
    """Return what a setting stores a weight in, scales and zero points included, of a whole group."""
    if setting.is_unquantized or setting.definition.per_row:
        return float(setting.bits)
    return setting.bits + (SCALE_BITS + (0 if setting.symmetric else setting.bits)) / setting.group_size


def step_tables(study: Study) -> list[Table]:
    """Tabulate what each step along the front costs; empty where a study seeks no front, or has one member."""
    front = frontier(study.rankings) if study.record.contract.space.is_front else []
    rows = [_step(study.record, *step) for step in pairwise(front)]
    if not rows:
        return []
    unit = study.record.objective.unit
    columns = ("from", "to", "bits more", "MB more", f"change, {unit} [95 %]", "for one more bit", "for one MB less")
    note = "Changes are paired, on the text that the study was tuned on; each is of one step, not of the whole front."
    return [
        Table(title="What one more bit, or one MB less, costs", columns=columns, rows=tuple(rows), words=2, note=note)
    ]


def _step(record: StudyRecord, small: Ranked, large: Ranked) -> tuple[str, ...]:
    objective, sizes = record.objective, (small.measured, large.measured)
    bits = (sizes[1].bits_per_weight or 0.0) - (sizes[0].bits_per_weight or 0.0)
    megabytes = ((sizes[1].model_bytes or 0) - (sizes[0].model_bytes or 0)) / 1e6
    change = objective.change(objective.difference(large.score, small.score))
    return (
        sizes[0].full_name,
        sizes[1].full_name,
        f"{bits:.3f}",
        f"{megabytes:.3f}",
        objective.numbers_text(change),
        f"{change.value / bits:+.4f}" if bits else "–",
        f"{-change.value / megabytes:+.4f}" if megabytes else "–",
    )


def _kept(result: str | None, store: ResultStore) -> tuple[Plan | None, Sequence[LayerResult]]:
    try:
        kept = None if result is None else load_result(store, result)
    except DamagedEntryError:
        kept = None
    return (None, ()) if kept is None else (kept.plan, kept.layers)


def _volume(record: StudyRecord) -> list[tuple[int, float]]:
    """Follow the hypervolume, in nats per token times bits, by the trials that were measured to the end."""
    budgets = record.contract.space.numbers("bit_budget")
    width = (budgets[-1] - budgets[0]) / max(1, len(budgets) - 1)
    trials = sorted(record.complete, key=lambda trial: trial.number)
    worst = max(map(nats_of, trials), default=0.0)
    seen = [[(trial.size_class, nats_of(trial)) for trial in trials[: place + 1]] for place, _ in enumerate(trials)]
    volumes = [width * hypervolume(budgets, least(values), worst) for values in seen]
    return [(trial.number, volume) for trial, volume in zip(trials, volumes, strict=True)]
