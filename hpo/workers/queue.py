"""Who works on which trial: queue settings, claim one, hand it back, take over what a dead worker left.

Responsible for trials between WAITING and RUNNING. What changes hands does so under the study's lock, so no two
workers get the same trial. An owner on this machine is dead when its process is; any other one when its heartbeats
stopped coming.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from time import monotonic

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hpo.space.space import Space
from hpo.study.attributes import BEAT, ORIGIN, OWNER, SETTING, TAKEOVERS, trial_attributes, write_failure
from hpo.study.owner import Owner
from hpo.workers.heartbeat import GRACE_SECONDS
from quant.setting import Setting
from storage.studies.exclusive import exclusive
from storage.typed_json import encode

# A setting whose workers die again and again is what kills them.
MOST_TAKEOVERS = 2
LOST = "worker died"


class Watch:
    """Since when this process has seen no new heartbeat of each running trial."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, float]] = {}

    def silence(self, trial: FrozenTrial) -> float:
        """Count the seconds, of this process's own clock, without news of the trial."""
        news = (trial.user_attrs.get(OWNER), (trial.user_attrs.get(BEAT) or {}).get("count"))
        last, since = self._seen.get(trial.number, (None, 0.0))
        if last != news:
            self._seen[trial.number] = (news, monotonic())
            return 0.0
        return monotonic() - since


@dataclass(frozen=True, kw_only=True)
class Queue:
    """The trials of one study between WAITING and RUNNING, as one worker sees them."""

    study: optuna.Study
    storage: BaseStorage
    space: Space
    owner: Owner = field(default_factory=Owner.this)
    watch: Watch = field(default_factory=Watch)

    def exclusive(self) -> AbstractContextManager[object]:
        """Take the study's lock: whoever holds it is the only one that asks, queues, claims or takes back."""
        return exclusive(self.storage, self.study.study_name)

    def add(self, setting: Setting, origin: str) -> None:
        """Queue a setting."""
        attributes = {SETTING: encode(setting), ORIGIN: origin, OWNER: encode(self.owner)}
        fixed = {"fixed_params": self.space.params(setting)}
        self.study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes, system_attrs=fixed))

    def claim(self) -> Trial | None:
        """Claim the first waiting trial for this worker; None where none waits."""
        for frozen in self._trials(TrialState.WAITING):
            with suppress(UpdateFinishedTrialError):
                # Written before the claim: a process that dies right after it leaves its name.
                self.storage.set_trial_user_attr(frozen._trial_id, OWNER, encode(self.owner))
                if self.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
                    return self._begun(frozen._trial_id)
        return None

    def owns(self, trial: Trial) -> bool:
        """Tell whether a trial is still this worker's: it may have been taken over while the process was suspended."""
        frozen = self.storage.get_trial(trial._trial_id)
        return frozen.state == TrialState.RUNNING and self._has(frozen)

    def hand_back(self) -> list[int]:
        """Let others, or a later run, have what this worker was at; returns the trials' numbers."""
        return [
            trial.number for trial in self._trials(TrialState.RUNNING) if self._has(trial) and self._wait_again(trial)
        ]

    def take_back(self) -> list[tuple[int, str]]:
        """Queue again what dead workers were at (`take_back`)."""
        return take_back(self.study, self.storage, self.owner, self.watch)

    def others_run(self) -> int:
        """Count the trials that other workers are at."""
        return sum(1 for _ in self._trials(TrialState.RUNNING))

    def _has(self, frozen: FrozenTrial) -> bool:
        return bool(frozen.user_attrs.get(OWNER) == encode(self.owner))

    def _wait_again(self, frozen: FrozenTrial) -> bool:
        with suppress(UpdateFinishedTrialError):
            return bool(self.storage.set_trial_state_values(frozen._trial_id, TrialState.WAITING))
        return False

    def _begun(self, trial_id: int) -> Trial:
        trial = Trial(self.study, trial_id)
        for dimension in self.space.dimensions:
            dimension.suggest(trial)
        return trial

    def _trials(self, state: TrialState) -> Iterable[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(state,))


def take_back(study: optuna.Study, storage: BaseStorage, owner: Owner, watch: Watch) -> list[tuple[int, str]]:
    """Queue again what dead workers were at; call it under the study's lock, by `owner` while it is at nothing.

    A trial whose workers died more than `MOST_TAKEOVERS` times fails.

    Returns:
        The trials' numbers, and what became of each.
    """
    return [
        (frozen.number, _requeue(storage, frozen, reason))
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if (reason := _is_left(frozen, owner, watch)) is not None
    ]


def _is_left(frozen: FrozenTrial, own: Owner, watch: Watch) -> str | None:
    """Say why nobody is at a running trial any more; None if someone may be."""
    owner = trial_attributes(frozen).owner
    silence = watch.silence(frozen)
    if owner == own:
        return "its claim was interrupted"
    if owner is not None and owner.is_dead():
        return f"its worker {owner.name} died"
    if silence > GRACE_SECONDS:
        name = owner.name if owner else "unknown"
        return f"its worker {name} gave no sign of life for {silence:.0f} s"
    return None


def _requeue(storage: BaseStorage, frozen: FrozenTrial, reason: str) -> str:
    takeovers = trial_attributes(frozen).takeovers + 1
    with suppress(UpdateFinishedTrialError):
        storage.set_trial_user_attr(frozen._trial_id, TAKEOVERS, takeovers)
        if takeovers <= MOST_TAKEOVERS:
            storage.set_trial_state_values(frozen._trial_id, TrialState.WAITING)
            return f"{reason}; it is queued again"
        reason = f"{reason}, and {MOST_TAKEOVERS} workers before it"
        write_failure(storage, frozen._trial_id, LOST, reason)
        return f"{reason}; it failed"
    return "it had ended after all"
