"""A tiny model that is refined, and where its results are kept."""

from pathlib import Path

import pytest
import torch

from objectives.trial import Bench
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def bench(home: Path) -> Bench:
    """Every refinement leaves its model as it was."""
    return tiny.bench(tiny.complete("qwen2", torch.bfloat16), home)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(Paths(tmp_path / "home").results)
