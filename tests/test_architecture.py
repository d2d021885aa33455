"""The house rules: who may import whom, how modules look, and what never appears in them."""

import ast
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Layers below each layer: imports point down, `quant` and `storage` know nothing of ours.
BELOW = {
    "quant": set[str](),
    "storage": set[str](),
    "objectives": {"quant", "storage"},
    "hpo": {"objectives", "quant", "storage"},
    "cli": {"hpo", "objectives", "quant", "storage"},
}
# The rooms of a layer, the lowest first: a room imports those below it and none beside it.
ORDER: dict[str, tuple[set[str], ...]] = {
    "hpo": (
        {"quiet", "space", "standard_error"},
        {"study"},
        {"search"},
        {"workers"},
        {"launch"},
        {"verdict"},
        {"deploy"},
        {"plan", "report", "terminal"},
        {"optimize"},
        {"together", "comparison", "dashboard", "notebook"},
        {"commands"},
    ),
    "storage": (
        {"errors", "strict_json"},
        {"files", "paths", "typed_json"},
        {"lease", "model_directory", "artifacts", "tensor_files", "entry_files"},
        {"cache", "results", "studies"},
    ),
    "objectives": (
        {"errors", "progress", "stopwatch", "bundled", "divergence", "refinement_record", "versions"},
        {"model"},
        {"text", "suitability", "plan_files", "quantized_blocks"},
        {"forward", "calibration", "limits"},
        {"teacher", "costs", "propagation", "kept_blocks", "plan_keys"},
        {"scoring"},
        {"paired", "precision", "quantization", "beginning"},
        {"refined"},
        {"trial", "rounding_notes"},
        {"results", "evaluation"},
        {"refinement", "sensitivity"},
        {"export", "budget"},
    ),
    "quant": (
        {"errors", "matmul", "methods", "parameters", "propagation"},
        {"allocation", "recipes", "scheme", "statistics"},
        {"packing", "rounding"},
        {"setting"},
        {"plan", "scaling", "sizes"},
        {"linears"},
        {"layers"},
    ),
}
NEVER_IN_QUANT = {
    "optuna",
    "transformers",
    "datasets",
    "safetensors",
    "pathlib",
    "os",
    "io",
    "json",
    "sqlite3",
    "shutil",
}
NEVER_ANYWHERE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
# What stands for a thing does not say which: `for one in trials`, `found = ...`, `known`.
PRONOUNS = {
    *("it", "they", "them", "this", "that", "these", "those", "one", "each", "some", "something", "thing", "things"),
    *("ours", "theirs", "mine", "who", "which", "what", "here", "there", "either"),
    *("found", "told", "known", "said", "asked"),
}
MOST_LINES = 300
MOST_DOCSTRING_LINES = 8


def modules_of(layer: str) -> list[Path]:
    return sorted([*ROOT.glob(f"{layer}.py"), *ROOT.glob(f"{layer}/**/*.py")])


MODULES = [path for layer in BELOW for path in modules_of(layer)]
Rule = Callable[[Path], Iterator[str]]


def offenders(rule: Rule, paths: Iterable[Path]) -> list[str]:
    """Everything that a rule has against the modules, each with its place."""
    return [f"{path.relative_to(path.anchor)}: {what}" for path in paths for what in rule(path)]


def ours() -> set[str]:
    """Everything at the top of the repository that could be imported."""
    modules = {path.stem for path in ROOT.glob("*.py")}
    return modules | {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))} | {"tests"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Top-level names of everything a module imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno} imports relatively"
            yield str(node.module).partition(".")[0]


def test_the_layers_are_where_the_test_looks_for_them() -> None:
    """A layer that was moved or renamed cannot escape its rules."""
    assert {"quant", "storage", "objectives", "cli"} <= {
        path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES
    }
    assert len(MODULES) > 30


def upward(path: Path) -> Iterator[str]:
    """Imports of ours that are neither of its own layer nor of one below it."""
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    yield from (f"imports {name}" for name in (set(imports(path)) & ours()) - {layer} - BELOW[layer])


def test_imports_point_down() -> None:
    """A module imports its own layer and the layers below it, and nothing else that is ours."""
    assert not offenders(upward, MODULES)


