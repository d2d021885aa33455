"""Accept a device: everything a study does there, against the processor's numbers, in at most eight minutes.

Statistics, codes and scores are compared in float32, each device with statistics of its own; rates and memory are those
of the number type that a study would choose there, beside a bare matrix product of the same type in the same run. Then
a study with two workers and a packed model are made by the command line. Exits with 1 where anything fails.

    python benchmarks/gpu_check.py --device cuda
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from hpo.study.bench import bench_plan  # noqa: E402
from hpo.study.options import BenchOptions  # noqa: E402
from objectives.evaluation import load_bench  # noqa: E402
from objectives.model.memory import keep_freed_memory, peak_bytes, reset_peak  # noqa: E402
from objectives.progress import silent  # noqa: E402
from objectives.scoring import Score, score_all  # noqa: E402
from objectives.text.sequences import Sequences  # noqa: E402
from objectives.trial import Bench, quantized  # noqa: E402
from quant.plan import Plan  # noqa: E402
from quant.recipes import recipe_fields  # noqa: E402
from quant.setting import Setting  # noqa: E402
from storage.paths import Paths  # noqa: E402

N_CALIB = 32
MINUTES = 8
# Relative Frobenius norm; nats per token; nats per token where nearly equal losses may decide for other codes.
MOST_GRAM, MOST_NLL, MOST_RECIPE = 1e-4, 1e-3, 1e-2
BARE = {"cpu": 1024, "cuda": 8192}
SYMMETRIC = ("rtn", "gw-awq", "gw-awq+full", "gw-awq+full+range+alpha+gptq")
ASYMMETRIC = ("gwh-praq-v2", "gw-awq+range", "gw-awq+block", "gw-awq+gptq", "gw-awq+range+alpha+gptq")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table; `passed` is None where something is only measured."""

    name: str
    passed: bool | None = None
    detail: str

    def __str__(self) -> str:
        verdict = {True: "PASS", False: "FAIL", None: "    "}[self.passed]
        return f"{verdict}  {self.name}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A bench and its text on one device."""

    bench: Bench
    text: Sequences

    def score(self, setting: Setting | None) -> Score:
        """Quantize, if there is a setting, and score."""
        plan = None if setting is None else Plan.uniform(setting)
        teacher = self.bench.teacher(self.text)
        with quantized(self.bench, plan):
            return score_all(self.bench.model.module, self.text, "", silent, teacher)


def place(options: argparse.Namespace, device: str, dtype: str, home: Path) -> Place:
    """Load the model there, with a cache of its own: statistics are known by model and text, not by device."""
    of_bench = BenchOptions(model=options.model, device=device, dtype=dtype, eval_samples=options.eval_samples)
    plan = bench_plan(replace(of_bench, eval_data=options.eval_data), N_CALIB)
    bench, (text, *_) = load_bench(replace(plan, data=plan.data[:1]), Paths(home))
    return Place(bench=bench, text=text)


def settings(group_size: int) -> list[Setting]:
    """Every rounding and range search, on both grids."""
    common = {"n_calib": N_CALIB, "group_size": group_size}
    return [
        Setting(**recipe_fields({**common, "method": name, "symmetric": symmetric}))
        for names, symmetric in ((SYMMETRIC, True), (ASYMMETRIC, False))
        for name in names
    ]


def agreement(device: Place, processor: Place, chosen: Sequence[Setting]) -> Iterator[Check]:
    """Compare statistics, full precision and every setting."""
    for side in (device, processor):
        side.bench.calibration.ensure({N_CALIB}, silent)
    apart = max(_grams_apart(device, processor))
    yield Check(name="statistics", passed=apart <= MOST_GRAM, detail=f"Gram matrices {apart:.1e} apart")
    for setting in (None, *chosen):
        scores = [side.score(setting) for side in (device, processor)]
        nll = scores[0].mean_nll - scores[1].mean_nll
        kl = [score.mean("kl") for score in scores]
        most = MOST_NLL if setting is None else MOST_RECIPE
        name = "full precision" if setting is None else f"{setting.label()}{'' if setting.symmetric else ' asymmetric'}"
        yield Check(
            name=name,
            passed=abs(nll) <= most,
            detail=f"mean NLL {scores[0].mean_nll:.4f}, {nll:+.1e} from the processor's; "
            f"KL {kl[0]:.4f}, there {kl[1]:.4f}",
        )


def _grams_apart(device: Place, processor: Place) -> Iterator[float]:
    for own, other in zip(device.bench.blocks, processor.bench.blocks, strict=True):
        inputs = device.bench.calibration.read(own, N_CALIB).inputs
        for name, expected in processor.bench.calibration.read(other, N_CALIB).inputs.items():
            yield float((inputs[name].gram.cpu() - expected.gram).norm() / expected.gram.norm())


