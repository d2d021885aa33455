"""The dashboard's pages: everything that is known of a study, renewed without repeating anything."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import Trial
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from hpo.dashboard import study_page
from hpo.dashboard.board import LINE
from hpo.dashboard.graphs import GRAPHS
from hpo.dashboard.pictures import PICTURE, TABLE
from hpo.dashboard.serve import Refresher, serve
from hpo.dashboard.study_page import REPORT, TRIALS
from objectives.errors import InputError
from objectives.scoring import look_sizes
from storage.artifacts import ArtifactFiles, attached
from storage.paths import Paths
from storage.results import ResultStore
from storage.studies.opening import open_storage
from storage.typed_json import encode
from tests.conftest import PICTURES, blank
from tests.hpo.made_studies import Study, confirmation, judged_by_kl, mixed_study

ADDRESS = "sqlite:///shown.db"


class Shown:
    """A study in a storage, and a dashboard's refresher on it."""

    def __init__(self, made: Study, folder: Path) -> None:
        self.made, self.paths = made, Paths(folder)
        self.storage: BaseStorage = open_storage(f"journal:{folder}/studies.log")
        self.study = made.stored(self.storage)
        self.files = ArtifactFiles(self.paths.artifacts)
        self.said: list[str] = []
        self.refresher = self.another()

    def another(self) -> Refresher:
        return Refresher(self.storage, self.files, self.paths, ADDRESS, self.said.append)

    @property
    def entries(self) -> dict[str, Any]:
        return self.storage.get_study_system_attrs(self.study._study_id)

    def trial_files(self, number: int) -> dict[str, str]:
        return attached(self.entries, self.trial_id(number))

    def content(self, artifact_id: str) -> bytes:
        with self.files.open_reader(artifact_id) as file:
            return file.read()

    def trial_id(self, number: int) -> int:
        return int(self.study.get_trials(deepcopy=False)[number]._trial_id)

    def trial_note(self, number: int) -> str:
        return get_note(Trial(self.study, self.trial_id(number)))


def once(draw: Callable[..., bytes]) -> Callable[..., bytes]:
    """Draws the first time, and gives the same bytes from then on."""
    drawn: list[bytes] = []

    def draw_once(*about: Any) -> bytes:
        if not drawn:
            drawn.append(draw(*about))
        return drawn[0]

    return draw_once


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A study of 24 trials after two rounds: the first has room for 20 of them. One picture stands for all."""
    folder = tmp_path_factory.mktemp("home")
    made = mixed_study(ResultStore(Paths(folder).results), 24)
    found = Shown(replace(made, record=replace(made.record, confirmation=confirmation())), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PICTURES, blank)
        patch.setattr(study_page, "trial_picture", once(study_page.trial_picture))
        found.refresher.refresh()
        found.refresher.refresh()
    return found


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """A study of 12 trials that nothing was shown of yet; report and pictures are words: drawing them takes seconds."""
    monkeypatch.setattr(study_page, "trial_picture", lambda *_: b"picture")
    monkeypatch.setattr(study_page, "report_files", lambda *_: {"index.html": b"report", "trials.csv": b"trials"})
    return Shown(mixed_study(ResultStore(Paths(tmp_path).results), 12), tmp_path)


def test_nothing_goes_wrong_in_silence(shown: Shown) -> None:
    """Everything of an ordinary study can be drawn."""
    assert shown.said == []


def test_the_value_has_its_name(shown: Shown) -> None:
    """Axes of the dashboard say perplexity."""
    assert shown.study.metric_names == ["perplexity"]


@pytest.mark.usefixtures("fresh")
def test_a_study_of_divergence_says_so(tmp_path: Path) -> None:
    """Its value, its note and its trials' notes speak of nats per token."""
    made = judged_by_kl(mixed_study(ResultStore(Paths(tmp_path / "kl").results), 12))
    shown = Shown(made, tmp_path / "kl")
    shown.refresher.refresh()
    assert shown.said == []
    assert shown.study.metric_names == ["KL, nats per token"]
    note = get_note(shown.study).replace("\\", "")
    assert "The value of a trial is its mean KL divergence from full precision in nats per token on" in note
    best, given_up = made.record.best, made.record.pruned[0]
    assert best is not None
    assert f"{best.kl:.4f}" in note
    assert "| perplexity |" in shown.trial_note(best.number)
    assert "| estimated KL divergence | " in shown.trial_note(given_up.number)


