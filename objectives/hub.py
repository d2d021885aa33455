"""The model and data hub: its refusals as one line, each with its own remedy.

Responsible for telling absent, gated, offline and unreachable apart. May assume that transformers and datasets raise
`huggingface_hub` errors, or an OSError that has one among its causes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub import errors as hub

from objectives.errors import InputError

# The first match wins: a gated repository is also reported as one that was not found.
REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (hub.GatedRepoError, "is gated; accept its terms on its page and set HF_TOKEN to a token of that account"),
    (hub.RevisionNotFoundError, "has no such revision; check --revision"),
    (hub.RepositoryNotFoundError, "does not exist or is private; check the name, and HF_TOKEN if it is private"),
    (hub.EntryNotFoundError, "lacks a file that is needed; check that it is a complete repository"),
    (hub.HFValidationError, "is neither a local path nor a hub name of the form org/name"),
)
OFFLINE = "is not in the local hub cache and HF_HUB_OFFLINE is set; unset it, or give a local path"
UNREACHABLE = "cannot be fetched: the hub is unreachable; check the network, or give a local path"


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn whatever the hub's clients raise inside the block into one `InputError` about `what`."""
    try:
        yield
    except (OSError, ValueError, hub.HfHubHTTPError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} {_remedy(error)}") from error


def _remedy(error: BaseException) -> str:
    causes = list(_causes(error))
    # Absent from the cache and absent from the hub look alike; only the connection tells them apart.
    if any(isinstance(cause, hub.LocalEntryNotFoundError | ConnectionError) for cause in causes):
        return OFFLINE if constants.HF_HUB_OFFLINE else UNREACHABLE
    for cause in causes:
        for kind, remedy in REMEDIES:
            if isinstance(cause, kind):
                return remedy
    return f"cannot be used: {' '.join(str(error).split())}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
