"""A study at a glance: what won, by how much, is it real, what mattered, where the model is hurt, what to do next.

Responsible for one short answer to each of these questions, from the same numbers as the figures. May assume a ranked
study; what is not known yet is said in the answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hpo.deploy.reproduce import quantize_command, repeat_command
from hpo.report.charts import ChartData
from hpo.report.layer_map import LayerMap
from hpo.space.size_class import SIZE_CLASS_FIELDS
from hpo.study.record import StudyRecord, TrialRecord
from hpo.verdict.ranking import SizeClassRanking, is_meaningful
from hpo.verdict.recommendation import Recommendation
from hpo.verdict.snapshot import Study
from hpo.verdict.words import number, setting_text, short_source, value_text
from quant.parameters import PARAMETERS
from storage.files import file_name

UNCONFIRMED = (
    "Nothing was confirmed on other text yet; the text that was searched on makes the best of many trials look better "
    "than it is."
)
NAMED = 3
EDGE, MATTERS = 0.02, 0.1
MORE_TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question, its answer in a sentence or two, and commands that a reader may copy."""

    question: str
    text: str
    commands: tuple[str, ...] = ()


def glance(study: Study, data: ChartData) -> list[Answer]:
    """Give all answers, in the order in which they are asked; none where nothing is measured yet."""
    record, lead, chosen = study.record, study.lead, study.recommendation
    if lead is None or chosen is None:
        return []
    return [
        Answer(question="What won", text=_winner(chosen)),
        Answer(question="By how much", text=_margin(lead, chosen, data)),
        Answer(question="Is it real", text=confirmed_text(study)),
        *_refining(record),
        Answer(question="What mattered", text=_importance(data)),
        Answer(question="Where the model is hurt", text=_hurt(data)),
        *_next(record, lead, data),
    ]


def confirmed_text(study: Study) -> str:
    """Say what other text shows, with short names of texts, and that it was asked at one size of equal bits alone."""
    confirmation = study.record.confirmation
    if confirmation is None:
        return UNCONFIRMED
    text = confirmation.sentence
    for dataset in confirmation.datasets:
        text = text.replace(dataset, short_source(dataset))
    if len(study.rankings) == 1 or confirmation.front:
        return text
    return f"{text} Held-out text was read for {confirmation.size_class} alone: the other sizes are not tested."


def _refining(record: StudyRecord) -> Iterator[Answer]:
    refined = record.refined
    if refined is not None:
        tuned = f"{refined.tuned[0].upper()}{refined.tuned[1:]}"
        yield Answer(question="What refining gained", text=f"{refined.sentence} {tuned}.")


def _winner(chosen: Recommendation) -> str:
    best = chosen.measured
    return (
        f"{best.name} ({setting_text(best)}): {value_text(chosen.objective, best)} at "
        f"{number(best.bits_per_weight)} bits per weight, {best.size_class}."
    )


def _margin(lead: SizeClassRanking, chosen: Recommendation, data: ChartData) -> str:
    trial, reference = lead.best_trial, lead.best_reference
    parts = []
    if trial is not None and reference is not None and trial.against is not None:
        parts.append(
            f"{trial.measured.name}, the best that was searched, is at "
            f"{lead.objective.against_text(trial.against, reference.score)} "
            f"against {reference.measured.name}, the best that was known, on tuning text"
        )
    full, best = data.verdict.full, chosen.measured
    value = lead.objective.of(best)
    if full is not None and value is not None:
        above = lead.objective.short_change(lead.objective.above(value, full)).removeprefix("+")
        parts.append(f"{best.name}, which is recommended, is {above} above full precision")
    return f"{'; '.join(parts)}." if parts else "There is nothing to compare it with."


def _importance(data: ChartData) -> str:
    shares = data.importances.deciding
    if shares.reason is not None:
        return shares.reason
    named = ", ".join(f"{name} {share.percent(0)}" for name, share in list(shares.mean.items())[:NAMED])
    text = f"{named} of the outcome with 90 % intervals; {shares.scope}, {shares.counted}."
    return text if shares.warning is None else f"{text} {shares.warning}"


def _hurt(data: ChartData) -> str:
    layer_map = data.layers.remaining
    if layer_map is None or not layer_map.numbers:
        reason = data.layers.reason or "nothing is lost"
        return f"Not known: {reason}."
    roles = sorted(_by_role(layer_map), key=lambda entry: -entry[1])[:NAMED]
    value, depth, role = max(_cells(layer_map))
    named = ", ".join(f"{name} {share:.0f} %" for name, share in roles)
    return f"Of the loss that the best trial leaves: {named}; most of it in {role} of block {depth} ({value:.1f} %)."


def _by_role(layer_map: LayerMap) -> Iterator[tuple[str, float]]:
    for role, row in zip(layer_map.roles, layer_map.values, strict=True):
        yield role, sum(value for value in row if value is not None)


def _cells(layer_map: LayerMap) -> Iterator[tuple[float, int, str]]:
    for role, row in zip(layer_map.roles, layer_map.values, strict=True):
        for depth, value in zip(layer_map.depths, row, strict=True):
            if value is not None:
                yield value, depth, role


def _next(record: StudyRecord, lead: SizeClassRanking, data: ChartData) -> Iterator[Answer]:
    chosen = lead.recommended.measured
    deploy = quantize_command(record, chosen, f"{file_name(record.name)}-4bit")
    yield Answer(question="What to do next", text=f"Write {chosen.name} as a model:", commands=(deploy,))
    advice = " ".join([*_edges(lead, data), *_openings(record, lead), f"{MORE_TRIALS} more trials:"])
    go_on = repeat_command(record, len(record.trials) + MORE_TRIALS)
    yield Answer(question="To search on", text=advice, commands=(go_on,))


def _edges(lead: SizeClassRanking, data: ChartData) -> Iterator[str]:
    """Yield advice on hyperparameters that matter, or may, and whose best value is the last one that was allowed."""
    trial = lead.best_trial
    if trial is None or trial.measured.setting is None:
        return
    mattered = data.importances.deciding.mean
    for axis in data.axes:
        share = mattered.get(axis.name)
        if axis.choices or axis.name in SIZE_CLASS_FIELDS or (share is not None and share.value < MATTERS):
            continue
        if axis.name not in trial.measured.setting.reads:
            continue
        value = float(getattr(trial.measured.setting, axis.name))
        for end, bound in (("lower", axis.low), ("upper", axis.high)):
            parameter = PARAMETERS[axis.name]
            if abs(axis.fraction(value) - axis.fraction(bound)) <= EDGE and bound not in (parameter.legal or ()):
                yield (
                    f"The best {axis.symbol} found, {value:g}, lies at the {end} end of its range: widen "
                    f"{parameter.flag} in a new study."
                )


def _openings(record: StudyRecord, lead: SizeClassRanking) -> Iterator[str]:
    trial = lead.best_trial
    against = lead.against
    if against is None or trial is None or not isinstance(trial.measured, TrialRecord):
        return
    objective, change = lead.objective, lead.objective.change(against)
    if not is_meaningful(against, objective) and change.low <= 0 <= change.high:
        reach = f"{(change.high - change.low) / 2:.{objective.change_digits}f} {objective.unit}"
        yield f"The interval is {reach} to either side: four times as many --eval-samples would halve it."
    if change.value > 0 and record.contract.space.fixed.get("symmetric"):
        yield "Zero points (--asymmetric) often gain more than scales do, for 4 bits a group."