def rates(side: Place, setting: Setting) -> Iterator[Check]:
    """Time the phases of a trial beside a bare product, and say what memory they took."""
    model, device = side.bench.model, side.bench.model.device
    bare = _bare_rate(device, model.dtype)
    yield Check(name="bare product", detail=f"{bare / 1e9:.0f} GFLOP/s in {model.dtype}")
    weights = sum(parameter.numel() for parameter in model.module.parameters())
    sites = [site.inputs for block in side.bench.blocks for site in block.sites]
    calibration = _tokens(side.bench.calibration.text[:N_CALIB])
    phases: list[tuple[str, Callable[[], object], int]] = [
        (
            "calibrating",
            lambda: side.bench.calibration.ensure({N_CALIB}, silent),
            2 * calibration * (weights + sum(inputs**2 for inputs in sites)),
        ),
        ("scoring", lambda: score_all(model.module, side.text, "", silent), 2 * weights * _tokens(side.text)),
        (setting.label(), lambda: _quantize(side, setting), 0),
    ]
    for name, work, operations in phases:
        reset_peak(device)
        seconds = _seconds(device, work)
        rate = f", {operations / seconds / 1e9:.0f} GFLOP/s ({operations / seconds / bare:.0%} of it)" * bool(
            operations
        )
        detail = f"{seconds:.2f} s{rate}, peak {peak_bytes(device) / 1e9:.2f} GB"
        yield Check(name=f"{name}, {model.dtype}", detail=detail)


def _quantize(side: Place, setting: Setting) -> None:
    with quantized(side.bench, Plan.uniform(setting)):
        pass


def _tokens(text: Sequences) -> int:
    return sum(map(len, text.ids))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _finish(device)
    started = perf_counter()
    work()
    _finish(device)
    return perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bare_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of a square product in operations per second, the best of five."""
    size = BARE.get(device.type, 1024)
    operand: Tensor = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / min(_seconds(device, lambda: operand @ operand) for _ in range(5))


def commands(options: argparse.Namespace, home: Path) -> Iterator[Check]:
    """Run what a person would: a short study with two workers, and a model that is proven by reloading."""
    common = ["--cache", str(home / "cache"), "--model", options.model, "--eval-samples", str(options.eval_samples)]
    if options.eval_data is not None:
        common += ["--eval-data", options.eval_data]
    group = ["--group-size", str(options.group_size)]
    study = ["--trials", str(options.trials), "--n-calib", str(N_CALIB), "--storage", f"sqlite:///{home / 'study.db'}"]
    workers = ["--workers", "2", "--devices", options.device, "--study", "device", "--out", str(home / "report")]
    output = home / "packed"
    of_model = ["--method", "gw-awq+range+gptq", "--asymmetric", "--n-calib", str(N_CALIB), "--device", options.device]
    written = ["--format", "compressed-tensors", "--output-dir", str(output)]
    yield _run("study, two workers", ["optimize", *common, *group, *study, *workers])
    yield _run("packed model, scored anew", ["quantize", *common, *group, *of_model, *written])


def _run(name: str, words: Sequence[str]) -> Check:
    started = perf_counter()
    ended = subprocess.run([sys.executable, str(ROOT / "cli.py"), *words], capture_output=True, text=True)
    text = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines() or ["nothing was printed"]
    line = text[0] if ended.returncode == 0 else text[-1]
    return Check(name=name, passed=ended.returncode == 0, detail=f"{perf_counter() - started:.0f} s; {line}")


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default=BenchOptions.model)
    parser.add_argument("--eval-data", help="tuning text (default: what suits the model)")
    parser.add_argument("--eval-samples", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--trials", type=int, default=8)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Print a line for each check; returns the exit status."""
    options = parsed(words)
    keep_freed_memory()
    started = perf_counter()
    failed = 0

    def show(checks: Iterator[Check]) -> None:
        nonlocal failed
        for check in checks:
            failed += check.passed is False
            print(check, flush=True)

    chosen = settings(options.group_size)
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "the processor"
    print(f"{options.device} ({name}) against cpu, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with TemporaryDirectory() as directory:
        home = Path(directory)
        device = place(options, options.device, "float32", home / "device")
        show(agreement(device, place(options, "cpu", "float32", home / "processor"), chosen))
        del device
        show(rates(place(options, options.device, "auto", home / "auto"), chosen[-1]))
        show(commands(options, home))
    minutes = (perf_counter() - started) / 60
    in_time = Check(name="time", passed=minutes <= MINUTES, detail=f"{minutes:.1f} of {MINUTES} minutes")
    show(iter([in_time]))
    print("all passed" if not failed else f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
