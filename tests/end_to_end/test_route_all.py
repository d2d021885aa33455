"""`--route-all` as a person gives it: what it is refused for, and that a study keeps to it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hpo.study.contract import require_same
from objectives.bundled.text import MODEL_DIRECTORY
from objectives.errors import InputError
from tests.commands import printed, refusal
from tests.hpo.made_studies import CONTRACT
from tests.objectives import tiny

TEXT = ("--eval-data", "bundled:docstrings", "--seq-len", "32", "--dtype", "float32")
SMALL = ("--eval-samples", "8", *TEXT)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random mixture of experts with the bundled tokenizer."""
    directory = tmp_path_factory.mktemp("mixture")
    config = tiny.MIXTURES["mixtral"]()
    config.vocab_size = 4096
    tiny.module(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(MODEL_DIRECTORY).save_pretrained(directory)
    return str(directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("calibrate", "--sizes", "8"),
        ("calibrate", "--sizes", "8", "--dry-run"),
        ("evaluate", "--method", "rtn", *SMALL[:2]),
        ("compare", "--methods", "rtn", *SMALL[:2]),
        ("optimize", "--trials", "1", *SMALL[:2]),
        ("quantize", "--method", "gw-awq", "--n-calib", "8", "--output-dir", "written", *SMALL[:2]),
    ],
    ids=lambda words: f"{words[0]}{' --dry-run' * ('--dry-run' in words)}",
)
def test_a_model_without_experts_is_refused_by_every_command(
    command: tuple[str, ...], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, before anything is computed or written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRAQTUNE_HOME", str(tmp_path / "home"))
    assert refusal(capsys, *command, *TEXT, "--route-all").endswith(
        "--route-all is for mixtures of experts, and bundled has no experts; leave it out"
    )
    assert not (tmp_path / "written").exists()
    assert not list((tmp_path / "home").glob("calibration/*"))


@pytest.mark.slow
def test_calibrating_a_mixture_counts_what_routers_chose_and_keeps_other_statistics(
    mixture: str, capsys: Any, tmp_path: Path
) -> None:
    """One table for both, and a key for each; the dry run has more to multiply."""
    flags = ("calibrate", "--model", mixture, "--sizes", "8", "--cache", str(tmp_path / "home"), *TEXT)
    own, every = printed(capsys, *flags), printed(capsys, *flags, "--route-all")
    assert own["expert_tokens"] == every["expert_tokens"]
    assert own["entries"] != every["entries"]
    assert own["samples_read"] == every["samples_read"] == 8
    dry = [printed(capsys, *flags, "--dry-run", *more)["calibrating"] for more in ((), ("--route-all",))]
    assert dry[0] < dry[1]


@pytest.mark.slow
def test_a_study_keeps_to_it(mixture: str, capsys: Any, tmp_path: Path) -> None:
    """A worker without it is refused, what its trial becomes is calibrated so, and the manifest and its card say so."""
    home = ("--cache", str(tmp_path / "home"))
    where = ("--study", "mine", "--storage", f"sqlite:///{tmp_path}/study.db", *home)
    search = ("optimize", "--model", mixture, "--trials", "1", "--n-calib", "8", "--group-size", "32", "--presets-only")
    printed(capsys, *search, *where, *SMALL, "--route-all")
    line = refusal(capsys, *search, *where, *SMALL)
    assert "calibration.route_all is absent, in the study True" in line
    written = tmp_path / "written"
    manifest = printed(capsys, "quantize", *where, "--output-dir", str(written))
    assert manifest["calibration"]["route_all"] is True
    assert {layer["own_share"] for layer in manifest["layers"]} <= {1.0, None}


def test_a_worker_with_it_is_refused_by_a_study_without() -> None:
    """And the other way round."""
    every = replace(CONTRACT, calibration=replace(CONTRACT.calibration, route_all=True))
    require_same(every, every, "mine")
    with pytest.raises(InputError, match=r"calibration\.route_all is True, in the study absent"):
        require_same(CONTRACT, every, "mine")
    with pytest.raises(InputError, match=r"calibration\.route_all is absent, in the study True"):
        require_same(every, CONTRACT, "mine")
