"""What of a study becomes a model: what it recommends, its best trial by value, or any trial by number.

Responsible for which one is meant, and for saying in one line why it is that one. May assume a study as it stands.
"""

from hpo.study.choosing import BEST, RECOMMENDED, chosen_trial
from hpo.study.record import Measured
from hpo.verdict.recommendation import Recommendation
from hpo.verdict.snapshot import Study
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


def _reason(chosen: Recommendation, study: Study) -> str:
    kind = "" if chosen.is_trial else ", a reference"
    best = study.record.best
    other = best is not None and best.name != chosen.measured.name
    least = f"the trial of least {study.record.objective.label}"
    instead = f"; --trial best writes {best.name}, {least}" if best is not None and other else ""
    return f"what is recommended is {chosen.measured.full_name}{kind}: {chosen.reason}{instead}"
