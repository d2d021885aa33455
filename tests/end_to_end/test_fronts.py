"""Studies of plans, through the command line: one budget, a front of several, and the models that they become."""

from pathlib import Path
from typing import Any

import optuna
import pytest

import cli
import objectives.sensitivity
from hpo.dashboard.serve import ArtifactFiles, Refresher
from storage.paths import Paths
from storage.studies.opening import open_storage
from tests.commands import printed, refusal

SMALL = [
    "--seq-len",
    "32",
    "--eval-samples",
    "16",
    "--eval-data",
    "bundled:docstrings",
    "--confirm-data",
    "bundled:topics",
]
FLAGS = [*SMALL, "--dtype", "float32", "--quiet", "--first-look", "4"]
SPACE = ["--method", "gw-awq", "--n-calib", "4", "--n-grid", "2..4", "--rounding", "nearest", "--range-search", "none"]
GRID = ["--symmetric", "--no-full-range", "--alpha-proxy", "nearest"]
STUDY = [*FLAGS, *SPACE, *GRID]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fronts")


@pytest.fixture(autouse=True)
def _small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAQTUNE_HOME", str(home / "home"))
    monkeypatch.setattr(objectives.sensitivity, "TOKENS", 60)
    monkeypatch.chdir(home)


def storage(home: Path) -> list[str]:
    return ["--storage", f"sqlite:///{home}/studies.db"]


