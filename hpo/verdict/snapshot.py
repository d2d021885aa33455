"""A study as it stood when it was read: what is stored of it, ranked.

Responsible for the one value that reports, model cards, the dashboard and notebooks are handed, so that record, ranking
and scores are of the same moment. May assume that scores lie where the study's workers kept them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import optuna

from hpo.study.record import StudyRecord, read_study
from hpo.study.scores import Scores
from hpo.verdict.ranking import SizeClassRanking, headline, rank
from hpo.verdict.recommendation import Recommendation, recommendation, settled
from hpo.verdict.waterfall import Step, waterfall
from storage.errors import DamagedEntryError
from storage.paths import Paths
from storage.results import ResultStore

if TYPE_CHECKING:
    from hpo.verdict.importance import Importances

UNMEASURED = "its references are not measured yet"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it stood.

    Attributes:
        record: Everything that is stored of it.
        rankings: What was measured to the end, for each size at equal bits, settled by held-out text; empty where it
            is not known.
        scores: Its values per sequence, and the store where its results are.
        notes: What a person should know besides.
    """

    record: StudyRecord
    rankings: Sequence[SizeClassRanking]
    scores: Scores
    notes: Sequence[str] = ()

    @property
    def lead(self) -> SizeClassRanking | None:
        """Return the ranking that a report leads with; None before a trial is complete."""
        return headline(self.rankings)

    @property
    def recommendation(self) -> Recommendation | None:
        """Return what the study recommends: the one meaning of its best; None before a trial is complete."""
        return None if self.lead is None else self.recommended(self.lead)

    def recommended(self, ranking: SizeClassRanking) -> Recommendation:
        """Say what is recommended at the size class of one of the rankings."""
        return recommendation(ranking, self.record.confirmation)

    @property
    def waterfall(self) -> tuple[Step, ...]:
        """Return what is recommended, step by step from nearest rounding; empty where that is not measured."""
        chosen = self.recommendation
        recommended = chosen.measured if chosen else None
        return waterfall(self.record.waterfall, self.scores, recommended, self.record.objective)

    @property
    def store(self) -> ResultStore:
        """Return the store where its results are."""
        return self.scores.store

    @cached_property
    def importances(self) -> "Importances":
        """Compute each hyperparameter's share of the outcome, once; seconds for many trials."""
        # Imported here: `show` has no use for it, and scikit-learn takes a second.
        from hpo.verdict.importance import importances

        return importances(self.record.contract.space, self.record.trials)


def read(study: optuna.Study, paths: Paths) -> Study:
    """Read a study as it stands now, without its model.

    Raises:
        DamagedEntryError: If its values per sequence are missing or damaged.
    """
    return ranked(read_study(study), Scores(ResultStore(paths.results)))


def ranked(record: StudyRecord, scores: Scores) -> Study:
    """Rank what is known of a study already.

    Raises:
        DamagedEntryError: If its values per sequence are missing or damaged.
    """
    if not record.references:
        return Study(record=record, rankings=[], scores=scores, notes=(UNMEASURED,))
    rankings = [settled(ranking, record.confirmation) for ranking in rank(record, scores)]
    study = Study(record=record, rankings=rankings, scores=scores)
    chosen, refined = study.recommendation, record.refined
    if refined is None or (chosen is not None and chosen.measured.name == refined.refined):
        return study
    # The study went on, and recommends another setting than what was refined.
    return replace(study, record=replace(record, refined=None))


def read_unranked(study: optuna.Study, paths: Paths) -> Study:
    """Read it without its rankings, for which no values per sequence are needed."""
    return Study(record=read_study(study), rankings=[], scores=Scores(ResultStore(paths.results)))


def read_ranked_if_possible(study: optuna.Study, paths: Paths) -> Study:
    """Read it, ranked where its values per sequence are on this machine."""
    try:
        return read(study, paths)
    except DamagedEntryError:
        return read_unranked(study, paths)
