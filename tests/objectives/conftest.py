"""The bundled model is loaded once; a hub of which tests say what it answers takes the place of the network."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http

from objectives.model.loading import Model, ModelPlan, load_model


@pytest.fixture(scope="session")
def bundled() -> Model:
    """The bundled model in float32; whoever changes its weights puts them back."""
    return load_model(ModelPlan(dtype="float32"))


class FakeHub(httpx2.BaseTransport):
    """Answers every request with a status and the hub's own error code, or fails to connect."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._answer: tuple[int, str] | None = None

    def answers(self, status: int, code: str) -> None:
        self._answer = (status, code)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(f"{request.method} {request.url.path}")
        if self._answer is None:
            raise httpx2.ConnectError("no route to host", request=request)
        status, code = self._answer
        return httpx2.Response(status, headers={"X-Error-Code": code}, request=request)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub that transformers and datasets reach: unreachable until told to answer, with an empty cache."""
    fake = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # The clients wait between attempts.
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hooks = {"request": [_http.hf_request_event_hook]}
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=fake, event_hooks=hooks))
    yield fake
    huggingface_hub.set_client_factory(_http.default_client_factory)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if HF_HUB_OFFLINE had been set when the libraries were imported."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
