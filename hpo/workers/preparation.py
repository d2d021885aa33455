"""Create a study or join it: contract first, then references, then the queue of presets.

Responsible for the one way in which a study comes to be, in steps that can each be repeated: whoever dies between two
of them leaves a study that the next process completes. May assume that equal plans give equal contracts.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage

from hpo.search.proposal import presets
from hpo.space.space import Space
from hpo.study.contract import require_same
from hpo.study.record import CONTRACT, QUEUED, REFERENCES, StudyRecord, read_study
from hpo.study.scores import Scores
from hpo.workers.measuring import measure_references, require_same_machine_result
from hpo.workers.queue import Queue
from objectives.errors import InputError
from objectives.progress import Progress
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from storage.results import ResultStore


def open_study(storage: BaseStorage, name: str, contract: Mapping[str, Any]) -> optuna.Study:
    """The study of that name under that contract, created where there is none.

    Raises:
        InputError: If it exists under another contract, or is no study of ours.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
        study.set_user_attr(CONTRACT, dict(contract))
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
        if study.trials and CONTRACT not in study.user_attrs:
            raise InputError(f"study {name!r} was not made by praqtune; choose another --study") from None
        if CONTRACT not in study.user_attrs:
            study.set_user_attr(CONTRACT, dict(contract))
    require_same(study.user_attrs[CONTRACT], contract, name)
    return study


def prepare(
    study: optuna.Study, queue: Queue, bench: Bench, store: ResultStore, tuning: Sequences, progress: Progress
) -> StudyRecord:
    """Make sure that references are measured and presets queued; compare this machine with the study's.

    Raises:
        InputError: If this machine scores full precision differently.
        RunError: If a reference cannot be measured.
    """
    known = read_study(study).references
    if known:
        require_same_machine_result(bench, Scores(store).of(known[0]), tuning, progress)
    else:
        measured = measure_references(bench, store, queue.space, tuning, progress)
        study.set_user_attr(REFERENCES, [_entry(asdict(one)) for one in measured])
    with queue.exclusive():
        if not study.user_attrs.get(QUEUED):
            _queue_presets(queue, read_study(study), queue.space)
            study.set_user_attr(QUEUED, True)
    return read_study(study)


def _queue_presets(queue: Queue, record: StudyRecord, space: Space) -> None:
    queued = {trial.setting for trial in record.trials}
    for origin, setting in presets(space):
        if setting not in queued:
            queue.add(setting, origin)


def _entry(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "seconds": dict(values["seconds"])}
