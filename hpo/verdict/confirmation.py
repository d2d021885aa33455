"""The winner, and with it every other member of a front, on text that had no part in choosing it.

Responsible for scoring what was fixed and its references on held-out text, and for saying with corrected p-values
whether the wins are real. May assume that the winner and the members were fixed before; nothing here changes them.
"""

from collections.abc import Mapping, Sequence

from hpo.study.confirmation import Confirmation, ConfirmedComparison, ConfirmedMember, ConfirmedScore
from hpo.study.objective import KL, PERPLEXITY, Objective
from hpo.study.record import FULL_PRECISION, TrialRecord
from hpo.verdict.ranking import Ranked, SizeClassRanking, frontier
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


def front_members(rankings: Sequence[SizeClassRanking], lead: SizeClassRanking) -> list[SizeClassRanking]:
    """List the size classes whose best trial is on the front and has a reference, without the one that leads.

    They are at most as many as the front has budgets, so confirming them takes at most as many trials a text.
    """
    front = frontier(rankings)
    return [
        ranking
        for ranking in rankings
        if ranking is not lead
        and ranking.best_reference is not None
        and any(row is ranking.best_trial for row in front)
    ]


def confirm(
    bench: Bench,
    store: ResultStore,
    ranking: SizeClassRanking,
    texts: Sequence[Sequences],
    progress: Progress,
    planned: Planned = Plan.uniform,
    members: Sequence[SizeClassRanking] = (),
) -> Confirmation:
    """Score the best trial of a ranking, what is recommended there, and its references on every text.

    Args:
        bench: Model, roles, calibration.
        store: Where results are read from, and where new ones are kept.
        ranking: Whose winner is confirmed; it has a completed trial.
        texts: Held-out text: the tuning text's own kind first.
        progress: Told how far it is.
        planned: How a setting becomes a plan.
        members: Whose best trials are compared with their best references besides.

    Returns:
        What is stored with the study.
    """
    winner = ranking.best_trial
    assert winner is not None
    own, of_front = _settings(ranking, winner), _front_settings(members)
    settings = {**of_front, **own}
    results = measure_all(bench, store, list(settings.values()), texts, progress, planned)
    scores = {
        name: [result.score for result in of_texts if result.score is not None]
        for name, of_texts in zip(settings, results, strict=True)
    }
    name = winner.measured.name
    pairs = [(name, rival) for rival in own if rival not in (name, FULL_PRECISION)] + [*map(_pair, members)]
    comparisons = compare(pairs, scores, texts, ranking.objective)
    of_winner = [row for row in comparisons if row.name == name]
    return Confirmation(
        group_size=ranking.size_class.group_size,
        keep_ratio=ranking.size_class.keep_ratio or None,
        symmetric=ranking.size_class.symmetric,
        bit_budget=ranking.size_class.bit_budget,
        winner=name,
        recommended=ranking.recommended.measured.name,
        sentence=" ".join(
            [
                _sentence(name, ranking.best_reference, of_winner, ranking.objective),
                *_front_sentence(members, comparisons),
            ]
        ),
        rows=confirmed_scores({name: scores[name] for name in own}, texts),
        comparisons=tuple(of_winner),
        front=tuple(_member(ranking, scores, texts, comparisons) for ranking in members),
    )


def _pair(ranking: SizeClassRanking) -> tuple[str, str]:
    """Name the best trial, with its bits because presets are tried at several, and the best reference."""
    assert ranking.best_trial is not None
    assert ranking.best_reference is not None
    return ranking.best_trial.measured.full_name, ranking.best_reference.measured.name


def _front_settings(members: Sequence[SizeClassRanking]) -> dict[str, Setting | None]:
    settings: dict[str, Setting | None] = {}
    for ranking in members:
        for name, row in zip(_pair(ranking), (ranking.best_trial, ranking.best_reference), strict=True):
            assert row is not None
            settings[name] = row.measured.setting
    return settings


def _member(
    ranking: SizeClassRanking,
    scores: Mapping[str, Sequence[Score]],
    texts: Sequence[Sequences],
    comparisons: Sequence[ConfirmedComparison],
) -> ConfirmedMember:
    assert ranking.best_trial is not None
    name, reference = _pair(ranking)
    return ConfirmedMember(
        name=ranking.best_trial.measured.name,
        bit_budget=ranking.size_class.bit_budget,
        against=reference,
        rows=confirmed_scores({name: scores[name], reference: scores[reference]}, texts),
        comparisons=tuple(row for row in comparisons if row.name == name),
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
    pairs: Sequence[tuple[str, str]],
    scores: Mapping[str, Sequence[Score]],
    texts: Sequence[Sequences],
    objective: Objective,
) -> list[ConfirmedComparison]:
    """Compare the first of every pair with the second on every text.

    P-values are corrected for all of them together (Holm).
    """
    compared = [
        (text.source, *pair, scores[pair[0]][index], scores[pair[1]][index])
        for index, text in enumerate(texts)
        for pair in pairs
    ]
    differences = [objective.difference(own, other) for _, _, _, own, other in compared]
    corrected = holm([difference.p_value for difference in differences])
    return [
        ConfirmedComparison(
            dataset=dataset,
            name=name,
            against=rival,
            percent=PERPLEXITY.change(PERPLEXITY.difference(own, other)),
            p_value=difference.p_value,
            holm=p_value,
            kl=objective.change(difference) if objective == KL else None,
        )
        for (dataset, name, rival, own, other), difference, p_value in zip(
            compared, differences, corrected, strict=True
        )
    ]


def _front_sentence(members: Sequence[SizeClassRanking], comparisons: Sequence[ConfirmedComparison]) -> list[str]:
    """Say how many other members of a front are confirmed; nothing where there are none."""
    if not members:
        return []
    judged = [
        judge([row for row in comparisons if row.name == _pair(ranking)[0]], ranking.objective) for ranking in members
    ]
    count, worse = judged.count("confirmed"), judged.count("worse")
    beaten = f", {worse} as worse" if worse else ""
    return [
        f"Other members of the front that are confirmed as better than the best reference of no more bits: {count} of "
        f"{len(members)}{beaten}."
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
