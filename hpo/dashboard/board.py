"""What optuna-dashboard shows of one study beyond its trials: notes, graphs, files, attributes.

Responsible for writing only what changed, so that refreshing costs little and repeats nothing, and for keeping what
people wrote below our notes. May assume that no other process refreshes the study at the same time.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import Trial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from storage.artifacts import ArtifactFiles, attach, attached

LINE = "\n\n---\n\n*Renewed by praqtune; what you write below this line is kept.*\n"


class Board:
    """One study's page; remembers what it wrote."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, files: ArtifactFiles) -> None:
        self.study = study
        self._storage, self._files = storage, files
        self._written: dict[tuple[str, int | None], str] = {}

    def name_metric(self, name: str) -> None:
        """Call the value what it is."""
        names = ["bytes of the model", name][-len(self.study.directions) :]
        if self.study.metric_names != names:
            with warnings.catch_warnings():
                # That Optuna may still change how values are named is no news.
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.study.set_metric_names(names)

    def attributes(self, values: Mapping[str, str]) -> None:
        """Show a few facts among the study's attributes."""
        current = self.study.user_attrs
        for name, value in values.items():
            if current.get(name) != value:
                self.study.set_user_attr(name, value)

    def note(self, text: str, trial_id: int | None = None) -> None:
        """Write the note of the study, or of the trial of that id; what people wrote below ours stays."""
        if not self._is_new("note", trial_id, text):
            return
        target = self.study if trial_id is None else Trial(self.study, trial_id)
        before = get_note(target)
        own = before.partition(LINE)[2] if LINE in before else before
        if before != text + LINE + own:
            save_note(target, text + LINE + own)
        self._written["note", trial_id] = text

    def graph(self, key: str, figure: go.Figure) -> None:
        """Show a figure under that id."""
        text = str(figure.to_json())
        if self._is_new(key, None, text):
            save_plotly_graph_object(self.study, figure, graph_object_id=key)
            self._written[key, None] = text

    def file(self, name: str, data: bytes, trial_id: int | None = None) -> str:
        """Show a file beside the study, or beside the trial of that id; returns the artifact's id."""
        return attach(self._storage, self.study._study_id, trial_id, self._files, name, data)

    def files(self, trial_id: int | None = None, attributes: Mapping[str, Any] | None = None) -> dict[str, str]:
        """List ids of the files beside the study, or beside the trial of that id, that are still there, by name.

        Args:
            trial_id: Optuna's; None for the study.
            attributes: What `entries` gave, where several trials are asked about.
        """
        artifacts = attached(self.entries() if attributes is None else attributes, trial_id)
        return {name: artifact_id for name, artifact_id in artifacts.items() if artifact_id in self._files}

    def entries(self) -> dict[str, Any]:
        """Read the study's own entries for the dashboard."""
        return self._storage.get_study_system_attrs(self.study._study_id)

    def address(self, artifact_id: str) -> str:
        """Return the address under which the dashboard serves a file of the study."""
        return f"/artifacts/{self.study._study_id}/{artifact_id}"

    def _is_new(self, name: str, trial_id: int | None, text: str) -> bool:
        return self._written.get((name, trial_id)) != text
