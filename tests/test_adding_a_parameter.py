"""Adding a hyperparameter is a row of the table, its name at the methods that read it, and its formula."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "objectives/bundled/model/model.safetensors"
# What a person writes: file, where, and what stands there afterwards.
ROW = """    least_salience: float = row(
        0.0,
        "least salience",
        "least salience of an input, of the largest",
        legal=(0.0, 1.0),
        search=Range(low=0.0, high=0.5),
    )
"""
FORMULA = "salience.clamp(min=setting.least_salience * float(salience.max()))"
EDITS = (
    ("quant/parameters.py", "    # A row in 16 bit costs", ROW + "    # A row in 16 bit costs"),
    (
        "quant/methods.py",
        'output error counts the same",\n            salience="activation",\n            normalisation="mean",\n'
        '            parameters=("n_grid",)',
        'output error counts the same",\n            salience="activation",\n            normalisation="mean",\n'
        '            parameters=("n_grid", "least_salience")',
    ),
    (
        "quant/layers.py",
        "    scales = candidate_scales(input_salience(setting, first.kind, inputs, weights, importances), ",
        "    salience = input_salience(setting, first.kind, inputs, weights, importances)\n"
        f"    scales = candidate_scales({FORMULA}, ",
    ),
)
FACTS = """
import json
from hpo.report.axes import label_of
from hpo.space.space import make_space
from quant.setting import Setting
space = make_space(Setting(method="gw-awq"), {"least_salience": "0.1..0.3"})
setting = Setting(method="gw-awq", least_salience=0.25)
print(json.dumps([[one.name for one in space.dimensions], label_of("least_salience"), setting.label()]))
"""
SMALL = ("--method", "gw-awq", "--eval-samples", "4", "--seq-len", "64", "--n-calib", "4", "--n-grid", "4")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the product with one hyperparameter more."""
    copy = tmp_path_factory.mktemp("changed")
    for room in ("hpo", "objectives", "quant", "storage"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", Path(WEIGHTS).name))
    (copy / WEIGHTS).symlink_to(ROOT / WEIGHTS)
    shutil.copy(ROOT / "cli.py", copy)
    for name, before, after in EDITS:
        text = (copy / name).read_text()
        assert text.count(before) == 1, f"{name} has changed: adapt this test"
        (copy / name).write_text(text.replace(before, after))
    return copy


def python(changed: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Python in the changed copy, which it imports instead of what is installed."""
    environment = {**os.environ, "PYTHONPATH": str(changed), "PRAQTUNE_HOME": str(changed / "home")}
    return subprocess.run([sys.executable, *words], cwd=changed, env=environment, capture_output=True, text=True)


def test_space_and_figures_and_labels_know_it(changed: Path) -> None:
    """Nothing else was touched."""
    done = python(changed, "-c", FACTS)
    assert done.returncode == 0, done.stderr
    names, label, setting = json.loads(done.stdout)
    assert "least_salience" in names
    assert (label, setting) == ("least salience", "gw-awq n_grid=20 least_salience=0.25")


def test_it_is_a_flag_of_every_command_that_takes_settings(changed: Path) -> None:
    """With its help and its range."""
    for command, words in (("optimize", "(default 0..0.5)"), ("evaluate", "(default 0)")):
        shown = " ".join(python(changed, "cli.py", command, "--help").stdout.split())
        assert f"--least-salience LEAST_SALIENCE least salience of an input, of the largest {words}" in shown


@pytest.mark.slow
def test_it_changes_what_it_should(changed: Path) -> None:
    """At 1 every input counts the same, so that nothing is left to search; unsaid it is as before; 2 is refused."""
    refused = python(changed, "cli.py", "evaluate", *SMALL, "--least-salience", "2")
    assert (refused.returncode, refused.stderr) == (2, "praqtune: least_salience 2.0 is outside 0..1\n")

    def perplexity(*flags: str) -> Any:
        done = python(changed, "cli.py", "evaluate", *SMALL, *flags, "--json")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["rows"]
        return next(row["perplexity"] for row in rows if row["setting"])

    usual = perplexity()
    assert perplexity("--least-salience", "0") == usual
    assert perplexity("--least-salience", "1") != usual
