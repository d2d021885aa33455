"""Who works on which trial: queue settings, claim one, hand it back, take over what a dead process left.

Responsible for trials between WAITING and RUNNING. A claim is a compare-and-set of the storage, so no two workers get
the same trial. May assume that an owner on this machine is dead when its process is; of an owner on another machine
nothing is known here.
"""

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpo.record import ORIGIN, OWNER, SETTING
from hpo.space import Space
from quant.methods import Setting


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process: its machine, its number, and when it started, because numbers are used again."""

    host: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> "Owner":
        """The process that asks."""
        return cls(host=platform.node(), pid=os.getpid(), started=psutil.Process().create_time())

    def is_dead(self) -> bool:
        """Whether it certainly runs no more."""
        if self.host != platform.node():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > 1.0)
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True, kw_only=True)
class Queue:
    """The trials of one study between WAITING and RUNNING."""

    study: optuna.Study
    storage: BaseStorage
    space: Space

    def add(self, setting: Setting, origin: str) -> None:
        """Queue a setting."""
        attributes = {SETTING: setting.as_dict(), ORIGIN: origin, OWNER: asdict(Owner.this())}
        fixed = {"fixed_params": self.space.params(setting)}
        self.study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes, system_attrs=fixed))

    def claim(self) -> Trial | None:
        """The first waiting trial, now this process's; None where none waits."""
        for frozen in self._trials(TrialState.WAITING):
            with suppress(UpdateFinishedTrialError):
                # Written before the claim: a process that dies right after it leaves its name.
                self.storage.set_trial_user_attr(frozen._trial_id, OWNER, asdict(Owner.this()))
                if self.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
                    return self._begun(frozen._trial_id)
        return None

    def hand_back(self, trial: Trial) -> bool:
        """Let another worker, or a later run, have a trial; False if it had already ended."""
        with suppress(UpdateFinishedTrialError):
            return bool(self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING))
        return False

    def take_back_orphans(self) -> list[int]:
        """Queue again what processes of this machine were at when they died; returns the trials' numbers."""
        taken = []
        for frozen in self._trials(TrialState.RUNNING):
            owner = frozen.user_attrs.get(OWNER)
            if owner is None or not Owner(**owner).is_dead():
                continue
            with suppress(UpdateFinishedTrialError):
                if self.storage.set_trial_state_values(frozen._trial_id, TrialState.WAITING):
                    taken.append(frozen.number)
        return taken

    def _begun(self, trial_id: int) -> Trial:
        trial = Trial(self.study, trial_id)
        trial.set_user_attr(OWNER, asdict(Owner.this()))
        for dimension in self.space.dimensions:
            dimension.suggest(trial)
        return trial

    def _trials(self, state: TrialState) -> Iterable[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(state,))
