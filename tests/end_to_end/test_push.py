"""`push` against a hub of the test's own: everything that was proven arrives in one commit, or nothing does."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import cli
from objectives.export.manifest import file_hashes, write_manifest
from tests.conftest import SmallStudy
from tests.objectives.export.test_manifest import MANIFEST

TOKEN = "hf_of_the_test"
# What the hub's client does where it sends a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@dataclass(kw_only=True)
class Hub:
    """What a hub knows, and what it refuses.

    Attributes:
        address: Where it listens.
        repositories: Those that were made, and whether they are private.
        uploads: Large files by hash, also those of no commit.
        files: What the repository has.
        commits: What every commit changed: new files, and None for those that it removed.
        asked: What was asked of it, in order.
        refuses: Beginnings of requests, with the status that they are answered with.
        large: What the names of files end in that are sent on their own.
    """

    address: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: list[dict[str, bytes | None]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)
    large: str = ".safetensors"

    def answer(self, request: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(request)
        for beginning, status in self.refuses.items():
            if request.startswith(beginning):
                return status, {"error": f"refused with {status}"}
        if request == "POST /api/repos/create":
            said = json.loads(body)
            name = f"{said.get('organization') or 'me'}/{said['name']}"
            self.repositories[name] = said.get("private") is True or said.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{name}"}
        if request == "POST /api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if request.startswith("GET /api/models/") and request.removeprefix("GET /api/models/") in self.repositories:
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {"id": "me/model", "_id": "0", "sha": self.sha, "siblings": siblings}
        if "/resolve/" in request:
            return 200, self.files[request.partition(f"/resolve/{self.sha}/")[2]]
        if "/preupload/" in request:
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [self._mode(name) for name in names]}
        if request.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._upload(file) for file in json.loads(body)["objects"]]}
        if request.startswith("PUT /upload/"):
            self.uploads[request.rpartition("/")[2]] = body
            return 200, {}
        if "/commit/" in request:
            change = dict(self._committed(body))
            self.commits.append(change)
            self.files |= {name: data for name, data in change.items() if data is not None}
            for name in [name for name, data in change.items() if data is None]:
                del self.files[name]
            return 200, {"commitUrl": f"{self.address}/me/model/commit/1", "commitOid": "1", "success": True}
        return 404, {"error": f"nothing is known of {request}"}

    @property
    def sha(self) -> str:
        """Of the last commit."""
        return f"{len(self.commits):040x}"

    def _mode(self, name: str) -> dict[str, Any]:
        mode = "lfs" if name.endswith(self.large) else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False}

    def _upload(self, file: dict[str, Any]) -> dict[str, Any]:
        there = file["oid"] in self.uploads
        actions = {} if there else {"actions": {"upload": {"href": f"{self.address}/upload/{file['oid']}"}}}
        return {"oid": file["oid"], "size": file["size"], **actions}

    def _committed(self, body: bytes) -> Iterator[tuple[str, bytes | None]]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                # Nobody committed since the client looked.
                assert value["parentCommit"] == self.sha
            elif entry["key"] == "deletedFile":
                yield value["path"], None
            elif entry["key"] == "file":
                yield value["path"], base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                yield value["path"], self.uploads[value["oid"]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and a client that knows its address and a token."""
    known = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith("/upload/")
            status, said = known.answer(f"{self.command} {path}", body) if authorized else (401, {"error": "who?"})
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", hashlib.sha1(content).hexdigest())
            self.send_header("X-Repo-Commit", known.sha)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _handle

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    known.address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", known.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{known.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # It would be the client's own way of storing large files.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proven(tmp_path: Path) -> Path:
    """A directory as `quantize` leaves it, with files of a few bytes."""
    directory = tmp_path / "made"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights" * 100)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A model\n")
    write_manifest(directory, replace(MANIFEST, files=file_hashes(directory)))
    return directory


