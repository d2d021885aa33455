"""Put a model directory that was proven into a repository of the hub.

Responsible for pushing what was proven and nothing else - the files of the proof, byte by byte - with the hub's own
client, in one commit: a repository has all of it or nothing of it, and nothing of an earlier push. May assume a
directory that `quantize` wrote.
"""

import json
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from objectives.errors import InputError, RunError
from objectives.export.companions import WEIGHTS
from objectives.export.manifest import Manifest, file_hashes
from objectives.model.provenance import RECORD, read_manifest

REFUSED = (401, 403)
WRITE_AGAIN = "write the model again with `quantize`"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What is in the repository now.

    Attributes:
        repository: Its name on the hub.
        commit: Where the commit can be looked at.
        files: How many were pushed.
        bytes: What they take.
        removed: How many files of an earlier push were removed, because this one has none of their names.
    """

    repository: str
    commit: str
    files: int
    bytes: int
    removed: int


def push(directory: Path, repository: str, private: bool = False) -> Pushed:
    """Upload a proven model directory in one commit; the repository is made where there is none.

    What an earlier push left there and this one does not replace is removed by the same commit. Other files stay,
    unless they are weights: nobody could tell which model a repository with two holds.

    Args:
        directory: With the `praqtune.json` of `quantize`.
        repository: `NAME`, or `OWNER/NAME`.
        private: Whether a repository that is made can be seen by its owner alone.

    Raises:
        InputError: If the directory is not what was proven, nobody is logged in, the hub refuses the name or the
            token, or the repository has weights that no push put there.
        RunError: If the upload ends before its commit.
    """
    manifest = proven_manifest(directory)
    token = get_token()
    if token is None:
        raise InputError(
            "nobody is logged in at the hub; run `hf auth login`, or give a token that may write as HF_TOKEN"
        )
    with _errors(repository):
        api = HfApi(token=token)
        made = api.create_repo(repository, private=private, exist_ok=True).repo_id
        assert manifest.proof is not None
        present, before = _present(api, made)
        names = sorted({*manifest.files, RECORD})
        left = sorted(present & _earlier(api, made, present, before) - set(names))
        # An uploaded folder would be several commits where the client stores large files in its own way.
        commit = api.create_commit(
            made,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=directory / name) for name in names),
                *(CommitOperationDelete(path_in_repo=name) for name in left),
            ],
            commit_message=f"{manifest.method} as {manifest.weights}, proven by {manifest.proof.reader}",
            parent_commit=before,
        )
    sizes = [(directory / name).stat().st_size for name in names]
    return Pushed(repository=made, commit=commit.commit_url, files=len(sizes), bytes=sum(sizes), removed=len(left))


def _present(api: HfApi, repository: str) -> tuple[set[str], str | None]:
    """Return the files that a repository has, and the commit that has them."""
    info = api.model_info(repository)
    return {file.rfilename for file in info.siblings or ()}, info.sha


def _earlier(api: HfApi, repository: str, present: Set[str], commit: str | None) -> set[str]:
    """Return the files that an earlier push put into a repository.

    Raises:
        InputError: If it has other weights.
    """
    earlier: set[str] = set()
    if RECORD in present:
        with TemporaryDirectory() as place:
            path = Path(api.hf_hub_download(repository, RECORD, revision=commit, local_dir=place))
            earlier = {RECORD, *_named_files(path)}
    foreign = sorted(name for name in present - earlier if name.endswith(WEIGHTS))
    if foreign:
        raise InputError(
            f"{repository} has weights that were not pushed as a proven model ({foreign[0]}); give another name, or "
            "remove them there"
        )
    return earlier


def _named_files(record: Path) -> Iterable[str]:
    """Return the files that the manifest of a push names, whatever its version is."""
    try:
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ()
    return files if isinstance(files, dict) else ()


def proven_manifest(directory: Path) -> Manifest:
    """Return the manifest of a directory that holds the very files that were proven.

    Raises:
        InputError: With the first thing that is otherwise.
    """
    manifest = read_manifest(directory, Manifest)
    if manifest is None:
        raise InputError(
            f"{directory / RECORD} is missing or not of this version, and only what `quantize` wrote is pushed; "
            f"{WRITE_AGAIN}"
        )
    if manifest.proof is None or not manifest.files:
        raise InputError(
            f"{directory} was not proven to score what was measured, and nothing else is pushed; {WRITE_AGAIN} "
            "--format compressed-tensors, gptq, awq, gguf or mlx"
        )
    present, proven = file_hashes(directory), manifest.files
    for name in sorted({*present, *proven}):
        if present.get(name) != proven.get(name):
            change = "is missing" if name not in present else "differs" if name in proven else "has appeared"
            raise InputError(f"{directory / name} {change} since the model was proven; {WRITE_AGAIN}, or undo that")
    return manifest


@contextmanager
def _errors(repository: str) -> Iterator[None]:
    """Make one line with the remedy of everything that the hub's client raises."""
    try:
        yield
    except InputError:
        raise
    except HFValidationError as error:
        raise InputError(f"{repository!r} is no name of a repository: {_line(error)}") from None
    except OfflineModeIsEnabled:
        raise InputError("the hub is switched off by HF_HUB_OFFLINE; unset it to push") from None
    except (HfHubHTTPError, httpx2.HTTPError, RuntimeError, ValueError, OSError) as error:
        status = _status(error)
        if status in REFUSED:
            raise InputError(
                f"the hub refused {repository} ({status}); log in with a token that may write there (`hf auth login`, "
                "HF_TOKEN), or give another name"
            ) from None
        raise RunError(
            f"the upload to {repository} ended before its commit, so nothing of it is there: {_line(error)}; push "
            "again, and what has arrived is not sent twice"
        ) from error


def _status(error: BaseException | None) -> int | None:
    """Return the status of the answer that an error, or what caused it, is about."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return int(error.response.status_code)
        error = error.__cause__
    return None


def _line(error: BaseException) -> str:
    """Return the first line of an error's words."""
    words = str(error.__cause__ or error).strip().splitlines()
    return words[0].rstrip(".") if words else type(error).__name__
