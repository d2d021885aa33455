"""A whole study in one file, to be moved to another storage or another machine.

Responsible for trials with everything that is known of them, and for the values per sequence that the paired
comparison needs. A study that was begun on SQLite goes on on PostgreSQL as if nothing had happened. May assume
nothing of a file that is read: its entries are checked before anything is written, and nothing is unpickled.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.study.attributes import CONTRACT
from hpo.study.contract import require_format
from hpo.study.record import read_study
from objectives.errors import InputError
from objectives.results import text_key
from storage.files import write_file
from storage.results import ResultStore

FORMAT = 1
STUDY, RESULTS, SUFFIX = "study.json", "results/", ".safetensors"
KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")


def export_study(study: optuna.Study, store: ResultStore, target: Path) -> int:
    """Write a study into one file; returns the number of results that went with it.

    Running trials are written as waiting: whoever imports them begins them anew.

    Raises:
        DamagedEntryError: If a result is missing or damaged.
        StorageError: If the file cannot be written.
    """
    trials = study.get_trials(deepcopy=False)
    described = {
        "format": FORMAT,
        "name": study.study_name,
        "attributes": study.user_attrs,
        "trials": [_described(trial) for trial in trials],
    }
    keys = _results(study)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(STUDY, json.dumps(described))
        for key in keys:
            archive.writestr(f"{RESULTS}{key}{SUFFIX}", store.encoded(key))
    write_file(target, packed.getvalue())
    return len(keys)


def import_study(storage: BaseStorage, store: ResultStore, source: Path, name: str | None = None) -> optuna.Study:
    """Make the study of a file in another storage, under its own name or another one.

    Raises:
        InputError: If the file is none of a study, or of one of another format, or the name is taken.
        DamagedEntryError: If a result in it is damaged.
    """
    described, results = _read(source)
    name = name or str(described["name"])
    if name in optuna.get_all_study_names(storage):
        raise InputError(f"there is a study {name!r} in the storage already; import it under another name with --as")
    try:
        trials = [_trial(values) for values in described["trials"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} holds a trial that cannot be read ({error}); export the study again") from error
    require_format(described["attributes"].get(CONTRACT, {}), name)
    for key, encoded in results.items():
        store.adopt(key, encoded)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
    try:
        for trial in trials:
            study.add_trial(trial)
        # Written last: without its contract nobody takes half of a study for a whole one.
        for key, value in sorted(described["attributes"].items(), key=lambda item: item[0] == CONTRACT):
            study.set_user_attr(key, value)
    except BaseException:
        optuna.delete_study(study_name=name, storage=storage)
        raise
    return study


def _results(study: optuna.Study) -> list[str]:
    """Keys of everything that a study refers to."""
    record = read_study(study)
    measured = [str(one.result) for one in (*record.references, *record.trials) if one.result]
    return list(dict.fromkeys([*measured, text_key(record.contract.tuning.fingerprint)]))


def _described(trial: FrozenTrial) -> dict[str, Any]:
    state = TrialState.WAITING if trial.state == TrialState.RUNNING else trial.state
    waits = state == TrialState.WAITING
    system = trial.system_attrs
    return {
        "state": state.name,
        "value": trial.value,
        "params": {} if waits else trial.params,
        "distributions": {}
        if waits
        else {name: distribution_to_json(one) for name, one in trial.distributions.items()},
        "user_attributes": trial.user_attrs,
        "system_attributes": system if "fixed_params" in system or not waits else {"fixed_params": trial.params},
        "intermediate_values": trial.intermediate_values,
        "started": trial.datetime_start.isoformat() if trial.datetime_start else None,
        "finished": trial.datetime_complete.isoformat() if trial.datetime_complete else None,
    }


def _trial(values: Mapping[str, Any]) -> FrozenTrial:
    """The inverse of `_described`."""
    trial = create_trial(
        state=TrialState[values["state"]],
        value=values["value"],
        params=values["params"],
        distributions={name: json_to_distribution(text) for name, text in values["distributions"].items()},
        user_attrs=values["user_attributes"],
        system_attrs=values["system_attributes"],
        intermediate_values={int(step): value for step, value in values["intermediate_values"].items()},
    )
    trial.datetime_start = datetime.fromisoformat(values["started"]) if values["started"] else None
    trial.datetime_complete = datetime.fromisoformat(values["finished"]) if values["finished"] else None
    return trial


def _read(source: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        with zipfile.ZipFile(source) as archive:
            described = json.loads(archive.read(STUDY))
            names = [name for name in archive.namelist() if name != STUDY]
            results = {_key(name): archive.read(name) for name in names}
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}; check the path") from error
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"{source} is no exported study ({error}); write one with `study export`") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise InputError(f"{source} is no study of format {FORMAT}; export it again with this version")
    return described, results


def _key(name: str) -> str:
    """The key in a file's name; nothing else can be meant, least of all a path."""
    key = name.removeprefix(RESULTS).removesuffix(SUFFIX)
    if name != f"{RESULTS}{key}{SUFFIX}" or not KEY.fullmatch(key):
        raise ValueError(f"unexpected entry {name!r}")
    return key
