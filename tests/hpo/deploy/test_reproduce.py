"""The commands that reports and notes give are real: they parse, and they mean the study that they are of."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cli
from hpo.commands.flags import options_of
from hpo.commands.parser import make_parser
from hpo.deploy.reproduce import quantize_command, repeat_command
from hpo.notebook import load
from hpo.space.space import make_space
from hpo.study.options import BenchOptions, RefineOptions, SearchOptions
from hpo.study.record import StudyRecord
from hpo.study.searching import SearchMode
from quant.setting import Setting
from tests.conftest import SmallStudy
from tests.hpo.made_studies import CONTRACT, refined_confirmation


def words(command: str) -> list[str]:
    """What a shell makes of it, after `python cli.py`."""
    assert all(len(line) < 120 for line in command.splitlines())
    split = shlex.split(command.replace("\\\n", " "))
    assert split[:2] == ["python", "cli.py"]
    return split[2:]


def record(**changes: Any) -> StudyRecord:
    return StudyRecord(name="a study", contract=replace(CONTRACT, **changes), references=(), trials=())


@pytest.fixture
def small(small_study: SmallStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SmallStudy:
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))
    monkeypatch.chdir(tmp_path)
    return small_study


def test_the_command_of_a_study_means_that_study(small: SmallStudy, capsys: pytest.CaptureFixture[str]) -> None:
    """Given again it is not refused as another contract, and finds nothing left to do."""
    study = load("small", home=small.home)
    command = repeat_command(study.record, None)
    assert "--presets-only" in command
    assert cli.main(words(command)) == 0
    assert "Recommended at group size" in capsys.readouterr().out
    again = load("small", home=small.home)
    assert again.record.trials == study.record.trials
    assert again.record.contract == study.record.contract


def test_another_value_is_refused(small: SmallStudy, capsys: pytest.CaptureFixture[str]) -> None:
    """So the test above can fail."""
    command = repeat_command(load("small", home=small.home).record, None).replace("--seed 0", "--seed 1")
    assert cli.main(words(command)) == 2
    assert "seed is 1, in the study 0" in capsys.readouterr().err


def test_a_reference_is_written_as_what_the_study_recommends(small: SmallStudy) -> None:
    """By that word, so that text and calibration are the study's very own."""
    study = load("small", home=small.home)
    awq = next(reference for reference in study.record.references if reference.name == "gw-awq")
    options = make_parser().parse_args(words(quantize_command(study.record, awq, "awq")))
    assert (options.study, options.trial, options.output_dir) == ("small", "recommended", Path("awq"))


def test_a_trial_is_named_by_study_and_number(small: SmallStudy) -> None:
    """With the storage where it is not the usual one."""
    study = load("small", home=small.home)
    best = study.record.best
    assert best is not None
    found = words(quantize_command(study.record, best, "my 4bit", "sqlite:///x.db"))
    options = make_parser().parse_args(found)
    assert (options.study, options.trial, options.storage) == ("small", str(best.number), "sqlite:///x.db")
    assert options.output_dir == Path("my 4bit")


def test_what_a_shell_would_split_is_quoted() -> None:
    """Names and paths with spaces and quotes; ranges and sizes as they are."""
    odd = record(model=replace(CONTRACT.model, name="./it's here"))
    options = make_parser().parse_args(words(repeat_command(odd, 60, "sqlite:///a b.db")))
    assert (options.model, options.study, options.storage) == ("./it's here", "a study", "sqlite:///a b.db")
    assert (options.trials, options.beta, options.tau, options.group_size) == (60, "0..1", "0.1..5", "32,64")
    assert options.symmetric is True


def test_a_value_that_begins_with_a_minus_is_no_flag() -> None:
    """Ranges of other methods' parameters may be negative."""
    space = make_space(Setting(method="praq-real", symmetric=False), {"tau_risk": "-6..0"})
    command = repeat_command(record(space=space), None)
    assert "--tau-risk=-6..0" in command
    assert "--asymmetric" in command


def test_calibration_sizes_are_those_that_were_asked_for() -> None:
    """300 samples were all there were where 512 were asked for: asking for 256 would read other text."""
    space = make_space(Setting(), {"n_calib": "16,32,64,128,256"})
    calibration = replace(CONTRACT.calibration, source="c4", sequences=300)
    options = make_parser().parse_args(words(repeat_command(record(space=space, calibration=calibration), None)))
    assert options.n_calib == "16,32,64,128,256,512"


def test_how_it_searched_is_part_of_the_command() -> None:
    """Where it is not as usual, and where older studies do not say it."""
    searched = replace(record(), search=SearchMode(sampler="tpe", trust_remote_code=True))
    options = make_parser().parse_args(words(repeat_command(searched, None)))
    search, bench = options_of(options, SearchOptions), options_of(options, BenchOptions)
    assert (search.sampler, search.pruner, bench.trust_remote_code) == ("tpe", "paired", True)
    assert "--sampler" not in repeat_command(record(), None)


def test_the_runtime_of_a_study_is_part_of_its_commands(small: SmallStudy) -> None:
    """It is searched for again, and what is written is the format that the runtime loads."""
    study = load("small", home=small.home)
    best = study.record.best
    assert best is not None
    served = replace(study.record, search=SearchMode(for_="vllm", tensor_parallel=2))
    search = options_of(make_parser().parse_args(words(repeat_command(served, None))), SearchOptions)
    assert (search.for_, search.tensor_parallel) == ("vllm", 2)
    options = make_parser().parse_args(words(quantize_command(served, best, "out")))
    assert (options.format, options.tensor_parallel) == ("compressed-tensors", 2)


def test_what_was_refined_and_confirmed_is_refined_by_the_command(small: SmallStudy) -> None:
    """With the flags that it was refined by; any other setting is written as it was measured."""
    study = load("small", home=small.home)
    first, second, *_ = study.record.trials
    refined = replace(refined_confirmation(), refined=first.name)
    refining = SearchMode(refine=True, refine_samples=64, refine_codes=5)
    record = replace(study.record, refined=refined, search=refining)
    options = options_of(make_parser().parse_args(words(quantize_command(record, first, "out"))), RefineOptions)
    assert options == RefineOptions(refine=True, refine_samples=64, refine_codes=5)
    assert "--refine" not in quantize_command(record, second, "out")


def test_what_had_to_be_allowed_is_allowed_by_the_command(small: SmallStudy) -> None:
    """Or it would be refused; nothing else is."""
    study = load("small", home=small.home)
    best = study.record.best
    assert best is not None
    allowed = replace(study.record, search=SearchMode(trust_remote_code=True, allow_partial_groups=True))
    options = options_of(make_parser().parse_args(words(quantize_command(allowed, best, "out"))), BenchOptions)
    assert (options.trust_remote_code, options.allow_partial_groups, options.allow_partial) == (True, True, False)
    assert "--allow" not in quantize_command(study.record, best, "out")
