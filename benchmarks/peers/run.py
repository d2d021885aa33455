"""Other quantizers beside ours: same model, calibration tokens, bits, grid and scorer; seconds and paired intervals.

Each peer has a virtual environment of its own below --environments, made where it is missing, and quantizes in a
process of its own, one at a time. What they write is scored as `compare --models` scores it. What was written before
for the same model, tokens and grid is not made again. A peer that cannot be installed or fails is a row that says why.
Seconds are those of calibrating and quantizing, without loading and writing. Our rows share one calibration: it counts
in the first of them, and in none where an earlier run in the same --work made it.

    OMP_NUM_THREADS=1 python benchmarks/peers/run.py --seq-len 256 --eval-samples 32 --n-calib 64 --asymmetric
    python benchmarks/peers/run.py --model DIR --calib-data WIKITEXT2 --eval-data C4 --peers auto-round,gptqmodel
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hpo.comparison.compare import compare
from hpo.comparison.entries import Entry
from hpo.comparison.plan import ComparePlan, method_settings
from hpo.comparison.verdict import Comparison
from hpo.study.bench import bench_plan
from hpo.study.options import BenchOptions
from hpo.terminal import progress_display
from objectives.evaluation import load_bench
from objectives.model.loading import BUNDLED
from objectives.model.memory import keep_freed_memory
from objectives.paired import Difference
from objectives.progress import Progress
from objectives.text.sequences import Sequences
from storage.paths import Paths

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TORCH = "torch==2.13.0"
NOTHING = "–"
# No hub is asked and nothing is compiled. GPTQModel wants two workers at least, and takes one on two cores.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "PYTHONNOUSERSITE": "1",
    "GPTQMODEL_CPU_WORKERS": str(max(2, os.cpu_count() or 1)),
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package: what pip calls it, what its runner is, and the fields of a job by the names of its rows."""

    requirement: str
    runner: str
    rows: Mapping[str, Mapping[str, object]]

    @property
    def package(self) -> str:
        """Return the name of its environment."""
        return self.requirement.partition("==")[0]


PEERS = {
    "auto-round": Peer(
        requirement="auto-round==0.16.1",
        runner="run_auto_round.py",
        rows={f"AutoRound {name}": {"iters": iters} for name, iters in (("RTN", 0), ("50", 50), ("200", 200))},
    ),
    "llm-compressor": Peer(
        requirement="llmcompressor==0.14.0.1",
        runner="run_llm_compressor.py",
        rows={f"llm-compressor {name.upper()}": {"method": name} for name in ("awq", "gptq")},
    ),
    "gptqmodel": Peer(requirement="gptqmodel==7.6.0", runner="run_gptqmodel.py", rows={"GPTQModel GPTQ": {}}),
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of a peer's row: a model directory with version and seconds, or why there is none."""

    name: str
    directory: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BenchOptions.model, help="directory, or `bundled`")
    parser.add_argument("--calib-data")
    parser.add_argument("--eval-data")
    parser.add_argument("--eval-samples", type=int, default=64)
    parser.add_argument("--n-calib", type=int, default=64)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--peers", default=",".join(PEERS), help="separated by commas; all by default")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds that one row of a peer may take")
    home = Paths.default().home / "peers"
    parser.add_argument("--environments", type=Path, default=home / "environments", help="one folder per package")
    parser.add_argument("--work", type=Path, default=home, help="tokens, model directories, scores")
    options = parser.parse_args()
    unknown = [name for name in options.peers.split(",") if name not in PEERS]
    if unknown:
        parser.error(f"peer {', '.join(map(repr, unknown))} is unknown; choose some of {', '.join(PEERS)}")
    if options.model != BUNDLED and not Path(options.model).is_dir():
        parser.error(f"--model {options.model} is no directory; peers read one, or `bundled`")
    return options