def rooms(path: Path, layer: str) -> Iterator[str]:
    """The rooms of its own layer that a module imports."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            first, _, rest = str(node.module).partition(".")
            if first == layer:
                yield from [rest.partition(".")[0]] if rest else (alias.name for alias in node.names)


def test_rooms_import_only_rooms_below_them() -> None:
    """Whoever breaks the order of its layer, or has no place in it, is named."""
    offenders = []
    for layer, order in ORDER.items():
        heights = {room: height for height, row in enumerate(order) for room in row}
        for path in modules_of(layer):
            place = path.relative_to(ROOT / layer).with_suffix("").parts
            room = place[0]
            if place == ("__init__",):
                continue
            wrong = {
                imported
                for imported in set(rooms(path, layer)) - {room}
                if heights.get(imported, math.inf) >= heights.get(room, -math.inf)
            }
            offenders += [f"{layer}/{'/'.join(place)} imports {imported}" for imported in sorted(wrong)]
            offenders += [] if room in heights else [f"{layer}/{room} has no place in the order"]
    assert not offenders, "\n".join(offenders)


def test_the_rooms_of_a_study_are_documented_in_their_order() -> None:
    """Each row of the table in ARCHITECTURE.md is a row of the order that imports keep."""
    heads = re.findall(r"^\| (`hpo/[^|]*) \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    documented = [set(re.findall(r"`hpo/(\w+)(?:/|\.py)`", head)) for head in heads]
    assert documented == list(ORDER["hpo"])


def impure(path: Path) -> Iterator[str]:
    """What the mathematics must not know."""
    yield from (f"imports {name}" for name in set(imports(path)) & NEVER_IN_QUANT)


def test_quant_knows_tensors_only() -> None:
    """No files, no hub, no studies in the mathematics."""
    assert not offenders(impure, modules_of("quant"))


def shapeless(path: Path) -> Iterator[str]:
    """What is wrong with a module's opening, length or name."""
    lines = (ast.get_docstring(tree(path)) or "").splitlines()
    if not 1 <= len(lines) <= MOST_DOCSTRING_LINES:
        yield f"has a docstring of {len(lines)} lines"
    if path.stem in ("utils", "util", "helpers", "common", "misc"):
        yield "is a drawer"
    length = len(path.read_text(encoding="utf-8").splitlines())
    # The command line is flags and tables for every command.
    if path.name != "cli.py" and length >= MOST_LINES:
        yield f"has {length} lines"


def test_modules_say_what_they_are_for_and_stay_short() -> None:
    """Every module opens with a few lines of docstring; none outgrows one responsibility, none is a drawer."""
    assert not offenders(shapeless, MODULES)


def pickling(path: Path) -> Iterator[str]:
    """Ways in which reading a file would run code."""
    yield from (f"imports {name}" for name in set(imports(path)) & NEVER_ANYWHERE)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = (node.value.id, node.attr)
            if name in {("torch", "load"), ("torch", "save"), ("np", "load")}:
                yield f"uses {'.'.join(name)} in line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield f"allows pickles in line {node.lineno}"


def test_nothing_is_pickled() -> None:
    """Neither imported nor through torch or numpy: reading a file never runs code."""
    assert not offenders(pickling, MODULES)


def swallowing(path: Path) -> Iterator[str]:
    """Places that catch everything and go on as if nothing had happened."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler) and catches_everything(node.type) and all(map(does_nothing, node.body)):
            yield f"swallows errors in line {node.lineno}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "suppress":
            yield from (
                f"suppresses everything in line {node.lineno}" for kind in node.args if catches_everything(kind)
            )


def test_no_error_is_swallowed_unseen() -> None:
    """Nobody catches everything and goes on as if nothing had happened."""
    assert not offenders(swallowing, MODULES)


def nameless(path: Path) -> Iterator[str]:
    """Variables and arguments that are called by a pronoun, or by what was done to them."""
    for node in ast.walk(tree(path)):
        name = ""
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if name in PRONOUNS:
            yield f"calls something {name!r} in line {node.lineno}"


def test_variables_are_called_what_they_are() -> None:
    """A name says what the thing is: a trial, a setting, a score."""
    assert not offenders(nameless, [*MODULES, *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("examples/*.py")])


def catches_everything(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(map(catches_everything, kind.elts))
    return kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))


def does_nothing(step: ast.stmt) -> bool:
    constant = isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant)
    return constant or isinstance(step, ast.Pass | ast.Continue)


@pytest.mark.parametrize(
    ("rule", "code", "breaks"),
    [
        (swallowing, "try: x()\nexcept: pass", True),
        (swallowing, "try: x()\nexcept Exception: ...", True),
        (swallowing, "try: x()\nexcept (OSError, Exception): pass", True),
        (swallowing, "with suppress(Exception): x()", True),
        (swallowing, "with contextlib.suppress(BaseException): x()", True),
        (swallowing, "try: x()\nexcept OSError: pass", False),
        (swallowing, "try: x()\nexcept Exception as e: log(e)", False),
        (swallowing, "try: x()\nexcept Exception as e: y(); raise", False),
        (swallowing, "with suppress(OSError): x()", False),
        (pickling, "import pickle", True),
        (pickling, "torch.load(path)", True),
        (pickling, "np.savez(path, allow_pickle=True)", True),
        (pickling, "torch.zeros(1)", False),
        (nameless, "for one in trials: x(one)", True),
        (nameless, "def x(known): ...", True),
        (nameless, "for trial in trials: x(trial.known)", False),
        (impure, "from pathlib import Path", True),
        (impure, "import torch", False),
        (shapeless, "import torch", True),
        (shapeless, '"""Say what it is for."""', False),
    ],
)
def test_the_rules_can_be_broken(rule: Rule, code: str, breaks: bool, tmp_path: Path) -> None:
    """Each rule finds what it is for, and nothing in what is allowed."""
    module = tmp_path / "module.py"
    module.write_text(code)
    assert bool(offenders(rule, [module])) == breaks


def test_asking_where_a_study_stands_loads_no_model_library() -> None:
    """`status` answers at once: what runs a study takes seconds to import."""
    code = "import sys, cli, hpo.study.finding, hpo.study.status, storage.studies.opening; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"transformers", "scipy", "matplotlib", "datasets"} & set(ended.stdout.split())
