"""The winner on text that had no part in choosing it.

Responsible for scoring a fixed winner and its references on held-out text, and for saying with corrected p-values
whether the win is real. May assume that the winner was fixed before; nothing here changes it.
"""

from collections.abc import Mapping, Sequence

from hpo.study.confirmation import Confirmation, ConfirmedComparison, ConfirmedScore
from hpo.study.objective import KL, PERPLEXITY, Objective
from hpo.study.record import FULL_PRECISION, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.recommendation import judge
from hpo.workers.measuring import Planned, measure_all
from objectives.paired import holm
from objectives.progress import Progress
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from storage.results import ResultStore


def confirm(
    bench: Bench,
    store: ResultStore,
    ranking: SizeClassRanking,
    texts: Sequence[Sequences],
    progress: Progress,
    planned: Planned = Plan.uniform,
) -> Confirmation:
    """Score the best trial of a ranking, what is recommended there, and its references on every text.

    Args:
        bench: Model, roles, calibration.
        store: Where results are read from, and where new ones are kept.
        ranking: Whose winner is confirmed; it has a completed trial.
        texts: Held-out text: the tuning text's own kind first.
        progress: Told how far it is.
        planned: How a setting becomes a plan.

    Returns:
        What is stored with the study.
    """
    winner = ranking.best_trial
    assert winner is not None
    settings = _settings(ranking, winner)
    results = measure_all(bench, store, list(settings.values()), texts, progress, planned)
    scores = {
        name: [result.score for result in of_texts if result.score is not None]
        for name, of_texts in zip(settings, results, strict=True)
    }
    rivals = [name for name in settings if name not in (winner.measured.name, FULL_PRECISION)]
    comparisons = compare(winner.measured.name, rivals, scores, texts, ranking.objective)
    return Confirmation(
        group_size=ranking.size_class.group_size,
        keep_ratio=ranking.size_class.keep_ratio or None,
        symmetric=ranking.size_class.symmetric,
        bit_budget=ranking.size_class.bit_budget,
        winner=winner.measured.name,
        recommended=ranking.recommended.measured.name,
        sentence=_sentence(winner.measured.name, ranking.best_reference, comparisons, ranking.objective),
        rows=confirmed_scores(scores, texts),
        comparisons=tuple(comparisons),
    )


def confirmed_scores(scores: Mapping[str, Sequence[Score]], texts: Sequence[Sequences]) -> tuple[ConfirmedScore, ...]:
    """What is stored of held-out scores: one row for each name and text, by name.

    Args:
        scores: By name, one for each text.
        texts: What was scored.
    """
    return tuple(
        ConfirmedScore(
            dataset=text.source,
            name=name,
            perplexity=score.perplexity,
            mean_nll=score.mean_nll,
            tokens=int(score.tokens.sum()),
            kl=score.mean_kl,
            flips=score.percent_flips,
        )
        for name, of_texts in scores.items()
        for text, score in zip(texts, of_texts, strict=True)
    )


def _settings(ranking: SizeClassRanking, winner: Ranked) -> dict[str, Setting | None]:
    references = [row.measured for row in ranking.rows if not isinstance(row.measured, TrialRecord)]
    chosen = [winner.measured, ranking.recommended.measured, *references]
    return {FULL_PRECISION: None, **{measured.name: measured.setting for measured in chosen}}


def compare(
    winner: str,
    rivals: Sequence[str],
    scores: Mapping[str, Sequence[Score]],
    texts: Sequence[Sequences],
    objective: Objective,
) -> list[ConfirmedComparison]:
    """Compare with every rival on every text; p-values are corrected for all of them together (Holm)."""
    pairs = [
        (text.source, rival, scores[winner][index], scores[rival][index])
        for index, text in enumerate(texts)
        for rival in rivals
    ]
    differences = [objective.difference(own, other) for _, _, own, other in pairs]
    corrected = holm([difference.p_value for difference in differences])
    return [
        ConfirmedComparison(
            dataset=dataset,
            name=winner,
            against=rival,
            percent=PERPLEXITY.change(PERPLEXITY.difference(own, other)),
            p_value=difference.p_value,
            holm=p_value,
            kl=objective.change(difference) if objective == KL else None,
        )
        for (dataset, rival, own, other), difference, p_value in zip(pairs, differences, corrected, strict=True)
    ]


def _sentence(
    winner: str, reference: Ranked | None, comparisons: Sequence[ConfirmedComparison], objective: Objective
) -> str:
    if reference is None or not comparisons:
        return "There was no reference to confirm the winner against."
    against = [row for row in comparisons if row.against == reference.measured.name]
    parts = [f"{objective.interval_text(row.change)} on {row.dataset}" for row in against]
    phrases = {"confirmed": "confirmed as better", "worse": "confirmed as worse"}
    judgement = phrases.get(judge(against, objective), "not confirmed as different")
    return f"On held-out text {winner} against {reference.measured.name}: {', '.join(parts)}: {judgement}."
