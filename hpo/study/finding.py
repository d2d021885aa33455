"""An existing study, by its name or because it was begun last.

Responsible for the refusals that name what there is. Imports little: whoever asks where a study stands should not wait
for the packages that run one.
"""

import optuna
from optuna.storages import BaseStorage

from hpo.study.attributes import CONTRACT
from hpo.study.contract import require_format
from objectives.errors import InputError


def find_study(storage: BaseStorage, name: str | None) -> optuna.Study:
    """An existing study; without a name the one that was begun last.

    Raises:
        InputError: If there is none, listing those there are, or if it is of another format.
    """
    study = find_study_of_any_format(storage, name)
    require_format(study.user_attrs[CONTRACT], study.study_name)
    return study


def find_study_of_any_format(storage: BaseStorage, name: str | None) -> optuna.Study:
    """The same for whoever does not read what it holds.

    Raises:
        InputError: If there is none, listing those there are.
    """
    names = optuna.get_all_study_names(storage)
    if not names:
        raise InputError("the storage holds no study; begin one with `optimize`, or check --storage")
    if name is None:
        summaries = optuna.get_all_study_summaries(storage)
        name = max(
            summaries, key=lambda summary: (summary.datetime_start is not None, summary.datetime_start)
        ).study_name
    if name not in names:
        raise InputError(f"there is no study {name!r}; there are: {', '.join(names)}")
    study = optuna.load_study(storage=storage, study_name=name)
    if CONTRACT not in study.user_attrs:
        raise InputError(f"study {name!r} was not made by praqtune; there are: {', '.join(names)}")
    return study
