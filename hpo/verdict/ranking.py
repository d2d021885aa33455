"""Which setting won, by how much, and is it real: references, presets and trials at equal bits.

Responsible for the decision guide: the simplest setting within 0.05 % and within noise of the best is recommended; a
win over the references is meaningful only above 0.1 % and significant. May assume scores of the same sequences. The
text was also used to choose, so the best of many looks better than it is: confirmation on other text has the last
word.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpo.space.size_class import SizeClass
from hpo.study.record import Measured, StudyRecord, TrialRecord
from hpo.study.scores import Scores
from hpo.verdict.words import percent_text
from objectives.paired import Difference, paired_difference
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


@dataclass(frozen=True, kw_only=True)
class SizeClassRanking:
    """Everything of one size class, best first.

    Attributes:
        size_class: Equal for all trials, so their bits are. References have it too; where it is not one of groups,
            methods in groups stand beside them, at the largest size that takes no more bits.
        rows: All that was measured to the end.
        recommended: What the decision guide picks.
    """

    size_class: SizeClass
    rows: tuple[Ranked, ...]
    recommended: Ranked

    @property
    def against(self) -> Difference | None:
        """The best trial's mean NLL minus the best reference's; None where one of them is missing."""
        return self.best_trial.against if self.best_trial else None

    @property
    def title(self) -> str:
        """The size class as the beginning of a sentence."""
        text = str(self.size_class)
        return text[0].upper() + text[1:]

    @property
    def best(self) -> Ranked:
        """The row of least perplexity."""
        return self.rows[0]

    @property
    def best_trial(self) -> Ranked | None:
        """The best row that the study searched for; None where no trial of these bits was completed."""
        return next((row for row in self.rows if isinstance(row.measured, TrialRecord)), None)

    @property
    def best_reference(self) -> Ranked | None:
        """The best row that is no trial."""
        return next((row for row in self.rows if not isinstance(row.measured, TrialRecord)), None)

    def verdict(self) -> str:
        """What the comparison with the references says, in one sentence."""
        trial, reference = self.best_trial, self.best_reference
        if trial is None or reference is None or self.against is None:
            missing = "no trial was completed" if trial is None else "no reference was measured"
            return f"{self.title}: {missing}, so nothing can be compared."
        method = trial.measured.setting.method if trial.measured.setting else ""
        better = self.against.value <= 0
        interval = f"{percent_text(self.against)} perplexity"
        known, found = (self._named(row) for row in (reference, trial))
        if not better:
            return (
                f"{self.title}: {known} beats every {method} setting that was tried; "
                f"the best of them, {found}, is at {interval}."
            )
        real = is_meaningful(self.against)
        judgement = "a meaningful win" if real else "not a meaningful win (it takes 0.1 % and significance)"
        return f"{self.title}: {found} against {known} is {interval}: {judgement}."

    def recommendation(self) -> str:
        """What to use, in one sentence."""
        chosen = self.recommended.measured
        if chosen.size_class == self.size_class:
            return f"Recommended at {self.size_class}: {chosen.name} ({chosen.label})."
        instead = f"{chosen.name} ({chosen.label}) at {chosen.bits_per_weight:.3f} bits per weight"
        return f"Recommended instead of {self.size_class}: {instead}."

    def _named(self, row: Ranked) -> str:
        """A row with its perplexity, and with its bits where the rows' bits differ."""
        bits = {f"{one.measured.bits_per_weight:.3f}" for one in self.rows}
        at = f" at {row.measured.bits_per_weight:.3f} bits per weight" if len(bits) > 1 else ""
        return f"{row.measured.name} ({row.score.perplexity:.3f}{at})"


def rank(record: StudyRecord, scores: Scores) -> list[SizeClassRanking]:
    """Rank what a study measured to the end, for each size class, in their order.

    References in groups are no level of a study of rows with one scale, but rows of its levels.

    Args:
        record: The study.
        scores: Its values per sequence.

    Raises:
        DamagedEntryError: If values are missing or damaged.
    """
    levels = []
    measured = [*record.references, *record.complete]
    found = {one.size_class for one in measured if one.size_class is not None}
    per_row = {size_class for size_class in found if size_class.group_size is None}
    for size_class in sorted(per_row or found, key=lambda one: one.order):
        own = [one for one in measured if one.size_class == size_class]
        beside = _beside(record.references, own) if per_row else []
        rows = [(one, scores.of(one)) for one in (*own, *beside)]
        levels.append(_level(size_class, rows))
    return levels


