"""Which setting won, by how much, and is it real: references, presets and trials at equal bits.

Responsible for the decision guide: the simplest setting within 0.05 % and within noise of the best is recommended; a
win over the references is meaningful only above 0.1 % and significant. May assume scores of the same sequences. The
text was also used to choose, so the best of many looks better than it is: whether it is a win is for
`hpo.verdict.recommendation` to say, by other text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo.space.size_class import SizeClass
from hpo.study.record import Measured, StudyRecord, TrialRecord
from hpo.study.scores import Scores
from hpo.verdict.words import percent_text
from objectives.paired import Difference, distance, paired_difference
from objectives.scoring import Score
from quant.methods import METHODS
from quant.setting import Setting

INDIFFERENT_PERCENT, MEANINGFUL_PERCENT = 0.05, 0.1
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One row of a ranking.

    Attributes:
        measured: What was measured.
        score: Its values per sequence.
        difference: Its mean NLL minus the best row's.
        against: Its mean NLL minus the best reference's; None where no reference was measured.
    """

    measured: Measured
    score: Score
    difference: Difference
    against: Difference | None

    @property
    def kl(self) -> Difference | None:
        """Return its divergence from full precision, nats per token; None where it was not measured."""
        return distance(self.score, "kl")

    @property
    def flips(self) -> Difference | None:
        """Return the share of targets that flip; None where it was not measured."""
        return distance(self.score, "flips")


@dataclass(frozen=True, kw_only=True)
class SizeClassRanking:
    """Everything of one size class, best first.

    Attributes:
        size_class: Equal for all trials, so their bits are. References have it too; where it is not one of groups,
            methods in groups stand beside them, at the largest size that takes no more bits.
        rows: All that was measured to the end.
        recommended: What the decision guide picks, or held-out text where `recommendation.settled` let it decide.
    """

    size_class: SizeClass
    rows: tuple[Ranked, ...]
    recommended: Ranked

    @property
    def against(self) -> Difference | None:
        """Return the best trial's mean NLL minus the best reference's; None where one of them is missing."""
        return self.best_trial.against if self.best_trial else None

    @property
    def title(self) -> str:
        """Name the size class as a sentence begins."""
        text = str(self.size_class)
        return text[0].upper() + text[1:]

    @property
    def best(self) -> Ranked:
        """Return the row of least perplexity."""
        return self.rows[0]

    @property
    def best_trial(self) -> Ranked | None:
        """Return the best row that the study searched for; None where no trial of these bits was completed."""
        return next((row for row in self.rows if isinstance(row.measured, TrialRecord)), None)

    @property
    def best_reference(self) -> Ranked | None:
        """Return the best row that is no trial."""
        return next((row for row in self.rows if not isinstance(row.measured, TrialRecord)), None)

    def comparison(self) -> str:
        """Say how the best trial stands against the best reference on tuning text; no judgement, and no full stop."""
        trial, reference = self.best_trial, self.best_reference
        if trial is None or reference is None or self.against is None:
            missing = "no trial was completed" if trial is None else "no reference was measured"
            return f"{self.title}: {missing}, so nothing can be compared"
        method = trial.measured.setting.method if trial.measured.setting else ""
        interval = f"{percent_text(self.against)} perplexity on tuning text"
        baseline, best = (self._named(row) for row in (reference, trial))
        if self.against.value <= 0:
            return f"{self.title}: {best} against {baseline} is {interval}"
        return (
            f"{self.title}: {baseline} beats every {method} setting that was tried; the best of them, {best}, is at "
            f"{interval}"
        )

    def _named(self, row: Ranked) -> str:
        """Name a row with its perplexity, and with its bits where the rows' bits differ."""
        bits = {f"{other.measured.bits_per_weight:.3f}" for other in self.rows}
        at = f" at {row.measured.bits_per_weight:.3f} bits per weight" if len(bits) > 1 else ""
        return f"{row.measured.name} ({row.score.perplexity:.3f}{at})"


