"""Which setting won, by how much, and is it real: references, presets and trials at equal bits.

Responsible for the decision guide: the simplest setting within 0.05 % and within noise of the best is recommended; a
win over the references is meaningful only above 0.1 % and significant. Of divergence that is .0005 and .001 nats per
token (`hpo.study.objective`). May assume scores of the same sequences. The text was also used to choose, so the best of
many looks better than it is: whether it is a win is for `hpo.verdict.recommendation` to say, by other text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo.space.size_class import SizeClass
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import Measured, StudyRecord, TrialRecord
from hpo.study.scores import Scores
from objectives.paired import Difference, distance
from objectives.scoring import Score
from quant.methods import METHODS
from quant.setting import Setting

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One row of a ranking.

    Attributes:
        measured: What was measured.
        score: Its values per sequence.
        difference: Itself minus the best row, in nats per token of what the objective is a mean of.
        against: Itself minus the best reference; None where no reference was measured.
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
        objective: What orders the rows.
    """

    size_class: SizeClass
    rows: tuple[Ranked, ...]
    recommended: Ranked
    objective: Objective = PERPLEXITY

    @property
    def against(self) -> Difference | None:
        """Return the best trial minus the best reference, nats per token; None where one of them is missing."""
        return self.best_trial.against if self.best_trial else None

    @property
    def title(self) -> str:
        """Name the size class as a sentence begins."""
        text = str(self.size_class)
        return text[0].upper() + text[1:]

    @property
    def best(self) -> Ranked:
        """Return the row of least value."""
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
        interval = f"{self.objective.against_text(self.against, reference.score)} on tuning text"
        baseline, best = (self._named(row) for row in (reference, trial))
        if self.against.value <= 0:
            return f"{self.title}: {best} against {baseline} is {interval}"
        return (
            f"{self.title}: {baseline} beats every {method} setting that was tried; the best of them, {best}, is at "
            f"{interval}"
        )

    def _named(self, row: Ranked) -> str:
        """Name a row with its value, and with its bits where the rows' bits differ."""
        bits = {f"{other.measured.bits_per_weight:.3f}" for other in self.rows}
        at = f" at {row.measured.bits_per_weight:.3f} bits per weight" if len(bits) > 1 else ""
        return f"{row.measured.name} ({self.objective.number(self.objective.value(row.score))}{at})"


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
        rankings.append(_ranking(size_class, rows, record.objective))
    return rankings


def frontier(rankings: Sequence[SizeClassRanking]) -> list[Ranked]:
    """List every row that is better than all that take no more bits (the Pareto front), fewest bits first."""
    rows = {row.measured.name + str(row.measured.size_class): row for ranking in rankings for row in ranking.rows}
    objective = _objective(rankings)
    values = {name: objective.value(row.score) for name, row in rows.items()}
    front: list[str] = []
    for name in sorted(rows, key=lambda name: (rows[name].measured.bits_per_weight, values[name])):
        if not front or values[name] < values[front[-1]]:
            front.append(name)
    return [rows[name] for name in front]


def frontier_text(rankings: Sequence[SizeClassRanking]) -> str:
    """Put the frontier into one sentence."""
    objective = _objective(rankings)
    parts = (
        f"{row.measured.full_name} ({objective.number(objective.value(row.score))} at "
        f"{row.measured.bits_per_weight:.3f})"
        for row in frontier(rankings)
    )
    return f"{objective.title} at bits per weight, where nothing of no more bits is better: {', '.join(parts)}."


def _objective(rankings: Sequence[SizeClassRanking]) -> Objective:
    """Return the objective of a study's rankings; all of them have the same."""
    return next((ranking.objective for ranking in rankings), PERPLEXITY)


def headline(rankings: Sequence[SizeClassRanking]) -> SizeClassRanking | None:
    """Choose the ranking a report leads with: the one of the best completed trial; None before there is one."""
    searched = [(ranking, ranking.best_trial) for ranking in rankings if ranking.best_trial is not None]
    best = min(searched, key=lambda pair: pair[0].objective.value(pair[1].score), default=None)
    return None if best is None else best[0]


def is_meaningful(difference: Difference, objective: Objective = PERPLEXITY) -> bool:
    """Tell whether the first of two settings is better by more than the objective takes for a win, significantly."""
    return objective.change(difference).value < -objective.meaningful and difference.p_value < SIGNIFICANT


def simplicity(measured: Measured) -> tuple[int, bool, int, int]:
    """Order by simplicity, the simplest least: by the table of methods, then references and presets, then less work."""
    setting = measured.setting or Setting()
    searched = isinstance(measured, TrialRecord) and not measured.origin.startswith("preset")
    return list(METHODS).index(setting.method), searched, setting.n_calib, setting.n_grid


def recommend(
    rows: Sequence[tuple[Measured, Score]],
    difference: Callable[[int], Difference],
    objective: Objective = PERPLEXITY,
) -> int:
    """Apply the decision guide: the simplest setting that is as good as the best.

    Args:
        rows: What was measured, best first.
        difference: Of row i minus the best row, nats per token.
        objective: What it is a difference of.

    Returns:
        The place of the row to use.
    """
    equal = [0]
    for index in range(1, len(rows)):
        above_best = difference(index)
        if objective.change(above_best).value <= objective.indifferent and above_best.low <= 0:
            equal.append(index)
    return min(equal, key=lambda index: (simplicity(rows[index][0]), index))


def _group_references(references: Sequence[Measured], members: Sequence[Measured]) -> list[Measured]:
    """Choose of each reference in groups, on each grid, the one of most bits that takes no more than `members`.

    Members under a budget may take all of it.
    """
    most = max(max(_bits(member), member.size_class.bit_budget if member.size_class else 0.0) for member in members)
    best: dict[tuple[str, bool], Measured] = {}
    for reference in sorted(references, key=_bits):
        if reference.setting is not None and reference.group_size is not None and _bits(reference) <= most:
            best[reference.setting.label(), reference.setting.symmetric] = reference
    return list(best.values())


def _bits(measured: Measured) -> float:
    return measured.bits_per_weight or 0.0


def _ranking(size_class: SizeClass, rows: list[tuple[Measured, Score]], objective: Objective) -> SizeClassRanking:
    rows = sorted(rows, key=lambda row: (objective.value(row[1]), simplicity(row[0])))
    best = rows[0][1]
    baseline = next((score for measured, score in rows if not isinstance(measured, TrialRecord)), None)
    ranked = tuple(
        Ranked(
            measured=measured,
            score=score,
            difference=objective.difference(score, best),
            against=objective.difference(score, baseline) if baseline else None,
        )
        for measured, score in rows
    )
    chosen = recommend(rows, lambda index: ranked[index].difference, objective)
    return SizeClassRanking(size_class=size_class, rows=ranked, recommended=ranked[chosen], objective=objective)
