"""The model and data hub: its refusals as one line, each with its own remedy.

Responsible for telling absent, gated, offline and unreachable apart. May assume that transformers and datasets raise
`huggingface_hub` errors, or an OSError that has one among its causes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

from httpx2 import TransportError
from huggingface_hub import constants
from huggingface_hub import errors as hub
from safetensors import SafetensorError

from objectives.errors import InputError

EXPECTED: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    TransportError,
    SafetensorError,
    hub.StrictDataclassError,
)
# Some of the libraries' messages list all the classes they know.
LONGEST_MESSAGE = 400
GATED = "is gated; accept its terms on its page and set HF_TOKEN to a token of that account"
ABSENT = "does not exist or is private; check the name, and HF_TOKEN if it is private"
OFFLINE = "is not in the local hub cache and HF_HUB_OFFLINE is set; unset it, or give a local path"
UNREACHABLE = "cannot be fetched: the hub is unreachable; check the network, or give a local path"

# The first match wins: a gated repository is also reported as one that was not found.
REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (hub.GatedRepoError, GATED),
    (hub.RevisionNotFoundError, "has no such revision; check --revision"),
    (hub.RepositoryNotFoundError, ABSENT),
    (hub.EntryNotFoundError, "lacks a file that is needed; check that it is a complete repository"),
    (hub.HFValidationError, "is neither a local path nor a hub name of the form org/name"),
)
# What the libraries raise as a plain error, or cut the chain of: their words are all that tells these apart.
PHRASES = (
    ("is a gated dataset", GATED),
    ("doesn't exist on the Hub or cannot be accessed", ABSENT),
    ("contains custom code which must be executed", "runs code of its own; add --trust-remote-code if you trust it"),
)


@contextmanager
def hub_errors(subject: str, *also: type[Exception]) -> Iterator[None]:
    """Turn whatever the hub's clients raise inside the block, and what is in `also`, into an `InputError` on `what`."""
    try:
        yield
    except (*EXPECTED, *also) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{subject} {_remedy(error)}") from error


def _remedy(error: BaseException) -> str:
    causes = list(_causes(error))
    # Absent from the cache and absent from the hub look alike; only the connection tells them apart.
    if any(isinstance(cause, hub.LocalEntryNotFoundError | ConnectionError | TransportError) for cause in causes):
        return OFFLINE if constants.HF_HUB_OFFLINE else UNREACHABLE
    for cause in causes:
        for kind, remedy in REMEDIES:
            if isinstance(cause, kind):
                return remedy
    message = shorten(str(error), LONGEST_MESSAGE, placeholder=" ...")
    return next((remedy for phrase, remedy in PHRASES if phrase in str(error)), f"cannot be used: {message}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
