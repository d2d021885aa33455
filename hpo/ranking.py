"""Which setting won, by how much, and is it real: references, presets and trials at equal group size.

Responsible for the decision guide: the simplest setting within 0.05 % and within noise of the best is recommended; a
win over the references is meaningful only above 0.1 % and significant. May assume scores of the same sequences. The
text was also used to choose, so the best of many looks better than it is: confirmation on other text has the last
word.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpo.record import Measured, StudyRecord, TrialRecord
from objectives.kept import recall_result
from objectives.paired import Difference, paired_difference
from objectives.scoring import Score
from quant.methods import METHODS, Setting
from storage.errors import DamagedEntryError
from storage.results import ResultStore

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
class Level:
    """Everything of one group size, best first.

    Attributes:
        group_size: Inputs that share a scale; equal for all rows, so their bits are.
        rows: All that was measured to the end.
        recommended: What the decision guide picks.
        against: The best trial's mean NLL minus the best reference's; None where one of them is missing.
    """

    group_size: int
    rows: tuple[Ranked, ...]
    recommended: Ranked
    against: Difference | None

    @property
    def title(self) -> str:
        """What its rows have in common, as the beginning of a sentence."""
        return f"Group size {self.group_size}"

    @property
    def best(self) -> Ranked:
        """The row of least perplexity."""
        return self.rows[0]

    @property
    def best_trial(self) -> Ranked | None:
        """The best row that the study searched for; None where no trial of this size was completed."""
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
            return f"Group size {self.group_size}: {missing}, so nothing can be compared."
        method = trial.measured.setting.method if trial.measured.setting else ""
        better = self.against.value < 0
        interval = f"{percent_text(self.against)} perplexity"
        known = f"{reference.measured.name} ({reference.score.perplexity:.3f})"
        found = f"{trial.measured.name} ({trial.score.perplexity:.3f})"
        if not better:
            return (
                f"Group size {self.group_size}: {known} beats every {method} setting that was tried; "
                f"the best of them, {found}, is at {interval}."
            )
        real = is_meaningful(self.against)
        judgement = "a meaningful win" if real else "not a meaningful win (it takes 0.1 % and significance)"
        return f"Group size {self.group_size}: {found} against {known} is {interval}: {judgement}."


def rank(record: StudyRecord, store: ResultStore, clusters: Sequence[int]) -> list[Level]:
    """Rank what a study measured to the end, for each group size, smallest first.

    Args:
        record: The study.
        store: Where its values per sequence are.
        clusters: For each sequence of the tuning text the document it comes from.

    Raises:
        DamagedEntryError: If a reference's values are missing or damaged.
    """
    levels = []
    measured = [*(one for one in record.references if one.setting is not None), *record.complete]
    for size in sorted({one.group_size for one in measured if one.group_size is not None}):
        scored = {id(one): _score(store, one) for one in measured if one.group_size == size}
        rows = [(one, scored[id(one)]) for one in measured if one.group_size == size]
        levels.append(_level(size, rows, clusters))
    return levels


def headline(levels: Sequence[Level]) -> Level | None:
    """The group size a report leads with: the one of the best completed trial; None before there is one."""
    searched = [level for level in levels if level.best_trial is not None]
    return min(searched, key=lambda level: level.best_trial.score.mean_nll, default=None)  # type: ignore[union-attr]


def is_meaningful(difference: Difference) -> bool:
    """Whether the first of two settings is better by more than 0.1 % and significantly."""
    return difference.percent()[0] < -MEANINGFUL_PERCENT and difference.p_value < SIGNIFICANT


def percent_text(difference: Difference) -> str:
    """`-0.42 % [-0.61, -0.23]`, of perplexity."""
    value, low, high = difference.percent()
    return f"{value:+.2f} % [{low:+.2f}, {high:+.2f}]"


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


def _level(size: int, rows: list[tuple[Measured, Score]], clusters: Sequence[int]) -> Level:
    rows = sorted(rows, key=lambda row: (row[1].mean_nll, simplicity(row[0])))
    best = rows[0][1]
    known = next((score for one, score in rows if not isinstance(one, TrialRecord)), None)
    ranked = tuple(
        Ranked(
            measured=one,
            score=score,
            difference=paired_difference(score, best, clusters),
            against=paired_difference(score, known, clusters) if known else None,
        )
        for one, score in rows
    )
    chosen = recommend(rows, lambda index: ranked[index].difference)
    trial = next((row for row in ranked if isinstance(row.measured, TrialRecord)), None)
    return Level(
        group_size=size,
        rows=ranked,
        recommended=ranked[chosen],
        against=trial.against if trial else None,
    )


def _score(store: ResultStore, measured: Measured) -> Score:
    if measured.result is None:
        raise DamagedEntryError("", f"{measured.name} has no values per sequence")
    score = recall_result(store, measured.result).score
    if score is None:
        raise DamagedEntryError(measured.result, f"{measured.name} has no values per sequence")
    return score


def ranking_json(levels: Sequence[Level]) -> list[Mapping[str, object]]:
    """The ranking as `show --json` and `result.json` have it."""
    return [
        {
            "group_size": level.group_size,
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
                    "percent_above_best": dict(zip(("value", "low", "high"), row.difference.percent(), strict=True)),
                    "p_value": row.difference.p_value,
                }
                for row in level.rows
            ],
        }
        for level in levels
    ]