def frontier(levels: Sequence[SizeClassRanking]) -> list[Ranked]:
    """Every row that is better than all that take no more bits, fewest bits first."""
    rows = {row.measured.name + str(row.measured.size_class): row for level in levels for row in level.rows}
    found: list[Ranked] = []
    for row in sorted(rows.values(), key=lambda one: (one.measured.bits_per_weight, one.score.mean_nll)):
        if not found or row.score.mean_nll < found[-1].score.mean_nll:
            found.append(row)
    return found


def frontier_text(levels: Sequence[SizeClassRanking]) -> str:
    """The frontier in one sentence."""
    parts = (
        f"{row.measured.full_name} ({row.score.perplexity:.3f} at {row.measured.bits_per_weight:.3f})"
        for row in frontier(levels)
    )
    return f"Perplexity at bits per weight, where nothing of no more bits is better: {', '.join(parts)}."


def headline(levels: Sequence[SizeClassRanking]) -> SizeClassRanking | None:
    """The level a report leads with: the one of the best completed trial; None before there is one."""
    searched = [level for level in levels if level.best_trial is not None]
    return min(searched, key=lambda level: level.best_trial.score.mean_nll, default=None)  # type: ignore[union-attr]


def is_meaningful(difference: Difference) -> bool:
    """Whether the first of two settings is better by more than 0.1 % and significantly."""
    return difference.percent()[0] < -MEANINGFUL_PERCENT and difference.p_value < SIGNIFICANT


def simplicity(measured: Measured) -> tuple[int, bool, int, int]:
    """Smaller is simpler: the method as the table of methods has them, known settings before found ones, less work."""
    setting = measured.setting or Setting()
    found = isinstance(measured, TrialRecord) and not measured.origin.startswith("preset")
    return list(METHODS).index(setting.method), found, setting.n_calib, setting.n_grid


def recommend(rows: Sequence[tuple[Measured, Score]], difference: Callable[[int], Difference]) -> int:
    """The decision guide: which of `rows`, best first, to use.

    Args:
        rows: What was measured.
        difference: Of row i's mean NLL minus the best row's.
    """
    equal = [0]
    for index in range(1, len(rows)):
        apart = difference(index)
        if apart.percent()[0] <= INDIFFERENT_PERCENT and apart.low <= 0:
            equal.append(index)
    return min(equal, key=lambda index: (simplicity(rows[index][0]), index))


def _beside(references: Sequence[Measured], own: Sequence[Measured]) -> list[Measured]:
    """Of each reference method in groups the one of most bits among those that take no more than `own`."""
    most = max(one.bits_per_weight or 0.0 for one in own)
    best: dict[str, Measured] = {}
    for one in sorted(references, key=lambda one: one.bits_per_weight or 0.0):
        if one.setting is not None and one.group_size is not None and (one.bits_per_weight or 0.0) <= most:
            best[one.setting.method] = one
    return list(best.values())


def _level(size_class: SizeClass, rows: list[tuple[Measured, Score]]) -> SizeClassRanking:
    rows = sorted(rows, key=lambda row: (row[1].mean_nll, simplicity(row[0])))
    best = rows[0][1]
    known = next((score for one, score in rows if not isinstance(one, TrialRecord)), None)
    ranked = tuple(
        Ranked(
            measured=one,
            score=score,
            difference=paired_difference(score, best),
            against=paired_difference(score, known) if known else None,
        )
        for one, score in rows
    )
    chosen = recommend(rows, lambda index: ranked[index].difference)
    return SizeClassRanking(size_class=size_class, rows=ranked, recommended=ranked[chosen])


def ranking_json(levels: Sequence[SizeClassRanking]) -> list[Mapping[str, object]]:
    """The ranking as `show --json` and `result.json` have it."""
    return [
        {
            "group_size": level.size_class.group_size,
            "keep_ratio": level.size_class.keep_ratio or None,
            "verdict": level.verdict(),
            "recommended": level.recommended.measured.name,
            "rows": [
                {
                    "name": row.measured.name,
                    "kind": "trial" if isinstance(row.measured, TrialRecord) else "reference",
                    "number": row.measured.number if isinstance(row.measured, TrialRecord) else None,
                    "setting": row.measured.setting.as_dict() if row.measured.setting else None,
                    "perplexity": row.score.perplexity,
                    "mean_nll": row.score.mean_nll,
                    "bits_per_weight": row.measured.bits_per_weight,
                    "percent_above_best": row.difference.percent_json(),
                    "p_value": row.difference.p_value,
                }
                for row in level.rows
            ],
        }
        for level in levels
    ]
