"""A study as data for programs: what `show --json` and `result.json` contain, field by field.

Responsible for the names and the types of what is printed; docs/study-json.md describes each of them, and a test holds
the two together. Settings are decoded; what JSON has no number for is null once it is text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpo.report.document_importances import PrintedImportances, printed_importances
from hpo.study.confirmation import Confirmation, Interval, RefinedConfirmation
from hpo.study.contract import Contract
from hpo.study.estimate import Estimate
from hpo.study.objective import KL, PERPLEXITY, Objective
from hpo.study.record import Measured, StudyRecord, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.recommendation import Confirmed, Recommendation, recommendation
from hpo.verdict.snapshot import Study
from hpo.verdict.waterfall import Step
from hpo.verdict.words import flips_interval, kl_interval, percent_interval
from quant.setting import Setting

if TYPE_CHECKING:
    from hpo.verdict.importance import Importances


@dataclass(frozen=True, kw_only=True)
class PrintedReference:
    """Full precision, or a setting that the method has to beat."""

    name: str
    setting: Setting | None
    perplexity: float | None
    bits_per_weight: float | None
    model_bytes: int | None
    seconds: Mapping[str, float]
    kl: float | None
    flips: float | None


@dataclass(frozen=True, kw_only=True)
class PrintedEstimate:
    """What a pruned trial would probably have had on all text."""

    perplexity: float | None
    kl: float | None
    low: float
    high: float
    standard_error: float | None
    degrees: float
    against: int


@dataclass(frozen=True, kw_only=True)
class PrintedTrial:
    """One trial."""

    number: int
    name: str
    state: str
    origin: str
    params: Setting | None
    value: float | None
    perplexity: float | None
    kl: float | None
    flips: float | None
    predicted_kl: float | None
    bits_per_weight: float | None
    model_bytes: int | None
    seconds: Mapping[str, float]
    tokens: int
    estimate: PrintedEstimate | None
    outcome: str | None
    reason: str | None
    twin_of: str | None


@dataclass(frozen=True, kw_only=True)
class PrintedRow:
    """One setting in the ranking of a size class."""

    name: str
    kind: str
    number: int | None
    setting: Setting | None
    perplexity: float
    mean_nll: float
    bits_per_weight: float | None
    percent_above_best: Interval
    kl_above_best: Interval | None
    p_value: float
    kl: Interval | None
    flips: Interval | None


@dataclass(frozen=True, kw_only=True)
class PrintedSizeClass:
    """Everything of equal bits that was measured to the end, best first."""

    group_size: int | None
    keep_ratio: float | None
    symmetric: bool
    bit_budget: float | None
    verdict: str
    recommended: str
    rows: tuple[PrintedRow, ...]


@dataclass(frozen=True, kw_only=True)
class PrintedRecommendation:
    """What the study recommends, and why."""

    name: str
    kind: str
    number: int | None
    setting: Setting | None
    perplexity: float | None
    kl: float | None
    bits_per_weight: float | None
    confirmed: Confirmed
    reason: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class PrintedStep:
    """One setting on the way from nearest rounding to what is recommended."""

    name: str
    setting: Setting | None
    perplexity: float
    mean_nll: float
    kl: float | None
    bits_per_weight: float | None
    percent_change: Interval | None
    percent_total: Interval | None
    kl_change: Interval | None
    kl_total: Interval | None


@dataclass(frozen=True, kw_only=True)
class PrintedStudy:
    """Everything that is known of a study."""

    study: str
    contract: Contract
    references: tuple[PrintedReference, ...]
    trials: tuple[PrintedTrial, ...]
    best: PrintedTrial | None
    recommendation: PrintedRecommendation | None
    ranking: tuple[PrintedSizeClass, ...]
    confirmation: Confirmation | None
    refined: RefinedConfirmation | None
    waterfall: tuple[PrintedStep, ...]


@dataclass(frozen=True, kw_only=True)
class PrintedResult(PrintedStudy):
    """The same with what mattered, as a report has it."""

    importances: PrintedImportances


def printed_study(study: Study) -> PrintedStudy:
    """Collect everything that is known of a study."""
    record = study.record
    return PrintedStudy(
        study=record.name,
        contract=record.contract,
        references=tuple(map(_reference, record.references)),
        trials=tuple(_trial(record, trial) for trial in record.trials),
        best=None if record.best is None else _trial(record, record.best),
        ranking=tuple(printed_size_class(ranking, record.confirmation) for ranking in study.rankings),
        recommendation=_recommendation(study.recommendation) if study.recommendation else None,
        confirmation=record.confirmation,
        refined=record.refined,
        waterfall=tuple(_step(step, record.objective) for step in study.waterfall),
    )


def printed_result(study: Study, importances: "Importances") -> PrintedResult:
    """Collect the same with its importances."""
    return PrintedResult(**vars(printed_study(study)), importances=printed_importances(importances))


def printed_size_class(ranking: SizeClassRanking, confirmation: Confirmation | None = None) -> PrintedSizeClass:
    """Collect the ranking of one size class, with what held-out text said of it."""
    chosen = recommendation(ranking, confirmation)
    return PrintedSizeClass(
        group_size=ranking.size_class.group_size,
        keep_ratio=ranking.size_class.keep_ratio or None,
        symmetric=ranking.size_class.symmetric,
        bit_budget=ranking.size_class.bit_budget or None,
        verdict=chosen.verdict,
        recommended=chosen.measured.name,
        rows=tuple(_row(ranking, row) for row in ranking.rows),
    )


def _recommendation(chosen: Recommendation) -> PrintedRecommendation:
    measured = chosen.measured
    return PrintedRecommendation(
        name=measured.name,
        kind="trial" if chosen.is_trial else "reference",
        number=measured.number if isinstance(measured, TrialRecord) else None,
        setting=measured.setting,
        perplexity=measured.perplexity,
        kl=measured.kl,
        bits_per_weight=measured.bits_per_weight,
        confirmed=chosen.confirmed,
        reason=chosen.reason,
        verdict=chosen.verdict,
    )


def _reference(measured: Measured) -> PrintedReference:
    return PrintedReference(
        name=measured.name,
        setting=measured.setting,
        perplexity=measured.perplexity,
        bits_per_weight=measured.bits_per_weight,
        model_bytes=measured.model_bytes,
        seconds=measured.seconds,
        kl=measured.kl,
        flips=measured.flips,
    )


def _trial(record: StudyRecord, trial: TrialRecord) -> PrintedTrial:
    twin = record.twin_of(trial)
    return PrintedTrial(
        number=trial.number,
        name=trial.name,
        state=trial.state,
        origin=trial.origin,
        params=trial.setting,
        value=trial.value,
        perplexity=trial.perplexity,
        kl=trial.kl,
        flips=trial.flips,
        predicted_kl=record.predicted_kl.get(str(trial.number)),
        bits_per_weight=trial.bits_per_weight,
        model_bytes=trial.model_bytes,
        seconds=trial.seconds,
        tokens=trial.tokens,
        estimate=_estimate(trial.estimate) if trial.estimate else None,
        outcome=trial.outcome,
        reason=trial.reason,
        twin_of=twin.full_name if twin else None,
    )


def _estimate(estimate: Estimate) -> PrintedEstimate:
    return PrintedEstimate(
        perplexity=estimate.value if estimate.objective == PERPLEXITY else None,
        kl=estimate.mean_kl,
        low=estimate.low,
        high=estimate.high,
        standard_error=estimate.standard_error,
        degrees=estimate.degrees,
        against=estimate.against,
    )


def _row(ranking: SizeClassRanking, row: Ranked) -> PrintedRow:
    measured, best = row.measured, ranking.best.score
    trial = measured if isinstance(measured, TrialRecord) else None
    return PrintedRow(
        name=measured.name,
        kind="reference" if trial is None else "trial",
        number=None if trial is None else trial.number,
        setting=measured.setting,
        perplexity=row.score.perplexity,
        mean_nll=row.score.mean_nll,
        bits_per_weight=measured.bits_per_weight,
        percent_above_best=percent_interval(PERPLEXITY.difference(row.score, best)),
        kl_above_best=None if row.score.kl is None or best.kl is None else KL.change(KL.difference(row.score, best)),
        p_value=row.difference.p_value,
        kl=kl_interval(row.kl),
        flips=flips_interval(row.flips),
    )


def _step(step: Step, objective: Objective) -> PrintedStep:
    change, total = (None if change is None else objective.change(change) for change in (step.change, step.total))
    by_kl = objective == KL
    return PrintedStep(
        name=step.measured.name,
        setting=step.measured.setting,
        perplexity=step.score.perplexity,
        mean_nll=step.score.mean_nll,
        kl=step.score.mean_kl,
        bits_per_weight=step.measured.bits_per_weight,
        percent_change=None if by_kl else change,
        percent_total=None if by_kl else total,
        kl_change=change if by_kl else None,
        kl_total=total if by_kl else None,
    )