def rank(record: StudyRecord, scores: Scores) -> list[SizeClassRanking]:
    """Rank what a study measured to the end, for each size class, in their order.

    References in groups have no ranking of their own in a study of rows with one scale, but are rows of its rankings.

    Args:
        record: The study.
        scores: Its values per sequence.

    Raises:
        DamagedEntryError: If values are missing or damaged.
    """
    rankings = []
    measured = [*record.references, *record.complete]
    size_classes = {member.size_class for member in measured if member.size_class is not None}
    per_row = {size_class for size_class in size_classes if size_class.group_size is None}
    for size_class in sorted(per_row or size_classes, key=lambda size_class: size_class.order):
        members = [member for member in measured if member.size_class == size_class]
        group_references = _group_references(record.references, members) if per_row else []
        rows = [(member, scores.of(member)) for member in (*members, *group_references)]
        rankings.append(_ranking(size_class, rows))
    return rankings


def frontier(rankings: Sequence[SizeClassRanking]) -> list[Ranked]:
    """List every row that is better than all that take no more bits (the Pareto front), fewest bits first."""
    rows = {row.measured.name + str(row.measured.size_class): row for ranking in rankings for row in ranking.rows}
    front: list[Ranked] = []
    for row in sorted(rows.values(), key=lambda row: (row.measured.bits_per_weight, row.score.mean_nll)):
        if not front or row.score.mean_nll < front[-1].score.mean_nll:
            front.append(row)
    return front


def frontier_text(rankings: Sequence[SizeClassRanking]) -> str:
    """Put the frontier into one sentence."""
    parts = (
        f"{row.measured.full_name} ({row.score.perplexity:.3f} at {row.measured.bits_per_weight:.3f})"
        for row in frontier(rankings)
    )
    return f"Perplexity at bits per weight, where nothing of no more bits is better: {', '.join(parts)}."


def headline(rankings: Sequence[SizeClassRanking]) -> SizeClassRanking | None:
    """Choose the ranking a report leads with: the one of the best completed trial; None before there is one."""
    searched = [ranking for ranking in rankings if ranking.best_trial is not None]
    return min(searched, key=lambda ranking: ranking.best_trial.score.mean_nll, default=None)  # type: ignore[union-attr]


def is_meaningful(difference: Difference) -> bool:
    """Tell whether the first of two settings is better by more than 0.1 % and significantly."""
    return difference.percent()[0] < -MEANINGFUL_PERCENT and difference.p_value < SIGNIFICANT


def simplicity(measured: Measured) -> tuple[int, bool, int, int]:
    """Order by simplicity, the simplest least: by the table of methods, then references and presets, then less work."""
    setting = measured.setting or Setting()
    searched = isinstance(measured, TrialRecord) and not measured.origin.startswith("preset")
    return list(METHODS).index(setting.method), searched, setting.n_calib, setting.n_grid


def recommend(rows: Sequence[tuple[Measured, Score]], difference: Callable[[int], Difference]) -> int:
    """Apply the decision guide: the simplest setting that is as good as the best.

    Args:
        rows: What was measured, best first.
        difference: Of row i's mean NLL minus the best row's.

    Returns:
        The place of the row to use.
    """
    equal = [0]
    for index in range(1, len(rows)):
        above_best = difference(index)
        if above_best.percent()[0] <= INDIFFERENT_PERCENT and above_best.low <= 0:
            equal.append(index)
    return min(equal, key=lambda index: (simplicity(rows[index][0]), index))


def _group_references(references: Sequence[Measured], members: Sequence[Measured]) -> list[Measured]:
    """Choose of each reference method in groups the one of most bits among those that take no more than `members`."""
    most = max(_bits(member) for member in members)
    best: dict[str, Measured] = {}
    for reference in sorted(references, key=_bits):
        if reference.setting is not None and reference.group_size is not None and _bits(reference) <= most:
            best[reference.setting.method] = reference
    return list(best.values())


def _bits(measured: Measured) -> float:
    return measured.bits_per_weight or 0.0


def _ranking(size_class: SizeClass, rows: list[tuple[Measured, Score]]) -> SizeClassRanking:
    rows = sorted(rows, key=lambda row: (row[1].mean_nll, simplicity(row[0])))
    best = rows[0][1]
    baseline = next((score for measured, score in rows if not isinstance(measured, TrialRecord)), None)
    ranked = tuple(
        Ranked(
            measured=measured,
            score=score,
            difference=paired_difference(score, best),
            against=paired_difference(score, baseline) if baseline else None,
        )
        for measured, score in rows
    )
    chosen = recommend(rows, lambda index: ranked[index].difference)
    return SizeClassRanking(size_class=size_class, rows=ranked, recommended=ranked[chosen])
