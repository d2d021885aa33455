"""One study's page on the dashboard, brought up to date.

Responsible for what is renewed when: note, attributes and graphs whenever a trial moved, a trial's own note and files
when it ended, the report now and then. A piece that cannot be drawn is named in the study's note, and the others are
drawn. May assume that its process is the only one that does this.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.trial import FrozenTrial

from hpo.dashboard.board import Board
from hpo.dashboard.graphs import GRAPHS, graph
from hpo.dashboard.notes import study_facts, study_note, trial_note
from hpo.dashboard.pictures import PICTURE, TABLE, layer_table, trial_picture
from hpo.report.captions import captions
from hpo.report.charts import ChartData, chart_data
from hpo.report.verdict_data import find_row
from hpo.report.write import PAGE, report_files
from hpo.study.record import ENDED, StudyRecord, TrialRecord, read_study
from hpo.verdict.snapshot import Study, read, read_unranked
from objectives.results import load_result
from objectives.trial import TrialResult
from storage.errors import DamagedEntryError
from storage.paths import Paths
from storage.results import ResultStore

REPORT, TRIALS = "report.html", "trials.csv"
# While trials run: a report takes seconds to draw and nobody reads one every minute.
REPORT_SECONDS = 60.0
# So that the note of the study does not wait for the pictures of hundreds of trials.
TRIALS_AT_ONCE = 20

Fingerprint = tuple[object, ...]
P = ParamSpec("P")
T = TypeVar("T")


class StudyPage:
    """What was shown of one study, and what has changed since."""

    def __init__(self, board: Board, paths: Paths, address: str) -> None:
        self._board, self._paths, self._address = board, paths, address
        self._store = ResultStore(paths.results)
        self._shown: Fingerprint = ()
        self._reported: Fingerprint = ()
        self._reported_at = -REPORT_SECONDS
        self._done: set[int] = set()
        self.problems: list[str] = []

    @property
    def study(self) -> optuna.Study:
        """Return the study whose page it is."""
        return self._board.study

    def refresh(self) -> None:
        """Bring the page up to date with the study; pieces of many trials take several calls."""
        trials = self.study.get_trials(deepcopy=False)
        record = read_study(self.study)
        now = _fingerprint(record)
        due, moved = self._report_is_due(record, now), now != self._shown
        ended = [trial for trial in trials if trial.number not in self._done and trial.state.name in ENDED]
        if not (due or moved or ended):
            return
        if due or moved:
            self.problems = []
        study = self._ranked()
        if due or moved:
            self._show_study(study, now, due)
        running = [trial for trial in trials if trial.state.name == "RUNNING"] if moved else []
        # The newest first: those are looked at.
        self._show_trials([*running, *ended[::-1][:TRIALS_AT_ONCE]], study)

    def _show_study(self, study: Study, now: Fingerprint, report: bool) -> None:
        self._board.name_metric(study.record.objective.column)
        self._board.attributes(study_facts(study))
        data = self._attempt("the graphs", chart_data, study)
        if data is not None:
            self._show_graphs(data)
        # Before the report, which takes seconds, and after it, where it brought a link or a problem.
        self._show_study_note(study)
        if report:
            self._attempt("the report", self._show_report, study)
            self._reported, self._reported_at = now, monotonic()
            self._show_study_note(study)
        self._shown = now

    def _show_study_note(self, study: Study) -> None:
        files = self._board.files()
        links = {name: self._board.address(files[name]) for name in (REPORT, TRIALS) if name in files}
        self._board.note(study_note(study, self._address, links, self.problems))

    def _ranked(self) -> Study:
        try:
            return read(self.study, self._paths)
        except DamagedEntryError as damage:
            self._name(f"the ranking: {damage}; start the dashboard with the --cache of its workers")
            return read_unranked(self.study, self._paths)

    def _show_graphs(self, data: ChartData) -> None:
        missing = {caption.key for caption in captions(data) if caption.missing is not None}
        for key, (name, title) in GRAPHS.items():
            if name not in missing:
                self._attempt(f"the graph {title!r}", self._show_graph, key, data)

    def _show_graph(self, key: str, data: ChartData) -> None:
        self._board.graph(key, graph(key, data))

    def _report_is_due(self, record: StudyRecord, now: Fingerprint) -> bool:
        if now == self._reported or not record.references:
            return False
        running = any(trial.state == "RUNNING" for trial in record.trials)
        return not running or monotonic() - self._reported_at >= REPORT_SECONDS

    def _show_report(self, study: Study) -> None:
        files = report_files(study)
        for name, source in ((REPORT, PAGE), (TRIALS, TRIALS)):
            content = files[source]
            assert content is not None
            self._board.file(name, content)

    def _show_trials(self, frozen_trials: Sequence[FrozenTrial], study: Study) -> None:
        entries = self._board.entries() if frozen_trials else {}
        for frozen in frozen_trials:
            trial = study.record.trials[frozen.number]
            result = self._attempt(f"the result of {trial.name}", self._result, trial)
            self._attempt(f"the note of {trial.name}", self._show_note, frozen, trial, result, study)
            if frozen.state.name in ENDED:
                self._attempt(f"the files of {trial.name}", self._show_files, frozen, result, study, entries)
                self._done.add(frozen.number)

    def _show_note(self, frozen: FrozenTrial, trial: TrialRecord, result: TrialResult | None, study: Study) -> None:
        ranking = next((ranking for ranking in study.rankings if find_row(ranking, trial.name)), None)
        layers = result.layers if result else []
        self._board.note(trial_note(trial, ranking, layers, study.record.full_precision), frozen._trial_id)

    def _show_files(
        self, frozen: FrozenTrial, result: TrialResult | None, study: Study, entries: dict[str, Any]
    ) -> None:
        full, objective = study.record.full_precision, study.record.objective
        if result is None or full is None or result.score is None:
            return
        present = self._board.files(frozen._trial_id, entries)
        if PICTURE not in present:
            self._board.file(PICTURE, trial_picture(result, study.scores.of(full), objective), frozen._trial_id)
        if TABLE not in present and result.layers:
            self._board.file(TABLE, layer_table(result), frozen._trial_id)

    def _result(self, trial: TrialRecord) -> TrialResult | None:
        return load_result(self._store, trial.result) if trial.result is not None else None

    def _attempt(self, step: str, make: Callable[P, T], *args: P.args, **named: P.kwargs) -> T | None:
        """Return what `make` gives; where it fails the page says so and goes on without it."""
        try:
            return make(*args, **named)
        except Exception as error:
            self._name(f"{step}: {type(error).__name__}: {error}")
            return None

    def _name(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _fingerprint(record: StudyRecord) -> Fingerprint:
    """Make a value that changes when, and only when, something that is shown of a study may have changed."""
    trials = tuple((trial.number, trial.state, len(trial.running)) for trial in record.trials)
    return trials, len(record.references), str(record.confirmation), str(record.waterfall)
