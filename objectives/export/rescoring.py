"""Load and score model directories in fresh processes that know nothing but the directories.

Responsible for what such a process has loaded, tensor by tensor, and for what that scores: it is loaded as it would be
anywhere, and nothing that this process has in memory can help. Run as a module, it is such a process; it takes the
directories that the same packages read, because most of its time goes into importing them. May assume that the
directories are complete and that the device has room for the model.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from objectives.errors import RunError
from objectives.export.digests import compared_dtype, loaded_digests
from objectives.export.reading import MLX_PACKAGE, TRANSFORMERS, load_directory, read_by_transformers
from objectives.model.loading import DTYPES, Model
from objectives.model.memory import available_bytes, release_cached
from objectives.progress import Progress
from objectives.results import pin, pinned
from objectives.scoring import Score, score
from objectives.text.sequences import Sequences
from storage.results import ResultStore

ROOT = Path(__file__).resolve().parent.parent.parent
SCORED, REMOTE_CODE, DIGESTS = "scored", "trust-remote-code", "digests"
THREADS = "OMP_NUM_THREADS"
COPIES = 2
"""How often a process may hold the model while it loads: the tensors of the file, and the model."""


@dataclass(frozen=True, kw_only=True)
class Reloaded:
    """What a fresh process has to say of a directory.

    Attributes:
        score: Of its model.
        digests: Of every tensor of the model, by its name (`objectives.export.digests`).
    """

    score: Score
    digests: Mapping[str, str]


def rescore(
    loaders: Mapping[Path, str],
    sequences: Sequences,
    model: Model,
    progress: Progress,
    trust_remote_code: bool = False,
) -> dict[Path, Reloaded]:
    """Load the model in each directory by its loader, and score it as `model` was: on its device and in its type.

    Directories with the same packages for a loader share a process, one after another. On processors processes run
    side by side, where PyTorch may use several threads here and memory suffices.

    Args:
        loaders: The loader, one of `objectives.export.reading`, by the directory.
        sequences: What to score.
        model: What was quantized.
        progress: Told how far each directory is.
        trust_remote_code: Run Python code that comes with the model.

    Raises:
        RunError: If one does not load or cannot be scored there, with the last line of what the process said.
    """
    directories = list(loaders)
    with TemporaryDirectory() as exchange:
        store = ResultStore(Path(exchange))
        dtypes = [_dtype_name(dtype) for dtype in (model.dtype, compared_dtype(model))]
        places = json.dumps([[str(directory), loader] for directory, loader in loaders.items()])
        common = [exchange, pin(store, sequences), str(model.device), *dtypes, places]
        flags = [REMOTE_CODE] if trust_remote_code else []
        shares = _shares(list(loaders.values()))

        def report(number: int, count: int) -> None:
            progress(f"scoring {directories[number].name} in a fresh process", count, len(sequences))

        for wave in [shares] if _side_by_side(len(shares), model) else [[share] for share in shares]:
            commands = [[*common, json.dumps(share), *flags] for share in wave]
            failures = _run(commands, Path(exchange), max(1, torch.get_num_threads() // len(wave)), report)
            for share, failure in zip(wave, failures, strict=True):
                if failure is not None:
                    at = next((number for number in share if _key(number) not in store), share[-1])
                    raise RunError(f"{directories[at]} cannot be loaded and scored in a fresh process: {failure}")
        return {directory: _reloaded(store, number) for number, directory in enumerate(directories)}


def _dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, own in DTYPES.items() if own == dtype)


def _reloaded(store: ResultStore, number: int) -> Reloaded:
    record, tensors = store.load(_key(number))
    digests = record[DIGESTS]
    assert isinstance(digests, dict)
    return Reloaded(score=Score(**tensors), digests=digests)


def _shares(loaders: Sequence[str]) -> list[list[int]]:
    """Return the numbers of what the same packages load: transformers, MLX, or the readings of specifications."""
    numbers: dict[str, list[int]] = {}
    for number, loader in enumerate(loaders):
        packages = TRANSFORMERS if read_by_transformers(loader) else loader if loader == MLX_PACKAGE else ""
        numbers.setdefault(packages, []).append(number)
    return list(numbers.values())


def _side_by_side(count: int, model: Model) -> bool:
    """Return whether so many processes can score at once."""
    if count == 1 or model.device.type != "cpu" or torch.get_num_threads() == 1:
        return False
    weights = model.dtype.itemsize * sum(parameter.numel() for parameter in model.module.parameters())
    return bool(available_bytes(model.device) > count * COPIES * weights)


def _run(
    commands: Sequence[Sequence[str]], place: Path, threads: int, report: Callable[[int, int], None]
) -> list[str | None]:
    """Run processes side by side to their end; returns the last line of what each that failed said."""
    logs = [place / f"stderr-{number}" for number in range(len(commands))]
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        reading, writing = os.pipe()
        lines = stack.enter_context(os.fdopen(reading))
        try:
            with os.fdopen(writing, "wb") as output:
                for command, log in zip(commands, logs, strict=True):
                    errors = stack.enter_context(log.open("wb"))
                    process = _started(command, output.fileno(), errors.fileno(), threads)
                    processes.append(stack.enter_context(process))
            # Lines are shorter than what a pipe takes in one piece, so those of several processes do not mix.
            for line in lines:
                for number, count in _scored(line):
                    report(number, count)
            codes = [process.wait() for process in processes]
        except BaseException:
            # Nobody waits for their results any more, and leaving waits for their end.
            for process in processes:
                process.kill()
            raise
    return [None if code == 0 else _last_line(log, code) for log, code in zip(logs, codes, strict=True)]


def _started(command: Sequence[str], output: int, errors: int, threads: int) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, THREADS: str(threads)}
    return subprocess.Popen(
        [sys.executable, "-m", "objectives.export.rescoring", *command], stdout=output, stderr=errors, env=environment
    )


def _scored(line: str) -> Iterator[tuple[int, int]]:
    """Yield directory and sequences of a line that says so; packages may write others."""
    words = line.split()
    if len(words) == 3 and words[0] == SCORED and words[1].isdigit() and words[2].isdigit():
        yield int(words[1]), int(words[2])


def _last_line(log: Path, code: int) -> str:
    output = log.read_text(errors="replace").strip().splitlines()
    return output[-1] if output else f"exit code {code}"


def _key(number: int) -> str:
    return f"score-{number}"


def _main(
    exchange: str, text: str, device: str, dtype: str, compared: str, places: str, numbers: str, *flags: str
) -> None:
    store = ResultStore(Path(exchange))
    sequences, loaders = pinned(store, text), json.loads(places)
    for number in json.loads(numbers):
        directory, loader = loaders[number]
        try:
            model = load_directory(loader, Path(directory), DTYPES[dtype], REMOTE_CODE in flags)
        except RunError as error:
            sys.exit(str(error))
        for look in score(model.to(device).eval(), sequences):
            print(SCORED, number, len(look.nll), flush=True)
        digests = loaded_digests(model, Path(directory), DTYPES[compared])
        store.save(_key(number), {DIGESTS: digests}, look.tensors)
        # There is room for one at a time.
        del model
        release_cached(torch.device(device))


if __name__ == "__main__":
    _main(*sys.argv[1:])
