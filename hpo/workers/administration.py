"""Studies as a whole: list them, remove one, queue its failed settings again, end what dead workers left.

Responsible for what people do to a study from outside while workers may be at it. May assume that whoever calls works
on no trial itself.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from hpo.study.attributes import CONTRACT, ORIGIN, RETRY_OF, SETTING, value_of
from hpo.study.objective import PERPLEXITY
from hpo.study.owner import Owner
from hpo.study.record import read_study
from hpo.workers.heartbeat import GRACE_SECONDS
from hpo.workers.queue import Watch, take_back
from objectives.errors import InputError
from storage.studies.exclusive import exclusive

POLL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One study of a storage, of whatever format; what another program made has no model, format or objective."""

    name: str
    model: str | None
    format: int | None
    trials: dict[str, int]
    best: float | None
    objective: str | None


def list_studies(storage: BaseStorage) -> list[Listed]:
    """List every study of a storage, by name."""
    listed = []
    for name in sorted(optuna.get_all_study_names(storage)):
        study = optuna.load_study(storage=storage, study_name=name)
        contract, trials = study.user_attrs.get(CONTRACT, {}), study.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        values = [value for trial in complete if (value := value_of(trial)) is not None]
        listed.append(
            Listed(
                name=name,
                model=contract.get("model", {}).get("name"),
                format=contract.get("format"),
                trials=dict(Counter(trial.state.name for trial in trials)),
                best=min(values, default=None),
                # Before it could be chosen it was perplexity.
                objective=contract.get("objective", PERPLEXITY.name) if contract else None,
            )
        )
    return listed


def remove_study(study: optuna.Study, storage: BaseStorage, force: bool) -> None:
    """Remove a study from its storage; measured results stay in the result store.

    Raises:
        InputError: If workers are at it and it is not forced.
    """
    running = [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    if running and not force:
        numbers = ", ".join(map(str, running))
        raise InputError(
            f"study {study.study_name!r} has running trials ({numbers}); stop its workers and `study repair` it, "
            "or remove it all the same with --force"
        )
    optuna.delete_study(study_name=study.study_name, storage=storage)


def retry_failed(study: optuna.Study, storage: BaseStorage) -> list[int]:
    """Queue the settings of failed trials again; returns the failed trials' numbers, which count no more."""
    with exclusive(storage, study.study_name):
        retried = read_study(study).retried
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        again = [trial for trial in failed if trial.number not in retried and SETTING in trial.user_attrs]
        for trial in again:
            attributes = {name: trial.user_attrs[name] for name in (SETTING, ORIGIN) if name in trial.user_attrs}
            study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    user_attrs={**attributes, RETRY_OF: trial.number},
                    system_attrs={"fixed_params": trial.system_attrs.get("fixed_params", trial.params)},
                )
            )
    return [trial.number for trial in again]


def repair_study(study: optuna.Study, storage: BaseStorage, say: Callable[[str], None]) -> list[tuple[int, str]]:
    """Queue again what dead workers left; waits until it is clear which of them are alive.

    Returns:
        The trials' numbers, and what became of each.
    """
    watch, owner, repaired = Watch(), Owner.this(), list[tuple[int, str]]()
    started = time.monotonic()
    while True:
        with exclusive(storage, study.study_name):
            repaired += take_back(study, storage, owner, watch)
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not running or time.monotonic() - started > GRACE_SECONDS + POLL_SECONDS:
            return repaired
        if time.monotonic() - started < POLL_SECONDS:
            say(f"watching {len(running)} running trials for {GRACE_SECONDS:.0f} s: are their workers alive?")
        time.sleep(POLL_SECONDS)
