"""What of a study becomes a model: what it recommends, its best trial by value, or any trial by number.

Responsible for which one is meant, and for saying in one line why it is that one. May assume a study as it stands.
"""

from hpo.study.choosing import BEST, RECOMMENDED, chosen_trial
from hpo.study.record import Measured
from hpo.verdict.ranking import frontier
from hpo.verdict.recommendation import Recommendation
from hpo.verdict.snapshot import Study
from objectives.budget import Budget, size_text
from objectives.errors import InputError


def choose(study: Study, selector: str = RECOMMENDED) -> tuple[Measured, list[str]]:
    """The trial or reference that `recommended`, `best` or a number means, and what a person should know of it.

    Raises:
        InputError: If there is none, if it has no setting yet, or if it is not known here what is recommended.
    """
    if selector != RECOMMENDED:
        return chosen_trial(study.record, selector)
    chosen = study.recommendation
    if chosen is not None:
        return chosen.measured, [_reason(chosen, study)]
    least = f"the trial of least {study.record.objective.label}"
    if study.record.best is not None:
        raise InputError(
            f"study {study.record.name!r}: what is recommended is not known here, because its references or its values "
            f"per sequence are missing; give --trial best, {least}, or a number"
        )
    return chosen_trial(study.record, BEST)


def front_member(study: Study, budget: Budget) -> tuple[Measured, list[str]]:
    """The best that a study of a front measured within a budget, and what a person should know of it.

    Raises:
        InputError: If nothing that it measured to the end is as small, naming the sizes of its front, or if its values
            are not known here.
    """
    front = [row.measured for row in frontier(study.rankings)]
    sizes = [(measured, measured.size) for measured in front if measured.size is not None]
    if not sizes:
        raise InputError(
            f"study {study.record.name!r}: its front is not known here, because no trial is complete or its values per "
            "sequence are missing; give --trial best or a number"
        )
    within = [measured for measured, size in sizes if budget.spare(size) >= 0]
    if not within:
        least, most = size_text(sizes[0][1]), size_text(sizes[-1][1])
        raise InputError(f"{budget} is below the front of study {study.record.name!r}, from {least} to {most}")
    chosen = within[-1]
    note = f"of the study's front, {chosen.full_name} is the best of at most {budget}, on the text that it was tuned on"
    return chosen, [note + _tested(study, chosen)]


def _tested(study: Study, chosen: Measured) -> str:
    """Say what held-out text showed of a member of a front; nothing where it leads no size class as a trial does."""
    rankings = (ranking for ranking in study.rankings if ranking.size_class == chosen.size_class)
    of_best = [ranking for ranking in rankings if ranking.best_trial and ranking.best_trial.measured is chosen]
    return "".join(f"; {study.recommended(ranking).confirmed} on held-out text" for ranking in of_best)


def _reason(chosen: Recommendation, study: Study) -> str:
    kind = "" if chosen.is_trial else ", a reference"
    best = study.record.best
    other = best is not None and best.name != chosen.measured.name
    least = f"the trial of least {study.record.objective.label}"
    instead = f"; --trial best writes {best.name}, {least}" if best is not None and other else ""
    return f"what is recommended is {chosen.measured.full_name}{kind}: {chosen.reason}{instead}"
