"""A study as data for programs: what `show --json` and `result.json` contain, field by field.

Responsible for the names and the types of what is printed; docs/study-json.md describes each of them, and a test holds
the two together. Settings are decoded; what JSON has no number for is null once it is text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpo.study.confirmation import Confirmation, Interval
from hpo.study.contract import Contract
from hpo.study.estimate import Estimate
from hpo.study.record import Measured, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.recommendation import Confirmed, Recommendation, recommendation
from hpo.verdict.snapshot import Study
from hpo.verdict.words import flips_interval, kl_interval, percent_interval
from quant.setting import Setting

if TYPE_CHECKING:
    from hpo.verdict.importance import Importances, Shares


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

    perplexity: float
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
    kl: float | None
    flips: float | None
    bits_per_weight: float | None
    model_bytes: int | None
    seconds: Mapping[str, float]
    tokens: int
    estimate: PrintedEstimate | None
    outcome: str | None
    reason: str | None


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
    p_value: float
    kl: Interval | None
    flips: Interval | None


@dataclass(frozen=True, kw_only=True)
class PrintedSizeClass:
    """Everything of equal bits that was measured to the end, best first."""

    group_size: int | None
    keep_ratio: float | None
    symmetric: bool
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
    bits_per_weight: float | None
    confirmed: Confirmed
    reason: str
    verdict: str


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


@dataclass(frozen=True, kw_only=True)
class PrintedShares:
    """How much of the outcome each hyperparameter explains."""

    scope: str
    trials: int
    complete: int
    pruned: int
    ped_anova: Mapping[str, float]
    fanova: Mapping[str, float]
    mean: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, ...]]]
    warning: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class PrintedImportances:
    """Shares over all trials, and at equal bits."""

    overall: PrintedShares
    equal_group_size: PrintedShares | None


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
        trials=tuple(map(_trial, record.trials)),
        best=None if record.best is None else _trial(record.best),
        ranking=tuple(printed_size_class(ranking, record.confirmation) for ranking in study.rankings),
        recommendation=_recommendation(study.recommendation) if study.recommendation else None,
        confirmation=record.confirmation,
    )


def printed_result(study: Study, importances: "Importances") -> PrintedResult:
    """Collect the same with its importances."""
    return PrintedResult(**vars(printed_study(study)), importances=printed_importances(importances))


def printed_importances(importances: "Importances") -> PrintedImportances:
    """Collect what mattered."""
    equal = importances.equal_size
    return PrintedImportances(
        overall=_shares(importances.overall), equal_group_size=None if equal is None else _shares(equal)
    )


def printed_size_class(ranking: SizeClassRanking, confirmation: Confirmation | None = None) -> PrintedSizeClass:
    """Collect the ranking of one size class, with what held-out text said of it."""
    chosen = recommendation(ranking, confirmation)
    return PrintedSizeClass(
        group_size=ranking.size_class.group_size,
        keep_ratio=ranking.size_class.keep_ratio or None,
        symmetric=ranking.size_class.symmetric,
        verdict=chosen.verdict,
        recommended=chosen.measured.name,
        rows=tuple(map(_row, ranking.rows)),
    )


def _recommendation(chosen: Recommendation) -> PrintedRecommendation:
    measured = chosen.measured
    return PrintedRecommendation(
        name=measured.name,
        kind="trial" if chosen.is_trial else "reference",
        number=measured.number if isinstance(measured, TrialRecord) else None,
        setting=measured.setting,
        perplexity=measured.perplexity,
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


def _trial(trial: TrialRecord) -> PrintedTrial:
    return PrintedTrial(
        number=trial.number,
        name=trial.name,
        state=trial.state,
        origin=trial.origin,
        params=trial.setting,
        value=trial.perplexity,
        kl=trial.kl,
        flips=trial.flips,
        bits_per_weight=trial.bits_per_weight,
        model_bytes=trial.model_bytes,
        seconds=trial.seconds,
        tokens=trial.tokens,
        estimate=_estimate(trial.estimate) if trial.estimate else None,
        outcome=trial.outcome,
        reason=trial.reason,
    )


def _estimate(estimate: Estimate) -> PrintedEstimate:
    return PrintedEstimate(
        perplexity=estimate.perplexity,
        low=estimate.low,
        high=estimate.high,
        standard_error=estimate.standard_error,
        degrees=estimate.degrees,
        against=estimate.against,
    )


def _row(row: Ranked) -> PrintedRow:
    measured = row.measured
    trial = measured if isinstance(measured, TrialRecord) else None
    return PrintedRow(
        name=measured.name,
        kind="reference" if trial is None else "trial",
        number=None if trial is None else trial.number,
        setting=measured.setting,
        perplexity=row.score.perplexity,
        mean_nll=row.score.mean_nll,
        bits_per_weight=measured.bits_per_weight,
        percent_above_best=percent_interval(row.difference),
        p_value=row.difference.p_value,
        kl=kl_interval(row.kl),
        flips=flips_interval(row.flips),
    )


def _shares(shares: "Shares") -> PrintedShares:
    by_evaluator = {"ped_anova": shares.ped_anova, "fanova": shares.fanova, "mean": shares.mean}
    values = {key: {name: share.value for name, share in by_name.items()} for key, by_name in by_evaluator.items()}
    return PrintedShares(
        scope=shares.scope,
        trials=shares.trials,
        complete=shares.complete,
        pruned=shares.pruned,
        ped_anova=values["ped_anova"],
        fanova=values["fanova"],
        mean=values["mean"],
        intervals={
            key: {name: (share.low, share.high) for name, share in by_name.items()}
            for key, by_name in by_evaluator.items()
        },
        warning=shares.warning,
        reason=shares.reason,
    )
