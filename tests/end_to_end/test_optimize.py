"""`optimize`, `status`, `show` and `report` as a user has them: real studies of the bundled model in real processes."""

import json
import math
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import transformers

import cli
from storage.results import ResultStore
from storage.studies.opening import open_storage
from tests.conftest import SmallStudy
from tests.hpo.made_studies import mixed_study
from tests.processes import finish, run_cli, start, wait_until

ROOT = Path(cli.__file__).parent
# Small calibration and 16 short sequences: a trial takes half a second.
QUICK = ["--n-grid", "2..6", "--eval-samples", "16", "--seq-len", "64", "--dtype", "float32"]
SMALL = ["--space", "original", "--group-size", "64,128", "--n-calib", "16,32", *QUICK]
ONE_SIZE = ["--space", "original", "--group-size", "128", "--n-calib", "16", *QUICK]
ONE_SIZE += ["--confirm-data", "bundled:docstrings"]
ENDED = {"COMPLETE", "PRUNED", "FAIL"}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that was run in this process."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration and results that all studies of these tests share, as a user's do."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def environment(home: Path, tmp_path: Path) -> dict[str, str]:
    """A storage of its own for every test."""
    storage = f"sqlite:///{tmp_path}/study.db"
    return {"PRAQTUNE_HOME": str(home), "PRAQTUNE_STORAGE": storage, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def unknown(environment: dict[str, str], tmp_path: Path) -> None:
    """A home in which nothing is measured yet: a study whose results are known is over before it can be stopped."""
    environment["PRAQTUNE_HOME"] = str(tmp_path / "home")


@pytest.fixture
def run(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command to its end, in this process: starting one takes longer than most commands."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    transformers.utils.logging.disable_progress_bar()

    def command(*arguments: str) -> Ended:
        try:
            code = cli.main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        return Ended(returncode=code, **dict(zip(("stdout", "stderr"), capsys.readouterr(), strict=True)))

    return command


def shown(run: Run, *flags: str) -> dict[str, Any]:
    """What `show --json` prints; NaN and Infinity are no JSON."""
    result = run("show", "--json", *flags)
    assert result.returncode == 0, result.stderr

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return found


def started(directory: Path, flags: list[str]) -> BaseProcess:
    """A study in a process that the test can stop, with its storage and its home in `directory`."""
    where = ["--storage", f"sqlite:///{directory}/study.db", "--cache", f"{directory}/home"]
    return start(run_cli, ["optimize", *flags, *where], directory / "started")


def wait_for_trials(directory: Path, ended: int) -> None:
    """Until so many trials have ended and another one runs."""

    def so_far() -> bool:
        try:
            with sqlite3.connect(f"file:{directory}/study.db?mode=ro", uri=True) as database:
                states = [state for (state,) in database.execute("select state from trials")]
        except sqlite3.OperationalError:
            return False
        return sum(state in ENDED for state in states) >= ended and "RUNNING" in states

    wait_until(so_far, f"a trial after {ended} others")


def assert_measured_ranked_and_confirmed(
    run: Run, first: Ended, sizes: list[int], trials: int, report: Path, held_out: set[str]
) -> dict[str, Any]:
    """What one command leaves of a study at these group sizes, as `show` prints it."""
    assert first.returncode == 0, first.stderr
    assert f"[{trials}/{trials}]" in first.stderr
    assert "Recommended at group size" in first.stdout
    assert "On held-out text" in first.stdout
    study = shown(run)
    keys = ["study", "contract", "references", "trials", "best", "recommendation", "ranking", "confirmation"]
    assert list(study) == [*keys, "refined", "waterfall"]
    assert study["waterfall"][0]["name"] == "rtn"
    assert study["waterfall"][-1]["setting"] == study["recommendation"]["setting"]
    documented = (ROOT / "docs" / "study-json.md").read_text()
    level = study["ranking"][0]
    for part in (study, study["references"][0], study["trials"][0], level, level["rows"][0], study["confirmation"]):
        assert [key for key in part if f"`{key}`" not in documented] == []
    references = [measured["name"] for measured in study["references"]]
    assert references == ["full precision", *["rtn", "gw-awq", "gwh-praq-v1"] * len(sizes)]
    assert [trial["number"] for trial in study["trials"]] == list(range(trials))
    presets = ["balanced", "awq-leaning", "praq-leaning", "conservative"]
    assert [trial["name"].split(" ")[0] for trial in study["trials"]][:4] == presets
    for trial in study["trials"]:
        assert trial["state"] in ENDED
        assert set(trial["params"]) >= {"beta", "tau", "n_grid", "n_calib", "group_size"}
        assert trial["bits_per_weight"] == {64: 4.25, 128: 4.125}[trial["params"]["group_size"]]
        assert {"quantize", "score"} <= set(trial["seconds"])
    complete = [trial for trial in study["trials"] if trial["state"] == "COMPLETE"]
    assert study["best"]["value"] == min(trial["value"] for trial in complete)
    assert [level["group_size"] for level in study["ranking"]] == sizes
    assert {row["dataset"] for row in study["confirmation"]["rows"]} == held_out
    assert {"index.html", "trials.csv", "result.json", "report.md"} <= {path.name for path in report.iterdir()}
    return study


@pytest.fixture
def small(small_study: SmallStudy, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallStudy:
    """The small study in the storage of this test."""
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))
    shutil.copy(small_study.home / "studies.db", tmp_path / "study.db")
    return small_study


@pytest.mark.slow
@pytest.mark.usefixtures("unknown", "no_pictures")
def test_a_study_that_is_interrupted_and_killed_goes_on_to_its_report(run: Run, tmp_path: Path) -> None:
    """By SIGINT and by `kill -9`: no trial is lost, running or tried twice, and the third run has everything."""
    command = [*ONE_SIZE, "--eval-samples", "8", "--trials", "5"]
    interrupt(run, tmp_path, signal.SIGINT, command, 1)
    kill(tmp_path, command, 2)
    resumed = assert_goes_on(run, command, 5)
    report = tmp_path / "reports" / "bundled"
    assert_measured_ranked_and_confirmed(run, resumed, [128], 5, report, {"bundled:docstrings"})


@pytest.mark.slow
def test_a_study_with_pictures_goes_on(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With a larger budget: what was there stays as it was; the report can be written again, somewhere else."""
    report = tmp_path / "reports" / "bundled"
    made, held_out = run("optimize", *SMALL, "--trials", "7"), {"bundled:docstrings", "bundled:topics"}
    study = assert_measured_ranked_and_confirmed(run, made, [64, 128], 7, report, held_out)
    assert list(report.glob("*.png"))
    request.getfixturevalue("no_pictures")
    second = run("optimize", *SMALL, "--trials", "9", "--json", "again.json")
    assert second.returncode == 0, second.stderr
    assert "[8/9]" in second.stderr
    assert "[7/9]" not in second.stderr
    after = json.loads((tmp_path / "again.json").read_text())
    assert after["trials"][:7] == study["trials"]
    assert len(after["trials"]) == 9
    assert after["references"] == study["references"]

    status = run("status")
    assert status.returncode == 0
    assert "COMPLETE" in status.stdout
    again = run("report", "--out", "elsewhere")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "elsewhere" / "index.html").is_file()


@pytest.mark.slow
def test_one_seed_gives_identical_trials_twice(run: Run) -> None:
    """Two studies of one seed in two storages agree to the last digit, in everything but the time they took."""
    studies = []
    for name in ("one.db", "two.db"):
        storage = f"sqlite:///{name}"
        made = run("optimize", *SMALL, "--trials", "12", "--json", "-", "--storage", storage)
        assert made.returncode == 0, made.stderr
        trials = json.loads(made.stdout)["trials"]
        studies.append([{**trial, "seconds": None} for trial in trials])
    assert studies[0] == studies[1]


@pytest.mark.slow
@pytest.mark.usefixtures("unknown", "no_pictures")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_cleanly_and_the_study_goes_on(run: Run, tmp_path: Path, stop: signal.Signals) -> None:
    """The running trial goes back to the queue at once; afterwards no trial is lost, running, or tried twice."""
    command = [*SMALL, "--trials", "8"]
    interrupt(run, tmp_path, stop, command, 2)
    assert_goes_on(run, command, 8)


def interrupt(run: Run, tmp_path: Path, stop: signal.Signals, command: list[str], ended: int) -> None:
    """Begin a study and stop it when so many trials have ended: nothing of it is left running."""
    process = started(tmp_path, command)
    wait_for_trials(tmp_path, ended)
    assert process.pid is not None
    os.kill(process.pid, stop)
    assert finish(process) == [130 if stop == signal.SIGINT else 143]
    errors = (tmp_path / "started.err").read_text()
    assert "Traceback" not in errors
    states = [trial["state"] for trial in shown(run)["trials"]]
    assert "RUNNING" not in states
    assert len(set(states)) > 1 or "handed back" not in errors


def kill(tmp_path: Path, command: list[str], ended: int) -> None:
    """Begin a study, or go on with it, and kill its process when so many trials have ended."""
    process = started(tmp_path, command)
    wait_for_trials(tmp_path, ended)
    process.kill()
    assert finish(process) == [-signal.SIGKILL]


@pytest.mark.slow
@pytest.mark.usefixtures("unknown", "no_pictures")
def test_a_study_survives_kill_9(run: Run, tmp_path: Path) -> None:
    """Twice killed without warning: the trial that was running is queued again, and the study is completed."""
    command = [*SMALL, "--trials", "8"]
    for ended in (1, 3):
        kill(tmp_path, command, ended)
    assert_goes_on(run, command, 8)


def assert_goes_on(run: Run, command: list[str], trials: int) -> Ended:
    """A further run completes the study; what had ended before is untouched, under the same contract."""
    before = shown(run)
    resumed = run("optimize", *command)
    assert resumed.returncode == 0, resumed.stderr
    after = shown(run)
    assert after["contract"] == before["contract"]
    assert after["references"] == before["references"]
    kept = [trial for trial in before["trials"] if trial["state"] in ENDED]
    assert kept
    assert [after["trials"][trial["number"]] for trial in kept] == kept
    assert len(after["trials"]) == trials
    assert {trial["state"] for trial in after["trials"]} <= {"COMPLETE", "PRUNED"}
    settings = [json.dumps(trial["params"], sort_keys=True) for trial in after["trials"]]
    assert len(set(settings)) == trials
    return resumed


def test_another_contract_is_refused_with_the_differences(run: Run, small: SmallStudy) -> None:
    """Space, text, protocol, length and seed: each is named, exit code 2, and the study is untouched."""
    before = shown(run, "--study", "small")
    changes = [
        (
            "--beta 0.1..0.4 --eval-samples 24 --protocol documents --seed 5 --asymmetric --dtype bfloat16",
            "space.beta is 0.1..0.4, in the study 0..1",
            "tuning.sequences is 24, in the study 8",
            "tuning.protocol is documents, in the study packed",
            "seed is 5, in the study 0",
            "space.symmetric is False, in the study True",
        ),
        (
            "--eval-data bundled:topics --dtype float32",
            "tuning.source is bundled:topics, in the study bundled:docstrings",
            "model.dtype is float32, in the study bfloat16",
        ),
    ]
    for flags, *differences in changes:
        refused = run("optimize", "--study", "small", *small.space, *small.flags, *flags.split())
        assert refused.returncode == 2, (flags, refused.stderr)
        assert refused.stderr.strip().splitlines()[-1].startswith("praqtune: study 'small' was begun with another")
        for difference in differences:
            assert difference in refused.stderr
    assert shown(run, "--study", "small") == before


def test_presets_only_ranks_presets_and_references_as_json(small_study: SmallStudy) -> None:
    """Four presets and three references of their group size, all measured to the end, with a recommendation."""
    found = json.loads(small_study.json.read_text())
    (level,) = found["ranking"]
    assert level["group_size"] == 128
    names = [row["name"].removesuffix(" (projected)") for row in level["rows"]]
    assert sorted(names) == sorted(
        ["balanced", "awq-leaning", "praq-leaning", "conservative", "rtn", "gw-awq", "gwh-praq-v1"]
    )
    perplexities = [row["perplexity"] for row in level["rows"]]
    assert perplexities == sorted(perplexities)
    assert level["recommended"] in [row["name"] for row in level["rows"]]


MIXED = ["--space", "original", "--method", "praq-mixed", "--n-calib", "16"]
MIXED += ["--eval-samples", "16", "--seq-len", "64", "--dtype", "float32"]


@pytest.mark.slow
def test_a_study_of_divergence_goes_by_it_from_the_first_trial_to_the_model(run: Run, tmp_path: Path) -> None:
    """It ranks, prunes and confirms by nats per token, says so everywhere, refuses perplexity, and is written."""
    flags = [*ONE_SIZE, "--trials", "7", "--prune-error", "0.4", "--first-look", "4"]
    made = run("optimize", *flags, "--objective", "kl")
    assert made.returncode == 0, made.stderr
    assert "nats per token (perplexity " in made.stdout
    assert re.search(r": KL 0\.\d{4} \|", made.stderr)
    assert re.search(r"pruned after \d+ sequences, estimated 0\.\d{4}", made.stderr)
    study = shown(run)
    assert study["contract"]["objective"] == "kl"
    complete = [trial for trial in study["trials"] if trial["state"] == "COMPLETE"]
    assert len(complete) < len(study["trials"])
    assert all(trial["value"] == trial["kl"] for trial in complete)
    assert study["best"]["kl"] == min(trial["kl"] for trial in complete)
    divergences = [row["kl"]["value"] for row in study["ranking"][0]["rows"]]
    assert divergences == sorted(divergences)
    assert all(math.isfinite(compared["kl"]["value"]) for compared in study["confirmation"]["comparisons"])
    assert " nats [" in study["confirmation"]["sentence"]
    assert "KL divergence" in run("status").stdout
    assert "KL 0." in run("study", "ls").stdout

    joined = run("optimize", *flags)
    assert joined.returncode == 2
    assert "objective is perplexity, in the study kl" in joined.stderr
    [report] = tmp_path.glob("reports/*/report.md")
    assert "--objective kl" in report.read_text(encoding="utf-8")

    written = run("quantize", "--study", study["study"], "--trial", "best", "--format", "awq", "--output-dir", "out")
    assert written.returncode == 0, written.stderr
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "KL divergence above the best" in card
    assert f"{study['best']['perplexity']:.3f}" in card


@pytest.mark.slow
def test_a_study_of_kept_rows_is_ranked_and_confirmed_at_equal_bits(run: Run, tmp_path: Path) -> None:
    """What the method declares is searched; shares of kept rows are compared with what takes no more memory."""
    result = run("optimize", *MIXED, "--keep-ratio", "0.05,0.1", "--tau-risk=-5..-1", "--trials", "6")
    assert result.returncode == 0, result.stderr
    assert "Perplexity at bits per weight, where nothing of no more bits is better: " in result.stdout
    study = shown(run)
    searched = {dimension["name"]: dimension for dimension in study["contract"]["space"]["dimensions"]}
    assert [searched["keep_ratio"][name] for name in ("low", "high", "step")] == [0.05, 0.1, 0.05]
    assert [reference["name"] for reference in study["references"][:3]] == ["full precision", "awq-mixed", "awq-mixed"]
    assert {reference["name"].split(" g")[0] for reference in study["references"][3:]} == {
        "rtn",
        "gw-awq",
        "gwh-praq-v1",
    }
    settings = [trial["params"] for trial in study["trials"]]
    assert study["trials"][0]["name"].startswith("defaults")
    assert {setting["keep_ratio"] for setting in settings} == {0.05, 0.1}
    assert all(-5 <= setting["tau_risk"] <= -1 for setting in settings)
    for name in ("beta_risk", "noise_factor"):
        assert len({setting[name] for setting in settings}) > 2
    assert {setting["variance_penalty"] for setting in settings} == {0.5}
    levels = study["ranking"]
    assert [(level["group_size"], level["keep_ratio"]) for level in levels] == [(None, 0.05), (None, 0.1)]
    for level in levels:
        most = max(row["bits_per_weight"] for row in level["rows"] if row["kind"] == "trial")
        assert level["verdict"].startswith(f"One scale per row, {100 * level['keep_ratio']:g} % of rows in 16 bit: ")
        assert "bits per weight" in level["verdict"]
        assert all(row["bits_per_weight"] <= most for row in level["rows"])
        assert len({row["name"] for row in level["rows"]}) == len(level["rows"])
        assert {"awq-mixed"} < {row["name"] for row in level["rows"] if row["kind"] == "reference"}
    assert study["confirmation"]["keep_ratio"] in (0.05, 0.1)
    assert "group size" not in study["confirmation"]["sentence"]
    page = (tmp_path / "reports" / "bundled" / "index.html").read_text()
    assert levels[0]["verdict"].split(":")[0] in page
    status = run("status")
    assert "awq-mixed keep 0.05" in status.stdout
    assert "% of rows in 16 bit: " in status.stdout


@pytest.mark.slow
def test_a_study_of_rows_with_one_scale_has_one_level(run: Run) -> None:
    """`awq` has no group size: it is ranked among rows with one scale, against its defaults and nearest rounding."""
    small = ["--space", "original", "--n-calib", "16", "--eval-samples", "16", "--dtype", "float32", "--n-grid", "4..8"]
    result = run("optimize", "--method", "awq", *small, "--trials", "5")
    assert result.returncode == 0, result.stderr
    assert "Recommended at one scale per row: " in result.stdout
    assert "group size" not in result.stdout
    study = shown(run)
    (level,) = study["ranking"]
    assert (level["group_size"], level["keep_ratio"]) == (None, None)
    assert {row["name"] for row in level["rows"] if row["kind"] == "reference"} == {"rtn-channel", "awq"}
    assert len(study["trials"]) == 5
    assert {trial["params"]["n_grid"] for trial in study["trials"]} == {4, 5, 6, 7, 8}


@pytest.mark.slow
def test_max_bits_leaves_out_shares_of_kept_rows_that_cost_more(run: Run) -> None:
    """As it does with group sizes; where nothing can be left out, too few bits are refused."""
    result = run("optimize", *MIXED, "--trials", "2", "--max-bits", "5.3", "--json", "-")
    assert result.returncode == 0, result.stderr
    assert "keep_ratio 0.15, 0.2, 0.25, 0.3 left out: it costs more than 5.3 bits per weight" in result.stderr
    assert {trial["params"]["keep_ratio"] for trial in json.loads(result.stdout)["trials"]} <= {0.05, 0.1}
    refused = run("optimize", "--study", "rows", "--space", "original", "--method", "awq", "--max-bits", "4")
    assert refused.returncode == 2
    assert "awq: it costs more than 4 bits per weight, 4.053 at the least; give a larger" in refused.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_study_whose_patience_has_ended_is_over(run: Run) -> None:
    """Two trials in a row without an improvement: it stops, says so, and does not go on when it is called again."""
    command = ["optimize", *ONE_SIZE, "--trials", "40", "--patience", "2", "--json", "-"]
    first = run(*command)
    assert first.returncode == 0, first.stderr
    trials = json.loads(first.stdout)["trials"]
    assert 3 <= len(trials) < 40
    best = min(trial["value"] for trial in trials[:-2] if trial["value"] is not None)
    assert all(trial["value"] is None or trial["value"] >= best for trial in trials[-2:])
    events = [json.loads(line) for line in first.stderr.splitlines()]
    assert any("--patience" in event["text"] for event in events if event["event"] == "notice")
    assert json.loads(run(*command).stdout)["trials"] == trials


@pytest.mark.usefixtures("no_pictures")
def test_max_bits_leaves_out_group_sizes_that_cost_more(run: Run, small: SmallStudy) -> None:
    """A notice says which; every trial keeps to the limit."""
    limits = ["--group-size", "64,128", "--max-bits", "4.2"]
    result = run("optimize", "--study", "limited", "--presets-only", *small.space, *small.flags, *limits, "--json", "-")
    assert result.returncode == 0, result.stderr
    assert "group_size 64 left out: it costs more than 4.2 bits per weight" in result.stderr
    trials = json.loads(result.stdout)["trials"]
    assert {trial["params"]["group_size"] for trial in trials} == {128}
    assert {trial["bits_per_weight"] for trial in trials if trial["state"] in ENDED} == {4.125}


@pytest.mark.usefixtures("no_pictures")
def test_a_study_for_a_runtime_searches_what_that_loads(run: Run, small: SmallStudy) -> None:
    """Trials and references alike; whoever joins without saying so is refused, and the report writes its format."""
    common = ["optimize", "--study", "macs", "--presets-only", *small.space, *small.flags]
    sizes = ["--group-size", "64,128,256"]
    result = run(*common, *sizes, "--for", "mlx", "--json", "-")
    assert result.returncode == 0, result.stderr
    assert "group_size 256 left out: mlx has no kernel for groups of 256" in result.stderr
    study = json.loads(result.stdout)
    assert {trial["params"]["group_size"] for trial in study["trials"]} <= {64, 128}
    assert {row["setting"]["group_size"] for row in study["references"] if row["setting"]} <= {64, 128}
    assert "the storage" not in result.stderr
    refused = run(*common, "--group-size", "256", "--json", "-")
    assert refused.returncode == 2
    assert "was begun with another contract: space.group_size is 256" in refused.stderr
    # The space is the same, and what would be written is not.
    elsewhere = run(*common, "--group-size", "64,128", "--for", "awq", "--json", "-")
    assert elsewhere.returncode == 2
    assert "study 'macs' was begun with --for mlx, and --for awq is given; give --for mlx, or begin" in elsewhere.stderr
    assert json.loads(run(*common, "--group-size", "64,128", "--json", "-").stdout)["trials"] == study["trials"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--for", "gguf", "--group-size", "64"],
            "--for gguf: gguf has no kernel for groups of 64; use --group-size 32",
        ),
        (["--for", "gptq", "--scales", "linear"], "--for gptq: --scales linear divides the inputs of every Linear"),
        (["--for", "mlx", "--tensor-parallel", "2"], "--tensor-parallel 2 is for runtimes that split packed Linears"),
        (["--tensor-parallel", "2"], "--tensor-parallel 2 needs the runtime that splits Linears; give --for vllm"),
        (
            ["--for", "vllm", "--tensor-parallel", "3"],
            "4 attention heads with 2 key/value heads cannot be split over 3",
        ),
        (
            ["--for", "awq", "--budget", "4.3"],
            "--for awq has one scheme for all Linears, and plans under a budget have several; give --for vllm, or",
        ),
        (
            ["--for", "vllm", "--tensor-parallel", "4", "--front", "4.2..5", "--symmetric"],
            "--for vllm: groups of 128 do not divide the 256 inputs of model.layers.0.self_attn.o_proj split over 4",
        ),
        (["--for", "exllama"], "--for exllama is unknown; choose one of vllm, gptq, awq, gguf, mlx"),
        (["--beta", "0.8..0.2"], "lower bound 0.8 is above the upper bound 0.2"),
        (["--sampler", "cmaes"], "sampler 'cmaes' is unknown; choose one of gp, tpe, random, qmc, grid"),
        (["--pruner", "asha"], "pruner 'asha' is unknown; choose one of paired"),
        (["--space", "absent.toml"], "space file absent.toml cannot be read"),
        (["--trials", "0"], "--trials 0 is not at least 1"),
        (["--patience", "0"], "--patience 0 is not at least 1"),
        (["--prune-error", "0.7"], "--prune-error 0.7 is not between 0 and 0.5"),
        (["--first-look", "1"], "--first-look 1 is not at least 2"),
        (["--method", "gw-awq", "--tau", "1"], "gw-awq does not read tau"),
        (["--method", "magic"], "method 'magic' is unknown"),
        (["--method", "awq", "--keep-ratio", "0.1"], "awq does not read keep_ratio"),
        (["--method", "praq-mixed", "--group-size", "64"], "praq-mixed does not read group_size"),
        (["--method", "praq-mixed", "--keep-ratio", "0.1,0.2,0.4"], "evenly spaced"),
        (["--group-size", "48"], "group_size 48: it does not divide the input widths of this model"),
        (
            ["--max-bits", "4"],
            "gwh-praq-v2: it costs more than 4 bits per weight, 4.063 at the least; give a larger --max-bits",
        ),
        (["--eval-samples", "100000"], "not for 100000"),
        (["--n-calib", "4096"], "4096"),
        (["--confirm-data", "absent.txt"], "absent.txt is not a file"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, flags: list[str], message: str) -> None:
    """No study is begun that cannot be."""
    result = run("optimize", "--eval-samples", "8", "--dtype", "float32", *flags)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert re.search("the storage holds no study|study.db does not exist", run("status").stderr)


def test_unknown_names_in_a_space_file_are_refused_together(run: Run, tmp_path: Path) -> None:
    """All problems in one line."""
    (tmp_path / "space.toml").write_text('gamma = 1\nbeta = "x"\n')
    result = run("optimize", "--space", "space.toml")
    assert result.returncode == 2
    assert "'gamma' is no hyperparameter" in result.stderr
    assert "beta 'x' cannot be read" in result.stderr


@pytest.mark.parametrize("command", ["optimize", "status", "show", "report"])
@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("nonsense", 2, "'nonsense' is no URL of a storage; allowed: sqlite:///FILE"),
        ("sqlite:///:memory:", 2, "lives in one process's memory"),
        ("sqlite:////proc", 1, "cannot"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(run: Run, command: str, url: str, code: int, message: str) -> None:
    """What was received, and the remedy; 2 for what is no storage, 1 for one that refuses."""
    result = run(command, "--storage", url)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_password_of_a_storage_is_never_shown(run: Run) -> None:
    """Neither in the error nor anywhere else."""
    result = run("status", "--storage", "postgresql://me:hushhush@127.0.0.1:1/db")
    assert result.returncode == 1
    assert "hushhush" not in result.stdout + result.stderr


def test_studies_that_are_not_there_are_named(run: Run, home: Path, environment: dict[str, str]) -> None:
    """A storage that is not there, an empty one, and an unknown name each say what to do."""
    assert "does not exist; begin a study with `optimize`, or check --storage" in run("show").stderr
    open_storage(environment["PRAQTUNE_STORAGE"])
    assert "the storage holds no study; begin one with `optimize`" in run("show").stderr
    mixed_study(ResultStore(home / "results")).stored(open_storage(environment["PRAQTUNE_STORAGE"]))
    result = run("status", "--study", "yours")
    assert result.returncode == 2
    assert "there is no study 'yours'; there are: study" in result.stderr
