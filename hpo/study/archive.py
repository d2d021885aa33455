"""A whole study in one file, to be moved to another storage or another machine.

Responsible for trials with everything that is known of them, and for the values per sequence that the paired
comparison needs. A study that was begun on SQLite goes on on PostgreSQL as if nothing had happened. May assume
nothing of a file that is read: its entries are checked before anything is written, and nothing is unpickled.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.study.attributes import BYTES, CONTRACT, value_of
from hpo.study.contract import Contract, require_format, require_name, stored_contract
from hpo.study.record import read_study
from objectives.errors import InputError
from objectives.results import text_key
from storage.files import write_file
from storage.results import KEY, ResultStore
from storage.typed_json import decode

FORMAT = 1
STUDY, RESULTS, SUFFIX = "study.json", "results/", ".safetensors"
# An archive of ten thousand trials has a few hundred megabytes.
MOST_ENTRIES, MOST_BYTES = 100_000, 2**31
LONGEST_REASON = 300
# What reading a file of any content raises, from the archive down to the values in it.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    AssertionError,
    optuna.exceptions.OptunaError,
)


@dataclass(frozen=True, kw_only=True)
class ArchivedTrial:
    """A trial as it is written: Optuna's own fields."""

    state: str
    value: float | None
    params: Mapping[str, object]
    distributions: Mapping[str, str]
    user_attributes: Mapping[str, object]
    system_attributes: Mapping[str, object]
    intermediate_values: Mapping[int, float]
    started: str | None
    finished: str | None


@dataclass(frozen=True, kw_only=True)
class ArchivedStudy:
    """A study as it is written."""

    format: int
    name: str
    attributes: Mapping[str, object]
    trials: tuple[ArchivedTrial, ...]

    @property
    def contract(self) -> Mapping[str, Any]:
        """Its contract; empty where it has none."""
        contract = self.attributes.get(CONTRACT)
        return contract if isinstance(contract, Mapping) else {}


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
    name = described.name if name is None else name
    require_name(name)
    if name in optuna.get_all_study_names(storage):
        raise InputError(f"there is a study {name!r} in the storage already; import it under another name with --as")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # First where nothing stays, and read as any study is: what cannot be read is not written.
    try:
        read_study(_written(described, optuna.storages.InMemoryStorage(), name))
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{source} holds what cannot be read ({_one_line(error)}); export the study again") from error
    for key, encoded in results.items():
        store.adopt(key, encoded)
    try:
        return _written(described, storage, name)
    except BaseException as error:
        if name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        if isinstance(error, TypeError | ValueError | OverflowError) and not isinstance(error, InputError):
            raise InputError(f"{source} holds what the storage cannot ({_one_line(error)}); export it again") from error
        raise


def _written(described: ArchivedStudy, storage: BaseStorage, name: str) -> optuna.Study:
    """Make the study in a storage."""
    require_format(described.contract, name)
    contract = stored_contract(described.contract, name)
    study = optuna.create_study(storage=storage, study_name=name, directions=contract.directions)
    for trial in described.trials:
        study.add_trial(_trial(trial, contract))
    # Written last: without its contract nobody takes half of a study for a whole one.
    for key, value in sorted(described.attributes.items(), key=lambda item: item[0] == CONTRACT):
        study.set_user_attr(key, value)
    return study


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


def _results(study: optuna.Study) -> list[str]:
    """Keys of everything that a study refers to."""
    record = read_study(study)
    everything = (*record.references, *record.waterfall, *record.trials)
    keys = [str(measured.result) for measured in everything if measured.result]
    return list(dict.fromkeys([*keys, text_key(record.contract.tuning.fingerprint)]))


def _described(trial: FrozenTrial) -> dict[str, Any]:
    state = TrialState.WAITING if trial.state == TrialState.RUNNING else trial.state
    waits = state == TrialState.WAITING
    system = trial.system_attrs
    return {
        "state": state.name,
        "value": value_of(trial),
        "params": {} if waits else trial.params,
        "distributions": {}
        if waits
        else {name: distribution_to_json(distribution) for name, distribution in trial.distributions.items()},
        "user_attributes": trial.user_attrs,
        "system_attributes": system if "fixed_params" in system or not waits else {"fixed_params": trial.params},
        "intermediate_values": trial.intermediate_values,
        "started": trial.datetime_start.isoformat() if trial.datetime_start else None,
        "finished": trial.datetime_complete.isoformat() if trial.datetime_complete else None,
    }


def _trial(values: ArchivedTrial, contract: Contract) -> FrozenTrial:
    """The inverse of `_described`."""
    every = [values.user_attributes.get(BYTES), values.value][-len(contract.directions) :]
    trial = create_trial(
        state=TrialState[values.state],
        values=None if values.value is None else every,  # type: ignore[arg-type]
        params=dict(values.params),
        distributions={name: json_to_distribution(text) for name, text in values.distributions.items()},
        user_attrs=dict(values.user_attributes),
        system_attrs=dict(values.system_attributes),
        intermediate_values=dict(values.intermediate_values),
    )
    trial.datetime_start = datetime.fromisoformat(values.started) if values.started else None
    trial.datetime_complete = datetime.fromisoformat(values.finished) if values.finished else None
    return trial


def _read(source: Path) -> tuple[ArchivedStudy, dict[str, bytes]]:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = _entries(archive)
            study = json.loads(archive.read(STUDY))
            # Halves of characters are no text to any storage.
            json.dumps(study, ensure_ascii=False).encode()
            results = {key: archive.read(name) for name, key in entries.items()}
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}; check the path") from error
    except UNREADABLE as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else _one_line(error)
        raise InputError(f"{source} is no exported study ({reason}); write one with `study export`") from error
    if not isinstance(study, dict) or study.get("format") != FORMAT:
        raise InputError(f"{source} is no study of format {FORMAT}; export it again with this version")
    try:
        return decode(ArchivedStudy, study, "the study"), results
    except UNREADABLE as error:
        raise InputError(f"{source} holds what cannot be read ({_one_line(error)}); export the study again") from error


def _entries(archive: zipfile.ZipFile) -> dict[str, str]:
    """The names of the results in an archive, each with its key.

    Raises:
        ValueError: If there are too many entries, too large ones, or others.
    """
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"it has {len(entries)} entries, and at most {MOST_ENTRIES} are read")
    total = sum(entry.file_size for entry in entries)
    if total > MOST_BYTES:
        raise ValueError(f"its entries have {total} bytes, and at most {MOST_BYTES} are read")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("it has two entries of one name")
    return {name: _key(name) for name in names if name != STUDY}


def _key(name: str) -> str:
    """The key in a file's name; nothing else can be meant, least of all a path."""
    key = name.removeprefix(RESULTS).removesuffix(SUFFIX)
    if name != f"{RESULTS}{key}{SUFFIX}" or not KEY.fullmatch(key):
        raise ValueError(f"unexpected entry {name[:100]!r}")
    return key