def pushed(capsys: Any, *arguments: str, code: int = 0) -> Any:
    """What the command prints: JSON where it succeeds, one line where it does not."""
    capsys.readouterr()
    assert cli.main(["push", *arguments, *(["--json"] if code == 0 else [])]) == code
    captured = capsys.readouterr()
    if code == 0:
        return json.loads(captured.out)
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line.removeprefix("praqtune: ")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*")}


@pytest.mark.usefixtures("same_process")
def test_a_proven_model_arrives_whole(
    capsys: Any, hub: Hub, small_study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file in one commit, as `quantize` wrote it."""
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))
    made = tmp_path / "made"
    setting = ["--method", "rtn", "--group-size", "64", "--format", "compressed-tensors"]
    assert cli.main(["quantize", *small_study.flags[:6], *setting, "--output-dir", str(made), "--quiet"]) == 0
    found = pushed(capsys, str(made), "me/model-int4", "--private")
    assert hub.repositories == {"me/model-int4": True}
    assert hub.commits == [contents(made)]
    assert found["repository"] == "me/model-int4"
    assert found["commit"] == f"{hub.address}/me/model/commit/1"
    sizes = [len(data) for data in contents(made).values()]
    assert (found["files"], found["bytes"], found["removed"]) == (len(sizes), sum(sizes), 0)


@pytest.mark.parametrize("xet", [True, False])
def test_one_commit_is_asked_for(
    xet: bool, capsys: Any, hub: Hub, proven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files there are, and whether or not the client would send a folder as a series of commits."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", not xet)
    # It has a protocol of its own for these.
    hub.large = ".none"
    for number in range(300):
        (proven / f"tokens-{number}.txt").write_text(str(number))
    write_manifest(proven, replace(MANIFEST, files=file_hashes(proven)))
    pushed(capsys, str(proven), "me/model")
    assert [request for request in hub.asked if "/commit/" in request] == ["POST /api/models/me/model/commit/main"]
    assert hub.commits == [contents(proven)]


def test_nothing_of_an_earlier_push_stays(capsys: Any, hub: Hub, proven: Path) -> None:
    """Of another format; what somebody put beside it does, and one commit does both."""
    pushed(capsys, str(proven), "me/model")
    hub.files["picture.png"] = b"theirs"
    (proven / "model.safetensors").unlink()
    (proven / "model.gguf").write_bytes(b"blocks" * 100)
    write_manifest(proven, replace(MANIFEST, weights="gguf", files=file_hashes(proven)))
    found = pushed(capsys, str(proven), "me/model")
    assert hub.files == {**contents(proven), ".gitattributes": b"", "picture.png": b"theirs"}
    assert len(hub.commits) == 2
    assert (hub.commits[1]["model.safetensors"], found["removed"]) == (None, 1)
    hub.commits.clear()
    hub.files["praqtune.json"] = b'{"files": 3}'
    line = pushed(capsys, str(proven), "me/model", code=2)
    assert line.startswith("me/model has weights that were not pushed as a proven model (model.gguf); give another")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "q4_0.gguf", "model.safetensors.index.json"]
)
def test_weights_that_no_push_put_there_are_not_joined(capsys: Any, hub: Hub, proven: Path, name: str) -> None:
    """Nor overwritten: they may be the only copy of the original."""
    hub.files[name] = b"theirs"
    line = pushed(capsys, str(proven), "me/model", code=2)
    assert line == (
        f"me/model has weights that were not pushed as a proven model ({name}); give another name, or remove them there"
    )
    assert hub.commits == []


def test_an_upload_that_breaks_leaves_nothing_and_can_be_repeated(capsys: Any, hub: Hub, proven: Path) -> None:
    """No commit is made before everything has arrived; what has arrived is not sent again."""
    hub.refuses = {"POST /api/models/me/model/commit": 400}
    line = pushed(capsys, str(proven), "me/model", code=1)
    assert line.startswith("the upload to me/model ended before its commit, so nothing of it is there: ")
    assert line.endswith("; push again, and what has arrived is not sent twice")
    assert hub.commits == []
    hub.refuses, hub.asked = {}, []
    pushed(capsys, str(proven), "me/model")
    assert hub.commits == [contents(proven)]
    assert not [request for request in hub.asked if request.startswith("PUT")]


def test_half_an_upload_is_no_commit(capsys: Any, hub: Hub, proven: Path) -> None:
    """The large file is refused, and the small ones are not committed without it."""
    hub.refuses = {"PUT /upload": 400}
    assert "ended before its commit" in pushed(capsys, str(proven), "me/model", code=1)
    assert (hub.commits, hub.uploads) == ([], {})


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_is_said(capsys: Any, hub: Hub, proven: Path, status: int) -> None:
    """Where a repository is made, and where a large file is sent."""
    for request in ("POST /api/repos/create", "POST /me/model.git/info/lfs"):
        hub.refuses = {request: status}
        line = pushed(capsys, str(proven), "me/model", code=2)
        assert line == (
            f"the hub refused me/model ({status}); log in with a token that may write there (`hf auth login`, "
            "HF_TOKEN), or give another name"
        )
    assert hub.commits == []


def test_nobody_who_is_not_logged_in_pushes(
    capsys: Any, hub: Hub, proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do; nothing is asked of the hub."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    line = pushed(capsys, str(proven), "me/model", code=2)
    assert line.startswith("nobody is logged in at the hub; run `hf auth login`, or give a token")
    assert hub.asked == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda made: (made / "praqtune.json").unlink(),
            "praqtune.json is missing or not of this version, and only what `quantize` wrote is pushed",
        ),
        (lambda made: write_manifest(made, replace(MANIFEST, format=1)), "is missing or not of this version"),
        (
            lambda made: write_manifest(made, replace(MANIFEST, bits_per_weight="four")),
            "bits_per_weight is 'four', not a number; write the model again",
        ),
        (lambda made: write_manifest(made, replace(MANIFEST, proof=None)), "was not proven to score what was meas"),
        (lambda made: (made / "model.safetensors").write_bytes(b"other"), "model.safetensors differs since the model"),
        (lambda made: (made / "config.json").unlink(), "config.json is missing since the model was proven"),
        (lambda made: (made / "notes.txt").write_text("mine"), "notes.txt has appeared since the model was proven"),
    ],
    ids=["nothing of ours", "another version", "damaged", "not proven", "changed", "missing", "added"],
)
def test_only_what_was_proven_is_pushed(capsys: Any, hub: Hub, proven: Path, spoil: Any, said: str) -> None:
    """To the byte; nothing is asked of the hub."""
    spoil(proven)
    assert said in pushed(capsys, str(proven), "me/model", code=2)
    assert hub.asked == []


def test_dense_weights_are_not_pushed(
    capsys: Any, hub: Hub, small_study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were scored, but not as they are stored."""
    monkeypatch.setenv("PRAQTUNE_HOME", str(small_study.home))
    made = tmp_path / "dense"
    assert cli.main(["quantize", *small_study.flags[:6], "--method", "rtn", "--output-dir", str(made), "--quiet"]) == 0
    assert "was not proven to score what was measured" in pushed(capsys, str(made), "me/model", code=2)
    assert hub.asked == []


def test_a_name_that_no_repository_can_have_is_refused(
    capsys: Any, hub: Hub, proven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a hub that is switched off."""
    assert "'a/b/c' is no name of a repository: " in pushed(capsys, str(proven), "a/b/c", code=2)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils.close_session()
    assert "switched off by HF_HUB_OFFLINE" in pushed(capsys, str(proven), "me/model", code=2)
    assert hub.asked == []


def test_the_hashes_are_those_of_the_files(proven: Path) -> None:
    """So that any tool can check them."""
    digest = hashlib.sha256((proven / "config.json").read_bytes()).hexdigest()
    assert file_hashes(proven)["config.json"] == digest
    assert "praqtune.json" not in file_hashes(proven)