def test_the_note_of_a_study_says_everything_in_words(shown: Shown) -> None:
    """Verdict with its interval, references, space, contract, and the command of another worker."""
    note = get_note(shown.study).replace("\\", "")
    chosen = shown.made.snapshot.recommendation
    assert chosen is not None
    assert chosen.verdict in note
    assert chosen.sentence() in note
    assert confirmation().sentence in note
    for reference in shown.made.record.references:
        assert f"| {reference.name} |" in note
        assert f"{reference.perplexity:.3f}" in note
    assert "β, blend of saliences: 0..1" in note
    assert "perplexity on 32 sequences of 101 tokens from C4 (packed)" in note
    assert "optimize --model tiny/llama" in note
    assert f"--storage {ADDRESS}" in note


def test_attributes_can_be_read(shown: Shown) -> None:
    """Sentences beside the JSON that programs read, none of which is changed."""
    attributes = shown.study.user_attrs
    assert attributes["what is quantized"] == "tiny/llama"
    assert attributes["verdict"].startswith("Group size")
    assert attributes["contract"] == encode(shown.made.record.contract)


def test_every_ended_trial_has_a_note(shown: Shown) -> None:
    """How it went, what it took, and where it hurts; a waiting one has none."""
    for trial in shown.made.record.trials:
        note = shown.trial_note(trial.number).replace("\\", "")
        if trial.state == "WAITING":
            assert note == ""
            continue
        assert f"group size {trial.group_size}" in note
        if trial.state == "COMPLETE":
            assert f"{trial.perplexity:.3f}" in note
            assert "calibrate 0.5, quantize 2.0, score 3.0" in note
            assert note.count("| model.layers.") == 5
            assert "against gw-awq" in note
        if trial.state == "PRUNED":
            assert "estimated perplexity" in note
        if trial.state == "FAIL":
            assert "12.5 GB <needed>, 8 GB available" in note


def test_running_values_are_few_however_long_the_text_is() -> None:
    """The dashboard reads all of them every few seconds."""
    assert len(look_sizes(10**9)) <= 32


def test_graphs_have_fixed_ids_and_are_small(shown: Shown) -> None:
    """Four figures that the dashboard reads with every look at the page."""
    found = get_plotly_graph_objects(shown.entries)
    assert set(found) == set(GRAPHS)
    for key, text in found.items():
        figure = json.loads(text)
        assert figure["data"], key
        assert len(text) < 60_000, key


def test_files_stand_beside_the_study_and_its_trials(shown: Shown) -> None:
    """The report and the trials; a picture and a table of every complete trial."""
    of_study = attached(shown.entries, None)
    assert set(of_study) == {REPORT, TRIALS}
    assert b"<!DOCTYPE html>" in shown.content(of_study[REPORT])
    assert f"](/artifacts/{shown.study._study_id}/{of_study[REPORT]})" in get_note(shown.study)
    for trial in shown.made.record.complete:
        found = shown.trial_files(trial.number)
        assert set(found) == {PICTURE, TABLE}
        assert shown.content(found[PICTURE]).startswith(b"\x89PNG")
        rows = shown.content(found[TABLE]).decode().splitlines()
        assert len(rows) == 1 + 6 * 7
        assert rows[1].startswith("model.layers.0.self_attn.q_proj,0,q,")


@pytest.mark.usefixtures("no_pictures")
def test_another_dashboard_writes_nothing_twice(shown: Shown) -> None:
    """After a restart everything is found as it is: same entries, same versions, same files."""
    before, files = shown.entries, sorted(path.name for path in shown.paths.artifacts.iterdir())
    again = shown.another()
    again.refresh()
    again.refresh()
    assert shown.entries == before
    assert sorted(path.name for path in shown.paths.artifacts.iterdir()) == files


