"""What the hub refuses reaches the user as one line with the remedy for that refusal, for models and for data.

The real clients run against a hub that gives the answer in question, so that the chains of errors are theirs. Only
failures in the middle of a stream, and of loading, are raised by hand.
"""

from collections.abc import Callable
from typing import Any

import datasets
import httpx2
import pytest
from huggingface_hub import errors as hub_raises
from safetensors import SafetensorError

from objectives.errors import InputError
from objectives.model.hub import hub_errors
from objectives.model.loading import ModelPlan, load_model
from objectives.text.sources import read_documents

GATED = "is gated; accept its terms on its page and set HF_TOKEN"
ABSENT = "does not exist or is private; check the name"
REVISION = "has no such revision; check --revision"
OFFLINE = "is not in the local hub cache and HF_HUB_OFFLINE is set; unset it"
UNREACHABLE = "cannot be fetched: the hub is unreachable; check the network"
REMEDIES = (GATED, ABSENT, REVISION, OFFLINE, UNREACHABLE)

CALLS: dict[str, Callable[[], object]] = {
    "model": lambda: load_model(ModelPlan(name="org/name", revision="v1")),
    "data set": lambda: read_documents("hub:org/name"),
}
both = pytest.mark.parametrize("what", CALLS)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is not None
    return message


def only(remedy: str, message: str) -> bool:
    """Whether the message gives this remedy and none of the others."""
    return [each for each in REMEDIES if each in message] == [remedy]


@both
@pytest.mark.parametrize("status", [401, 403])
def test_gated(hub: Any, what: str, status: int) -> None:
    """A gated repository says that its terms must be accepted and that HF_TOKEN is needed, with and without one."""
    hub.answers(status, "GatedRepo")
    message = refusal(CALLS[what])
    assert only(GATED, message), message
    assert message.startswith(f"{what} org/name ")


@both
@pytest.mark.parametrize("status", [401, 404])
def test_absent(hub: Any, what: str, status: int) -> None:
    """A name that the hub does not know, or does not show without a token, says to check both."""
    hub.answers(status, "RepoNotFound")
    message = refusal(CALLS[what])
    assert only(ABSENT, message), message
    assert message.startswith(f"{what} org/name ")
    assert "HF_TOKEN" in message


def test_unknown_revision(hub: Any) -> None:
    """A revision that the repository does not have names the flag."""
    hub.answers(404, "RevisionNotFound")
    assert only(REVISION, refusal(CALLS["model"]))


@both
def test_offline(hub: Any, offline: None, what: str) -> None:
    """With HF_HUB_OFFLINE set the remedy is to unset it, and nothing is asked of the hub."""
    hub.answers(404, "RepoNotFound")
    message = refusal(CALLS[what])
    assert only(OFFLINE, message), message
    assert hub.requests == []


@both
def test_unreachable(hub: Any, what: str) -> None:
    """Without a network the remedy is the network, not the name or the token."""
    message = refusal(CALLS[what])
    assert only(UNREACHABLE, message), message
    assert any("org/name" in request for request in hub.requests)


@both
def test_a_hub_that_is_down_is_unreachable(hub: Any, what: str) -> None:
    """An error of the server is not blamed on the name."""
    hub.answers(503, "")
    assert only(UNREACHABLE, refusal(CALLS[what]))


def test_a_model_repository_without_a_configuration(hub: Any) -> None:
    """A repository that holds no model says so in the library's own words, on one line."""
    hub.answers(404, "EntryNotFound")
    message = refusal(CALLS["model"])
    assert message.startswith("model org/name cannot be used: ")
    assert not any(remedy in message for remedy in REMEDIES)


def test_a_data_repository_without_files(hub: Any) -> None:
    """A file that a data set lacks is told apart from a data set that is absent."""
    hub.answers(404, "EntryNotFound")
    assert "lacks a file that is needed" in refusal(CALLS["data set"])


@pytest.mark.parametrize("name", ["/no/such/directory", "./no/such/directory", "org/name/too/long", "a b"])
def test_a_name_that_is_neither_path_nor_repository(hub: Any, name: str) -> None:
    """A mistyped path is not looked up on the hub, and the message says what a name may be."""
    message = refusal(lambda: load_model(ModelPlan(name=name)))
    assert f"model {name} is neither a local path nor a hub name of the form org/name" in message


REQUEST = httpx2.Request("GET", "https://huggingface.co/x")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx2.ReadTimeout("slow", request=REQUEST), UNREACHABLE),
        (httpx2.RemoteProtocolError("closed", request=REQUEST), UNREACHABLE),
        (ConnectionError("Server Disconnected"), UNREACHABLE),
        (hub_raises.OfflineModeIsEnabled("Cannot reach"), UNREACHABLE),
        (
            ValueError("BuilderConfig 'x' not found.\nAvailable: ['en']"),
            "BuilderConfig 'x' not found. Available: ['en']",
        ),
        (datasets.exceptions.DataFilesNotFoundError("No (supported) data files"), "No (supported) data files"),
        (datasets.exceptions.DatasetGenerationError("broken\nrow"), "broken row"),
        (RuntimeError("Dataset scripts are no longer supported, but found c4.py"), "scripts are no longer supported"),
    ],
)
def test_failures_inside_a_stream(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    """What breaks after the first rows is reported like what breaks before them."""

    def load(*args: object, **kwargs: object) -> Any:
        yield {"text": "first"}
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refusal(lambda: read_documents("hub:org/name"))
    assert message.startswith("data set org/name ")
    assert said in message


def test_offline_is_recognised_inside_a_stream(monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    """A stream that is cut off because HF_HUB_OFFLINE is set gives that remedy."""

    def load(*args: object, **kwargs: object) -> Any:
        yield {"text": "first"}
        raise hub_raises.OfflineModeIsEnabled("Cannot reach")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert only(OFFLINE, refusal(lambda: read_documents("c4")))


def test_our_own_errors_pass_unchanged() -> None:
    """An error that already is one line for the user is not wrapped again."""
    with pytest.raises(InputError, match=r"^ours$"), hub_errors("model x"):
        raise InputError("ours")


def test_damaged_weights_are_an_input_error() -> None:
    """The safetensors library's error is no subclass of the usual ones, and is caught all the same."""
    with pytest.raises(InputError, match="model x cannot be used: Error while deserializing"), hub_errors("model x"):
        raise SafetensorError("Error while deserializing\nheader")


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("x"), RuntimeError("x")])
def test_mistakes_of_ours_are_not_disguised(error: Exception) -> None:
    """An error that no hub client raises keeps its type, and its traceback."""
    with pytest.raises(type(error)), hub_errors("model x"):
        raise error