@pytest.mark.slow
def test_a_study_under_a_budget_beats_or_names_what_is_uniform(capsys: Any, home: Path) -> None:
    """Every trial is a plan within the budget, references are uniform, and going on measures no site again."""
    arguments = ["optimize", *STUDY, "--study", "one", *storage(home), "--budget", "4.4"]
    study = printed(capsys, *arguments, "--trials", "2")
    trials = study["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert all(4.3 < trial["bits_per_weight"] <= 4.4 for trial in trials)
    assert all(trial["params"]["bit_budget"] == 4.4 for trial in trials)
    (ranking,) = study["ranking"]
    assert ranking["bit_budget"] == 4.4
    references = [row for row in ranking["rows"] if row["kind"] == "reference"]
    assert {row["name"] for row in references} == {"rtn g64", "gw-awq g64", "uniform recipe g64"}
    assert all(row["setting"]["bit_budget"] == 0 for row in references)
    assert study["confirmation"]["bit_budget"] == 4.4
    more = printed(capsys, *arguments, "--trials", "3")
    assert [trial["bits_per_weight"] for trial in more["trials"][:2]] == [trial["bits_per_weight"] for trial in trials]
    page = (home / "reports" / "one" / "report.md").read_text()
    assert "Where the plan puts its bits" in page
    assert "What each site of the plan loses" in page
    assert all(trial["predicted_kl"] > 0 for trial in more["trials"] if trial["state"] == "COMPLETE")
    assert "--budget 4.4" in page
    other = refusal(capsys, *arguments[:-1], "4.5", "--trials", "3")
    assert "was begun with another contract: space.bit_budget is 4.5, in the study 4.4" in other


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
def test_the_plan_that_is_recommended_is_refined_and_confirmed(capsys: Any, home: Path) -> None:
    """What is written from the study is that very model: its KL before and after is the study's."""
    refine = ["--refine", "--refine-data", "bundled:training", "--refine-samples", "24", "--refine-codes", "5"]
    # So many bits more that a little text confirms the plan.
    flags = [*STUDY, "--objective", "kl", "--confirm-data", "bundled:docstrings", "--budget", "4.9"]
    arguments = ["optimize", *flags, "--study", "refined", *storage(home), *refine]
    study = printed(capsys, *arguments, "--trials", "1")
    refined, recommended = study["refined"], study["recommendation"]["name"]
    assert refined["refined"] == recommended
    assert study["recommendation"]["kind"] == "trial", study["confirmation"]["sentence"]
    kl = {(row["name"], row["dataset"]): row["kl"] for row in refined["rows"]}
    target = ["--output-dir", str(home / "refined"), "--format", "compressed-tensors", "--quiet"]
    written = printed(capsys, "quantize", "--study", "refined", *storage(home), *refine, *target)
    assert written["method"] == "mixed"
    gains = {gain["source"]: gain["kl"] for gain in written["refinement"]["gains"]}
    assert gains
    for source, change in gains.items():
        assert change["before"] == pytest.approx(kl[recommended, source], rel=1e-9)
        assert change["after"] == pytest.approx(kl[f"{recommended} refined", source], rel=1e-9)
        assert change["after"] != change["before"]


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
def test_a_front_is_a_study_of_bytes_and_damage_and_its_members_are_models(capsys: Any, home: Path) -> None:
    """Optuna minimises both, budgets in between have plans of their own, and a budget chooses what was measured."""
    arguments = ["optimize", *STUDY, "--objective", "kl", "--study", "two", *storage(home), "--front", "4.2..4.7"]
    study = printed(capsys, *arguments, "--trials", "8")
    stored = optuna.load_study(study_name="two", storage=storage(home)[1])
    assert [direction.name for direction in stored.directions] == ["MINIMIZE", "MINIMIZE"]
    complete = [trial for trial in study["trials"] if trial["state"] == "COMPLETE"]
    told = {trial.number: trial.values for trial in stored.trials if trial.values}
    assert told == {trial["number"]: [trial["model_bytes"], trial["kl"]] for trial in complete}
    assert len({trial["params"]["bit_budget"] for trial in study["trials"]}) >= 4
    # Held-out text was read for every member: each verdict that names a win or none has been tested.
    members = study["confirmation"]["front"]
    assert members
    tested = {member["bit_budget"] for member in members} | {study["confirmation"]["bit_budget"]}
    assert len(tested) == 1 + len(members)
    untested = {row["bit_budget"] for row in study["ranking"] if "not tested" in row["verdict"]}
    assert not untested & tested
    assert all(trial["bits_per_weight"] <= trial["params"]["bit_budget"] + 1e-9 for trial in complete)
    # The recipe has fewer bits to lose where the budget is higher.
    predicted = {trial["params"]["bit_budget"]: trial["predicted_kl"] for trial in complete}
    assert [predicted[budget] for budget in sorted(predicted)] == sorted(predicted.values(), reverse=True)
    assert min(predicted.values()) > 0
    page = (home / "reports" / "two" / "report.md").read_text()
    assert "Whether predicted damages add up" in page
    assert "times predicted in the middle" in page
    assert "squares round otherwise" not in page
    assert "What one more bit, or one MB less, costs" in page
    assert "How the front grew" in page
    assert study["confirmation"]["front"]
    assert "Other members of the front, on held-out text" in page
    assert "alone: the other sizes are not tested" not in page
    assert "--front 4.2..4.7" in page
    written = printed(
        capsys,
        "quantize",
        "--study",
        "two",
        *storage(home),
        "--budget",
        "4.45",
        "--output-dir",
        str(home / "member"),
        "--format",
        "compressed-tensors",
        "--quiet",
    )
    assert written["bits_per_weight"] <= 4.45
    measured = [*complete, *study["references"]]
    (member,) = [row for row in measured if row["perplexity"] == written["proof"]["measured"]]
    within = [row for row in measured if row["bits_per_weight"] <= 4.45 and row["name"] != "full precision"]
    assert member["kl"] == min(row["kl"] for row in within)
    assert written["proof"]["packed"] == pytest.approx(written["proof"]["measured"], rel=1e-3)
    below = refusal(
        capsys, "quantize", "--study", "two", *storage(home), "--budget", "3", "--output-dir", str(home / "none")
    )
    assert "3 bits per weight is below the front of study 'two', from 4.1" in below
    assert not (home / "none").exists()
    # The dashboard knows both values by their names, and everything of the study can be shown.
    said: list[str] = []
    opened, paths = open_storage(storage(home)[1]), Paths(home / "home")
    Refresher(opened, ArtifactFiles(paths.artifacts), paths, storage(home)[1], said.append).refresh()
    assert said == []
    assert optuna.load_study(study_name="two", storage=storage(home)[1]).metric_names == [
        "bytes of the model",
        "KL, nats per token",
    ]
    # Exported and imported it is a study of two values still.
    archive = str(home / "two.praqtune")
    assert cli.main(["study", "export", "two", archive, *storage(home), "--quiet"]) == 0
    assert cli.main(["study", "import", archive, "--as", "again", *storage(home), "--quiet"]) == 0
    again = optuna.load_study(study_name="again", storage=storage(home)[1])
    assert {trial.number: trial.values for trial in again.trials if trial.values} == told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "3"], "3 bits per weight cannot be allocated: plans take from 4.125 bits per weight ("),
        (["--budget", "1GB"], "1000.00 MB cannot be allocated: plans take from 4.125 bits per weight ("),
        (["--front", "4.2..99"], "99 bits per weight cannot be allocated: plans take from 4.125 bits per weight ("),
        (["--front", "4.5..4.5"], "a front from 4.5 bits per weight to 4.5 bits per weight has no two sizes"),
        (["--front", "5..4.5"], "a front from 5 bits per weight to 4.5 bits per weight has no two sizes"),
    ],
)
def test_sizes_that_a_model_has_no_plans_of_are_one_line(
    capsys: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """With both limits, before anything is measured."""
    assert said in refusal(capsys, "optimize", *STUDY, *storage(tmp_path), *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--front", "4.3"], "the front '4.3' has no two sizes; give both ends, such as 4.25..5 or 110MB..120MB"),
        (["--front", "4.3..much"], "the budget 'much' cannot be read"),
        (["--budget", "4.3", "--front", "4.3..5"], "--budget is one size and --front several; give one of them"),
        (["--budget", "4.3", "--max-bits", "5"], "--max-bits is for settings that store all Linears alike"),
        (["--front", "4.3..5", "--presets-only"], "--presets-only searches nothing, and a front is searched"),
        (["--front", "4.3..5", "--sampler", "tpe"], "--sampler tpe seeks one value; with --front give gp, random"),
        (["--front", "4.3..5", "--pruner", "median"], "--pruner median compares one value; with --front give paired"),
        (["--budget", "4.3", "--group-size", "64"], "--group-size"),
    ],
)
def test_what_cannot_be_together_with_plans_is_one_line(capsys: Any, arguments: list[str], said: str) -> None:
    """Before the model is loaded."""
    assert said in refusal(capsys, "optimize", "--model", "absent", *arguments)