def our_recipes(symmetric: bool) -> str:
    """Name our rows; the last one is what docs/recipes.md recommends for the grid."""
    return f"rtn,gw-awq,gw-awq{'+full' if symmetric else ''}+range+alpha+gptq"


def write_tokens(text: Sequences, path: Path) -> None:
    """Write the calibration sequences as JSON, a list of token ids each."""
    path.write_text(json.dumps([ids.tolist() for ids in text.ids]))


def last_line(output: str) -> str:
    """Return what a failed process said last, fit for a cell of a table."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1].replace("|", "/")[:200] if lines else "it said nothing"


def failure(command: Sequence[str], timeout: float, log: Path) -> str:
    """Run a command of a peer, its output in `log`; return why it failed, or nothing."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**own, **ENVIRONMENT}
    with log.open("w") as output:
        try:
            ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"took longer than {timeout:.0f} s"
    return "" if ended.returncode == 0 else last_line(log.read_text(errors="replace"))


def python_of(peer: Peer, environments: Path) -> Path:
    """Return the interpreter of a peer's environment."""
    return environments / peer.package / "bin" / "python"


def install(peer: Peer, environments: Path, timeout: float) -> str:
    """Make a peer's environment where it lacks the package; return why that failed, or nothing."""
    python = python_of(peer, environments)
    if has_package(python, peer):
        return ""
    print(f"{peer.requirement} is being installed", file=sys.stderr, flush=True)
    venv.create(environments / peer.package, with_pip=True)
    for packages in ([TORCH], [peer.requirement, TORCH]):
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        reason = failure(command, timeout, environments / f"{peer.package}.log")
        if reason:
            return f"not installed: {reason}"
    return ""


def has_package(python: Path, peer: Peer) -> bool:
    """Whether an environment has the package, of whatever version; the table says which."""
    question = f"from importlib.metadata import version; version({peer.package!r})"
    return python.exists() and subprocess.run([python, "-c", question], capture_output=True).returncode == 0


def attempts(names: Sequence[str], job: Mapping[str, object], options: argparse.Namespace) -> Iterator[Attempt]:
    """Quantize with every peer, one row after the other."""
    for peer in (PEERS[name] for name in names):
        reason = install(peer, options.environments, options.timeout)
        for row, fields in peer.rows.items():
            yield Attempt(name=row, reason=reason) if reason else attempt(row, peer, {**job, **fields}, options)


def attempt(row: str, peer: Peer, job: Mapping[str, object], options: argparse.Namespace) -> Attempt:
    """Quantize as one row of a peer does, or find what was written for the same job."""
    content = json.dumps([row, peer.requirement, (HERE / peer.runner).read_text(), job], sort_keys=True)
    directory = options.work / "models" / hashlib.sha256(content.encode()).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    facts = directory / "facts.json"
    if not facts.exists():
        print(f"{row} begins at {time.strftime('%H:%M:%S')}", file=sys.stderr, flush=True)
        placed = {**job, "written": str(directory / "model"), "facts": str(facts)}
        # In the folder of the row: peers leave logs where they are started.
        python = str(python_of(peer, options.environments))
        command = ["env", "-C", str(directory), python, str(HERE / peer.runner), json.dumps(placed)]
        reason = failure(command, options.timeout, directory / "output.log")
        if reason:
            return Attempt(name=row, reason=reason)
    return Attempt(name=row, directory=written_model(directory / "model"), facts=json.loads(facts.read_text()))


def written_model(directory: Path) -> Path:
    """Return the folder with the configuration: AutoRound puts a folder of its own into that which it is given."""
    return next(iter(sorted(directory.rglob("config.json")))).parent