def test_a_running_study_moves(fresh: Shown) -> None:
    """A trial that ends gets its note and files, and the study's note the new best; nothing else is written."""
    fresh.refresher.refresh()
    before = get_note(fresh.study)
    version = fresh.entries["dashboard:note_ver"]
    fresh.refresher.refresh()
    assert fresh.entries["dashboard:note_ver"] == version
    running = next(trial for trial in fresh.made.record.trials if trial.state == "RUNNING")
    best = fresh.made.record.best
    assert best is not None
    assert best.result is not None
    trial = Trial(fresh.study, fresh.trial_id(running.number))
    trial.set_user_attr("result", best.result)
    trial.set_user_attr("outcome", "complete")
    trial.set_user_attr("bits_per_weight", best.bits_per_weight)
    fresh.study.tell(trial, 1.0)
    fresh.refresher.refresh()
    assert get_note(fresh.study) != before
    assert set(fresh.trial_files(running.number)) == {PICTURE, TABLE}
    assert fresh.said == []


def test_what_people_write_below_a_note_stays(fresh: Shown) -> None:
    """Their part is kept when ours is renewed, and what was there before ours, too."""
    save_note(fresh.study, "bought the GPU for this")
    fresh.refresher.refresh()
    note = get_note(fresh.study)
    assert note.endswith(LINE + "bought the GPU for this")
    save_note(fresh.study, note + "\nand it was worth it")
    fresh.study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING))
    fresh.another().refresh()
    assert get_note(fresh.study).endswith("bought the GPU for this\nand it was worth it")


def test_a_graph_that_fails_is_named_and_the_others_are_drawn(fresh: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said on the page and on the terminal, once. Of so few trials there are no importances."""
    draw = study_page.graph

    def fails(key: str, data: Any) -> Any:
        if key == "praqtune-forest":
            raise ZeroDivisionError("no width")
        return draw(key, data)

    monkeypatch.setattr(study_page, "graph", fails)
    fresh.refresher.refresh()
    fresh.refresher.refresh()
    assert set(get_plotly_graph_objects(fresh.entries)) == set(GRAPHS) - {"praqtune-forest", "praqtune-importances"}
    assert len(fresh.said) == 1
    assert "Who won" in fresh.said[0]
    assert "no width" in fresh.said[0]
    assert "no width" in get_note(fresh.study)


@pytest.mark.usefixtures("no_pictures")
def test_without_the_workers_results_there_is_still_a_page(tmp_path: Path) -> None:
    """A dashboard that was started with another --cache says so."""
    elsewhere = Shown(mixed_study(ResultStore(tmp_path / "elsewhere"), 12), tmp_path)
    elsewhere.refresher.refresh()
    assert any("--cache" in line for line in elsewhere.said)
    assert "### What is tuned" in get_note(elsewhere.study)


def test_studies_of_others_are_left_alone(fresh: Shown) -> None:
    """A storage may hold anything."""
    other = optuna.create_study(storage=fresh.storage, study_name="other")
    fresh.refresher.refresh()
    assert get_note(other) == ""
    assert other.metric_names is None
    assert fresh.said == []


def test_a_deleted_study_disturbs_nobody(fresh: Shown) -> None:
    """Whoever deletes a study in the dashboard may begin another of its name."""
    fresh.refresher.refresh()
    optuna.delete_study(storage=fresh.storage, study_name=fresh.study.study_name)
    fresh.refresher.refresh()
    again = fresh.made.stored(fresh.storage)
    fresh.refresher.refresh()
    assert fresh.said == []
    assert "### References" in get_note(again)


def test_a_port_that_is_taken_is_one_line(fresh: Shown) -> None:
    """What was asked for and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}: .*choose another --port"):
            serve(fresh.storage, fresh.paths, ADDRESS, "127.0.0.1", port, fresh.said.append)
