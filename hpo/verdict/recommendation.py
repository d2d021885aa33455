"""What a study recommends: the one meaning of its best setting, at equal bits, references included.

Responsible for the rule. The decision guide of a ranking picks the simplest setting that the tuning text does not tell
from the best; held-out text has the last word: where it does not confirm the best trial against the references, a
reference is recommended. May assume a ranking and, where there is one, the stored confirmation of the same study.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hpo.space.size_class import SizeClass
from hpo.study.confirmation import Confirmation, ConfirmedComparison
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import Measured, TrialRecord
from hpo.verdict.ranking import (
    SIGNIFICANT,
    Ranked,
    SizeClassRanking,
    is_meaningful,
)
from hpo.verdict.words import number, setting_text, value_text

Confirmed = Literal["confirmed", "not confirmed", "worse", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to use at one size class, and why.

    Attributes:
        measured: The trial or the reference.
        size_class: Of the ranking; methods in groups may be recommended instead of one scale per row.
        reason: Why it is this one, in words that follow a colon.
        confirmed: What held-out text says of the best trial against the references.
        verdict: The comparison of the best trial with the references in one sentence, held-out text included.
        objective: What decided.
    """

    measured: Measured
    size_class: SizeClass
    reason: str
    confirmed: Confirmed
    verdict: str
    objective: Objective = PERPLEXITY

    @property
    def is_trial(self) -> bool:
        """Tell a trial from a reference."""
        return isinstance(self.measured, TrialRecord)

    def sentence(self) -> str:
        """Say what to use, and why, in one sentence."""
        chosen = self.measured
        where = "at" if chosen.size_class == self.size_class else "instead of"
        return (
            f"Recommended {where} {self.size_class}: {chosen.name} ({setting_text(chosen)}), "
            f"{value_text(self.objective, chosen)} at {number(chosen.bits_per_weight)} bits per weight: {self.reason}."
        )


def recommendation(ranking: SizeClassRanking, confirmation: Confirmation | None) -> Recommendation:
    """Say what a ranking and held-out text together recommend.

    Args:
        ranking: Of one size class.
        confirmation: What is stored with the study. It counts where what was confirmed still is the best trial of the
            ranking.
    """
    comparisons = _comparisons(ranking, confirmation)
    row, reason = _chosen(ranking, comparisons)
    return Recommendation(
        measured=row.measured,
        size_class=ranking.size_class,
        reason=reason,
        confirmed=_confirmed(ranking, comparisons),
        verdict=f"{ranking.comparison()}{_judgement(ranking, comparisons)}.",
        objective=ranking.objective,
    )


def settled(ranking: SizeClassRanking, confirmation: Confirmation | None) -> SizeClassRanking:
    """Let held-out text decide which row of a ranking is recommended."""
    row, _ = _chosen(ranking, _comparisons(ranking, confirmation))
    return replace(ranking, recommended=row)


def judge(comparisons: Sequence[ConfirmedComparison], objective: Objective = PERPLEXITY) -> Confirmed:
    """Say what the comparisons with one other setting, a text each, show of the winner.

    It is confirmed where it is better by more than 0.1 % (of divergence .001 nats per token) on every text, and worse
    where it is worse on every text; both significantly, after correction.
    """
    if not comparisons:
        return "not tested"
    significant = all(row.holm < SIGNIFICANT for row in comparisons)
    if significant and all(row.change.value < -objective.meaningful for row in comparisons):
        return "confirmed"
    return "worse" if significant and all(row.change.value > 0 for row in comparisons) else "not confirmed"


def _comparisons(ranking: SizeClassRanking, confirmation: Confirmation | None) -> Sequence[ConfirmedComparison]:
    """Return what held-out text compared with the ranking's best trial; nothing where another trial was confirmed."""
    best = ranking.best_trial
    if best is None or confirmation is None:
        return ()
    return confirmation.of(best.measured.name, ranking.size_class)


def _against(row: Ranked | None, comparisons: Sequence[ConfirmedComparison], objective: Objective) -> Confirmed:
    if row is None:
        return "not tested"
    return judge([compared for compared in comparisons if compared.against == row.measured.name], objective)


def _confirmed(ranking: SizeClassRanking, comparisons: Sequence[ConfirmedComparison]) -> Confirmed:
    return (
        "worse" if _better(ranking, comparisons) else _against(ranking.best_reference, comparisons, ranking.objective)
    )


def _better(ranking: SizeClassRanking, comparisons: Sequence[ConfirmedComparison]) -> Ranked | None:
    """Find the best reference that held-out text says is better than the best trial."""
    references = [row for row in ranking.rows if not isinstance(row.measured, TrialRecord)]
    return next((row for row in references if _against(row, comparisons, ranking.objective) == "worse"), None)


def _chosen(ranking: SizeClassRanking, comparisons: Sequence[ConfirmedComparison]) -> tuple[Ranked, str]:
    """Choose the row to use, and say why."""
    trial, reference, guided = ranking.best_trial, ranking.best_reference, ranking.recommended
    objective = ranking.objective
    better, outcome = _better(ranking, comparisons), _against(reference, comparisons, objective)
    if trial is not None and better is not None:
        return better, f"on held-out text {trial.measured.name}, the best of the trials, is worse"
    if trial is not None and reference is not None and outcome == "not confirmed":
        return (
            reference,
            f"held-out text does not confirm that {trial.measured.name}, the best of the trials, is better",
        )
    if (
        trial is not None
        and outcome == "confirmed"
        and (guided is trial or _against(guided, comparisons, objective) == "confirmed")
    ):
        assert reference is not None
        return trial, f"held-out text confirms that it is better than {reference.measured.name}"
    if guided is ranking.best and guided is reference:
        return guided, "nothing that was searched is better"
    return guided, (
        f"the simplest setting within {objective.indifferent:g} {objective.unit} and within noise of the best at "
        f"{ranking.size_class}"
    )


def _judgement(ranking: SizeClassRanking, comparisons: Sequence[ConfirmedComparison]) -> str:
    """Say what held-out text makes of the best trial, to stand at the end of a verdict.

    No win is spoken of before it is confirmed: on tuning text the best of many looks better than it is.
    """
    if ranking.against is None:
        return ""
    confirmed, better = _confirmed(ranking, comparisons), _better(ranking, comparisons)
    worse = f"worse than {better.measured.name} on held-out text" if better is not None else ""
    if ranking.against.value > 0:
        return {
            "confirmed": "; on held-out text it is confirmed as better",
            "not confirmed": "; on held-out text a difference is not confirmed",
            "worse": f"; {worse}, too",
            "not tested": "; not tested on held-out text",
        }[confirmed]
    objective = ranking.objective
    least = f"{objective.meaningful:g} {objective.unit}"
    meaningful = is_meaningful(ranking.against, objective)
    beyond = "" if meaningful else f"not meaningful (it takes {least} and significance), "
    return {
        "confirmed": ": a win, confirmed on held-out text",
        "not confirmed": ": not confirmed on held-out text",
        "worse": f": {worse}",
        "not tested": f": {beyond}not tested on held-out text",
    }[confirmed]
