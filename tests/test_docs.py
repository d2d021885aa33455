"""What the documents say is real: every command parses, every link leads somewhere, every example compiles."""

import re
import shlex
from pathlib import Path

import pytest

from hpo.commands.parser import make_parser
from quant.parameters import PARAMETERS, Choices, Range

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# Other programs that documents may name; what they do is not ours to check.
OTHERS = {
    "ssh",
    "pip",
    "export",
    "apt-get",
    "git",
    "hf",
    "cp",
    "docker",
    "kubectl",
    "helm",
    "sbatch",
    "psql",
    "llama-server",
    "mlx_lm.server",
    "vllm",
    "lm_eval",
    "curl",
}


def blocks(path: Path, language: str) -> list[str]:
    """Code blocks of that language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Every command of a document's shell blocks, in words, without the variables that it is given."""
    text = "\n".join(blocks(path, "bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [without_redirection(strip_variables(line)) for line in lines if line]


def without_redirection(words: list[str]) -> list[str]:
    return words[: words.index(">")] if ">" in words else words


def strip_variables(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


COMMANDS = [(name, words) for name, path in zip(NAMES, DOCUMENTS, strict=True) for words in commands(path) if words]
README = [words for name, words in COMMANDS if name == "README.md"]


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{name}: {' '.join(words)}" for name, words in COMMANDS])
def test_every_documented_command_is_understood(name: str, words: list[str]) -> None:
    """A command line that a reader copies is one that the program takes."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["python", "cli.py"] or words[0] == "praqtune":
        given = words[1:] if words[0] == "praqtune" else words[2:]
        assert callable(make_parser().parse_args(given).run)
    elif words[0] == "python":
        assert words[1] == "-m" or (ROOT / words[1]).is_file()
    else:
        assert words[0] in OTHERS, f"{name} names {words[0]}, which nobody here knows"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_link_leads_somewhere(path: Path) -> None:
    """Relative links and pictures point at files that exist, anchors at headings."""
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_python_example_compiles(path: Path) -> None:
    """What is run as well is said in its own test."""
    for block in blocks(path, "python"):
        compile(block, str(path), "exec")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """As hosts of repositories make them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_guide_is_linked_from_the_readme() -> None:
    """Nobody finds a document that nothing points at."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\((docs/[^)#]+)", text)}
    assert set(ROOT.glob("docs/*.md")) <= linked


def test_nothing_cites_what_is_not_in_the_repository() -> None:
    """The plan that this was built by is not part of it: formulas stand in docs/methods.md."""
    unknown = "DES" + "IGN"
    texts = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".md", ".toml", ".yaml", ".j2"}]
    ours = [path for path in texts if not any(part.startswith(".venv") for part in path.relative_to(ROOT).parts)]
    assert [str(path.relative_to(ROOT)) for path in ours if unknown in path.read_text(encoding="utf-8")] == []


def test_every_module_that_a_document_of_the_house_names_exists() -> None:
    """A module that was moved is found where the documents say; a name alone may follow one with its room."""
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "docs/methods.md"):
        for cited in re.findall(r"`([a-z_/]+\.py)`", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / cited).is_file() or ("/" not in cited and any(ROOT.glob(f"*/**/{cited}"))), (name, cited)


def test_pictures_of_the_documents_are_small() -> None:
    """A clone stays light, and every picture is used."""
    pictures = list((ROOT / "docs").rglob("*.png")) + list((ROOT / "docs").rglob("*.jpg"))
    assert sum(path.stat().st_size for path in pictures) < 2_000_000
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [path.name for path in pictures if path.name not in text] == []


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    """What CI checks is what a reader is told to run."""
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert ["make", "test"] in [words[:2] for words in README]


def shown(search: Range | Choices) -> str:
    """What is searched as the README shows it."""
    if isinstance(search, Choices):
        return ", ".join(str(value).lower() for value in search.values)
    if search.scale == "log2" or search.step is not None:
        second = 2 * search.low if search.step is None else search.low + search.step
        return f"{search.low:g}, {second:g}, ..., {search.high:g}"
    return f"{search.low:g} .. {search.high:g}" + (", log" if search.scale == "log" else "")


def test_the_readme_has_the_table_of_parameters() -> None:
    """Every hyperparameter with its label, its range and its flag, in the order of the table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rows = [tuple(map(str.strip, line)) for line in lines if len(line) == 3 and "`--" in line[2]]
    found = [(label, values, re.findall(r"--[a-z-]+[a-z]", flags)[0]) for label, values, flags in rows]
    wanted = [
        (parameter.label, shown(parameter.search), parameter.flag)
        for parameter in PARAMETERS.values()
        if parameter.search is not None
    ]
    assert found == wanted