def table(comparison: Comparison, at: int, made: Sequence[Attempt]) -> Iterator[str]:
    """Write the lines of the `at`-th data set's table: our rows, the peers', then those that failed."""
    by_name = {peer_row.name: peer_row for peer_row in made}
    recipe = [entry for entry in comparison.entries if entry.kind == "method"][-1]
    yield f"| name | version | seconds | perplexity | NLL above full precision [95 %] | above {recipe.name} [95 %] |"
    yield "|---|---|---|---|---|---|"
    for entry in comparison.entries:
        above, against = (comparison.difference(entry, other, at) for other in (comparison.full, recipe))
        version, seconds = origin(entry, by_name.get(entry.name))
        yield (
            f"| {entry.name} | {version} | {seconds} | {entry.scores[at].perplexity:.3f} "
            f"| {NOTHING if entry is comparison.full else interval(above)} "
            f"| {NOTHING if entry is recipe else interval(against)} |"
        )
    scored = {entry.name for entry in comparison.entries}
    for name, peer_row in by_name.items():
        if name not in scored:
            version = peer_row.facts.get("version", NOTHING)
            reason = peer_row.reason or left_out(comparison.notes, name)
            yield f"| {name} | {version} | {NOTHING} | {NOTHING} | {reason} | {NOTHING} |"


def origin(entry: Entry, peer_row: Attempt | None) -> tuple[str, str]:
    """Return version and seconds of a row."""
    if peer_row is not None:
        return peer_row.facts["version"], f"{peer_row.facts['seconds']:.1f}"
    seconds = entry.measured.seconds
    if entry.kind != "method":
        return NOTHING, NOTHING
    return "ours", f"{seconds.get('calibrate', 0.0) + seconds['quantize']:.1f}"


def left_out(notes: Sequence[str], name: str) -> str:
    """Find why `compare` left a model out."""
    beginning = f"{name} is left out: "
    return next((note.removeprefix(beginning) for note in notes if note.startswith(beginning)), "not scored")


def interval(difference: Difference) -> str:
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def calibrated(options: argparse.Namespace, bench: Any, progress: Progress) -> dict[str, object]:
    """Write the tokens of calibration; return what the jobs of all peers have in common."""
    # The bench is only read: neither its model nor statistics are kept.
    laid_out, _ = load_bench(bench, Paths(options.work / "ours"), progress)
    text = laid_out.calibration.text
    tokens = options.work / "tokens" / f"{text.fingerprint()}.json"
    tokens.parent.mkdir(parents=True, exist_ok=True)
    write_tokens(text, tokens)
    directory = ROOT / "objectives" / "bundled" / "model" if options.model == BUNDLED else Path(options.model)
    return {
        "model": str(directory.resolve()),
        "weights": laid_out.model.fingerprint,
        "dtype": str(laid_out.model.dtype).removeprefix("torch."),
        "tokens": str(tokens.resolve()),
        "group_size": options.group_size,
        "symmetric": not options.asymmetric,
    }


def main() -> None:
    options = parsed()
    options.work, options.environments = options.work.absolute(), options.environments.absolute()
    keep_freed_memory()
    texts = {"calib_data": options.calib_data, "eval_data": options.eval_data, "eval_samples": options.eval_samples}
    bench = bench_plan(BenchOptions(model=options.model, seq_len=options.seq_len, **texts), options.n_calib)
    common = {"n_calib": options.n_calib, "group_size": options.group_size, "symmetric": not options.asymmetric}
    settings = method_settings(our_recipes(not options.asymmetric), common)
    with progress_display(False) as progress:
        made = list(attempts(options.peers.split(","), calibrated(options, bench, progress), options))
        models = {peer_row.name: peer_row.directory for peer_row in made if peer_row.directory}
        plan = ComparePlan(bench=bench, settings=settings, models=models)
        comparison = compare(plan, Paths(options.work / "ours"), progress)
    for at, dataset in enumerate(comparison.datasets):
        print(
            f"\n{Path(dataset).name}, groups of {options.group_size}, {'asym' if options.asymmetric else 'sym'}metric"
        )
        print("\n".join(("", *table(comparison, at, made))))


if __name__ == "__main__":
    main()
