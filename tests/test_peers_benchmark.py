"""Peers beside ours: none is installed here; what they read and what becomes a row is tested."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peers.run import PEERS, Attempt, failure, table, write_tokens
from hpo.comparison.entries import Entry, Kind
from hpo.comparison.verdict import judge
from hpo.study.record import FULL_PRECISION, Measured
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from quant.setting import Setting

RUNNERS = Path(__file__).parent.parent / "benchmarks" / "peers"
OURS = {"benchmarks", "cli", "hpo", "objectives", "quant", "storage"}


def entry(name: str, kind: Kind, increase: float) -> Entry:
    """A row that loses `increase` nats per token on four documents of ten tokens."""
    nll = 10 * (torch.tensor([2.0, 3.0, 2.5, 3.5], dtype=torch.float64) + increase)
    score = Score(nll=nll, tokens=torch.full((4,), 10), clusters=torch.arange(4))
    measured = Measured(
        name=name,
        setting=Setting(method=name) if kind == "method" else None,
        perplexity=score.perplexity,
        result=None,
        bits_per_weight=4.25,
        model_bytes=1000,
        seconds={"calibrate": 1.0, "quantize": 2.0},
    )
    return Entry(kind=kind, measured=measured, scores=(score,), score_seconds=(1.0,), packed=kind == "method")


def test_peers_calibrate_on_our_sequences(tmp_path: Path) -> None:
    """Their tokens are the ids of ours, in the same order."""
    ids = (torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10]))
    scored = tuple(torch.ones(3, dtype=torch.bool) for _ in ids)
    write_tokens(Sequences(source="made", ids=ids, scored=scored, clusters=(0, 1)), tmp_path / "tokens.json")
    assert json.loads((tmp_path / "tokens.json").read_text()) == [[5, 6, 7], [8, 9, 10]]


def test_a_row_has_its_increase_and_those_without_a_score_say_why() -> None:
    """Seconds of ours are of calibrating and quantizing; a peer's are its own; no peer is left out in silence."""
    rows = [
        entry(FULL_PRECISION, "full precision", 0.0),
        entry("rtn", "method", 0.05),
        entry("gw-awq", "method", 0.02),
        entry("AutoRound 50", "model", 0.03),
    ]
    notes = ["AutoRound 200 is left out: its values are not finite"]
    made = [
        Attempt(name="AutoRound 50", facts={"version": "1.2", "seconds": 70.04}),
        Attempt(name="AutoRound 200", facts={"version": "1.2", "seconds": 280.0}),
        Attempt(name="GPTQModel GPTQ", reason="not installed: no wheel"),
    ]
    lines = list(table(judge({}, ["made"], rows, notes), 0, made))
    cells = {line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[1:] for line in lines[2:]}
    assert cells["gw-awq"][:2] == ["ours", "3.0"]
    assert cells["AutoRound 50"][:2] == ["1.2", "70.0"]
    assert cells["AutoRound 50"][3:] == ["+0.0300 [+0.0300, +0.0300]", "+0.0100 [+0.0100, +0.0100]"]
    assert cells["AutoRound 200"][3] == "its values are not finite"
    assert cells["GPTQModel GPTQ"][3] == "not installed: no wheel"
    assert len({line.count("|") for line in lines}) == 1


def test_a_failed_peer_gives_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On one line that a cell can hold; one that succeeds gives none; neither sees modules of ours."""
    monkeypatch.setenv("PYTHONPATH", str(RUNNERS.parent.parent))
    command = [sys.executable, "-S", "-c"]
    words = failure([*command, "import sys; print('begins'); sys.exit('no a|b\\n')"], 60, tmp_path / "log")
    assert words == "no a/b"
    assert failure([*command, "import os; assert 'PYTHONPATH' not in os.environ"], 60, tmp_path / "log") == ""


@pytest.mark.parametrize("name", PEERS)
def test_runners_import_nothing_of_ours(name: str) -> None:
    """They run in environments that have other versions of what ours needs."""
    runner = PEERS[name].runner
    nodes = list(ast.walk(ast.parse((RUNNERS / runner).read_text())))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not {name.partition(".")[0] for name in names} & OURS
