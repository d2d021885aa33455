"""Watch a study from outside: what ended since the last look, and who is at what.

Responsible for turning what the storage holds into events. May assume that workers write heartbeats; it needs no
connection to them, so it shows workers of other machines as well.
"""

import time
from dataclasses import dataclass, field

import optuna
from optuna.storages import BaseStorage

from hpo.study.events import Finished, Listener, Notice, Working
from hpo.study.record import ENDED, StudyRecord, TrialRecord, read_study
from hpo.workers.interrupts import Interrupts
from hpo.workers.worker import Budget, finished_event
from storage.studies.opening import open_storage, storage_errors
from storage.studies.retries import with_retries


@dataclass(kw_only=True)
class Follower:
    """Follows one study.

    Attributes:
        storage: Its URL.
        study: Its name; it may not exist yet.
        budget: What it may spend.
        listen: Told of what happens.
        interrupts: Of the process.
    """

    storage: str
    study: str
    budget: Budget
    listen: Listener
    interrupts: Interrupts = field(default_factory=Interrupts)
    _before: int | None = None
    _reported: set[int] = field(default_factory=set)
    _opened: BaseStorage | None = None
    _study: optuna.Study | None = None
    _started: float = field(default_factory=time.monotonic)

    def look(self) -> int:
        """Say what is new; returns how many trials have ended."""
        record = self._read()
        ended = [] if record is None else [trial for trial in record.counted if trial.state in ENDED]
        if self._before is None:
            # What was there at the first look is no news.
            self._before, self._reported = len(ended), {trial.number for trial in ended}
        if record is None:
            return 0
        for trial in ended:
            if trial.number not in self._reported:
                self._reported.add(trial.number)
                self.listen(self._finished(record, trial))
        running = tuple(trial for trial in record.trials if trial.state == "RUNNING")
        if not running and not ended:
            # Until the first trial begins, workers load, calibrate and measure references: that is nobody's pace.
            self._started = time.monotonic()
        self.listen(Working(trials=running))
        return len(ended)

    def say(self, text: str) -> None:
        """Pass a notice on."""
        self.listen(Notice(text=text))

    def _read(self) -> StudyRecord | None:
        with storage_errors(self.storage):
            if self._opened is None:
                self._opened = open_storage(self.storage)
            opened = self._opened

            def read() -> StudyRecord | None:
                try:
                    # Kept: Optuna then reads again only trials that had not ended.
                    self._study = self._study or optuna.load_study(storage=opened, study_name=self.study)
                    return read_study(self._study)
                except KeyError:
                    self._study = None
                    return None

            return with_retries(self.interrupts.shielded(read), self.say, self.interrupts.check)

    def _finished(self, record: StudyRecord, trial: TrialRecord) -> Finished:
        done = len(self._reported)
        # Seconds between two ends, with all workers together.
        pace = (time.monotonic() - self._started) / (done - (self._before or 0))
        return finished_event(record, trial, done, self.budget, pace)
