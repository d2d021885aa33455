"""Score a model directory in a fresh process that knows nothing but the directory.

Responsible for showing that what was written scores what it should: it is loaded there as it would be anywhere, and
nothing that this process has in memory can help. Run as a module, it is that process. May assume that the
directory is complete and that the device has room for the model.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from objectives.errors import RunError
from objectives.export.reading import TRANSFORMERS, load_directory
from objectives.model.loading import DTYPES, Model
from objectives.progress import Progress
from objectives.results import pin, pinned
from objectives.scoring import Score, score
from objectives.text.sequences import Sequences
from storage.results import ResultStore

ROOT = Path(__file__).resolve().parent.parent.parent
SCORE, SCORED = "score", "scored"
REMOTE_CODE = "trust-remote-code"


def rescore(
    directory: Path,
    sequences: Sequences,
    model: Model,
    progress: Progress,
    trust_remote_code: bool = False,
    reader: str = TRANSFORMERS,
) -> Score:
    """Score the model in `directory`, as `reader` loads it, as `model` is: on its device and in its type.

    Raises:
        RunError: If it does not load or cannot be scored there, with the last line of what the process said.
    """
    with TemporaryDirectory() as exchange:
        store = ResultStore(Path(exchange))
        dtype = next(name for name, dtype in DTYPES.items() if dtype == model.dtype)
        arguments = [str(directory), exchange, pin(store, sequences), str(model.device), dtype, reader]
        command = [
            sys.executable,
            "-m",
            "objectives.export.rescoring",
            *arguments,
            *([REMOTE_CODE] if trust_remote_code else []),
        ]
        log = Path(exchange) / "stderr"
        with log.open("wb") as errors, _running(command, errors.fileno()) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    word, _, count = line.strip().partition(" ")
                    if word == SCORED:
                        progress(f"scoring {directory.name} in a fresh process", int(count), len(sequences))
            except BaseException:
                # Nobody waits for its result any more, and leaving waits for its end.
                process.kill()
                raise
        if process.returncode:
            output = log.read_text(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise RunError(f"{directory} cannot be loaded and scored in a fresh process: {output[-1]}")
        _, tensors = store.load(SCORE)
    return Score(**tensors)


def _running(command: Sequence[str], errors: int) -> "subprocess.Popen[str]":
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)


def _main(directory: str, exchange: str, text: str, device: str, dtype: str, reader: str, *flags: str) -> None:
    store = ResultStore(Path(exchange))
    sequences = pinned(store, text)
    try:
        model = load_directory(reader, Path(directory), DTYPES[dtype], REMOTE_CODE in flags)
    except RunError as error:
        sys.exit(str(error))
    for look in score(model.to(device).eval(), sequences):
        print(SCORED, len(look.nll), flush=True)
    store.save(SCORE, {}, look.tensors)


if __name__ == "__main__":
    _main(*sys.argv[1:])
