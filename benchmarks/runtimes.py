"""Write one winner in every format, and score each by the runtimes that the format is for.

    python benchmarks/runtimes.py --out OUT [--model bundled] [--groups 32,64] [--python RUNTIME=INTERPRETER ...]

The recommended recipe is written at every group size on both grids, unless it lies in OUT already. Every directory is
scored by the packages of others on the text that it was proven by, each in a process of its own: of INTERPRETER, where
the runtime is installed, else of this one. A row has perplexity, how far the mean NLL is from what was measured when
the model was quantized, the runtime's noise, bytes, seconds to load, and whether all codes are those of the
compressed-tensors file as its own package unpacks them; or the reason why not. Codes are taken from what a runtime
makes of one-hot inputs. A runtime with a tokenizer of its own - llama.cpp has the one in the GGUF file - is asked for
the tokens of the scored text and of numbers, spaces, other scripts and special tokens, which have to be those of the
directory's tokenizer. All of it is written to OUT/runtimes.json as well.

Noise is half of the 95 % interval of the mean difference from transformers' losses of the same model, over sequences:
the roundings of another kernel move every token in one direction or the other, and their mean scatters by that. A
difference is fine within .001 or within the noise. `--write-only` scores by no runtime, and prints what writing takes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import stats  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from hpo.deploy.deploy import Chosen, deploy  # noqa: E402
from hpo.study.bench import bench_plan  # noqa: E402
from hpo.study.options import BenchOptions  # noqa: E402
from objectives.text.sequences import prepare_text  # noqa: E402
from quant.plan import Plan  # noqa: E402
from quant.recipes import recipe_fields  # noqa: E402
from quant.setting import Setting  # noqa: E402
from storage.paths import Paths  # noqa: E402

Losses = Callable[[Sequence[int]], Tensor]
"""Nats of every token of a sequence but the first."""


class Loaded(NamedTuple):
    """What scores sequences; what calls a Linear, where that can be; its kernels; what gives the tokens of a text."""

    losses: Losses
    call: Callable[[str, Tensor], Tensor] | None
    kernels: str
    tokenize: Callable[[str], list[int]] | None = None


RECIPES = {"symmetric": "gw-awq+full+range+alpha+gptq", "asymmetric": "gw-awq+range+alpha+gptq"}
RUNTIMES = {
    "compressed-tensors": ("transformers", "vllm"),
    "gptq": ("gptqmodel", "vllm"),
    "awq": ("gptqmodel", "vllm"),
    "gguf": ("transformers", "llama.cpp"),
    "mlx": ("mlx-lm",),
}
REFERENCE = ("compressed-tensors", "transformers")
COLUMNS = (
    *("group", "grid", "format", "runtime", "perplexity", "NLL - measured", "noise", "MB", "s to load", "codes"),
    "tokens",
)
TEXTS = (
    "1234567890 3.14159 2026-07-31 1,000,000 0x1F",
    "naïve façade \u2014 Ωmega, привет, \u6771\u4eac, \U0001f642\U0001f44d\U0001f3fd, e\u0301",
    " two  spaces\tand a tab\n\n\na line\r\n    def f(x): return x**2  ",
    "I'm, you're, WE'LL, it's; don't",
)
"""What tokenizers disagree about: digits, other scripts and marks, white space, contractions."""
FINE = 1e-3
SECONDS = 1200


def from_logits(logits: Callable[[Sequence[int]], Tensor]) -> Losses:
    """Return losses of a model that puts out `[tokens, vocabulary]`."""

    def losses(ids: Sequence[int]) -> Tensor:
        rows = logits(ids)[:-1].double().log_softmax(-1)
        return -rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    return losses


def llama_cpp(directory: Path, length: int) -> Loaded:
    """Load by llama.cpp: all of a sequence in one batch, a logit for each position."""
    from cyllama.llama import llama_cpp as api

    api.disable_logging()
    api.ggml_backend_load_all()
    # What cyllama 0.2.18 asks a model for and gives none.
    model = type("Model", (api.LlamaModel,), {"n_vocab": property(lambda self: self.get_vocab().n_vocab)})(
        str(directory / "model.gguf"), api.LlamaModelParams()
    )
    params = api.LlamaContextParams()
    params.n_ctx, params.n_batch, params.n_ubatch = length, length, length
    context = api.LlamaContext(model, params)

    def logits(ids: Sequence[int]) -> Tensor:
        context.kv_cache_clear()
        batch = api.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for position, token in enumerate(ids):
            batch.add(token, position, [0], True)
        context.decode(batch)
        return torch.from_numpy(np.array([context.get_logits_ith(position) for position in range(len(ids))]))

    def tokenize(text: str) -> list[int]:
        return list(model.get_vocab().tokenize(text, True, True))

    return Loaded(from_logits(logits), None, "llama.cpp by cyllama", tokenize)


def mlx_lm(directory: Path, length: int) -> Loaded:
    """Load by mlx-lm, with the kernels that MLX has for this processor."""
    import mlx.core as mx
    from mlx_lm import load

    model, _ = load(str(directory))

    def logits(ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.array(model(mx.array([list(ids)]))[0].astype(mx.float32)))

    def call(name: str, inputs: Tensor) -> Tensor:
        linear = model
        for part in name.split("."):
            linear = linear[int(part)] if part.isdigit() else getattr(linear, part)
        return torch.from_numpy(np.array(linear(mx.array(inputs.numpy()).astype(mx.bfloat16)).astype(mx.float32)))

    return Loaded(from_logits(logits), call, "mlx-lm")


def transformers(directory: Path, length: int) -> Loaded:
    """Load by transformers, with the kernels that the installed packages have for the format."""
    from transformers import AutoModelForCausalLM

    gguf = {"gguf_file": "model.gguf"} if (directory / "model.gguf").exists() else {}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, **gguf).eval()

    @torch.inference_mode()
    def logits(ids: Sequence[int]) -> Tensor:
        return model(torch.tensor([list(ids)])).logits[0].float()

    @torch.inference_mode()
    def call(name: str, inputs: Tensor) -> Tensor:
        return model.get_submodule(name)(inputs.bfloat16()).float()

    return Loaded(from_logits(logits), call, type(model.model.layers[0].mlp.down_proj).__name__)


def vllm(directory: Path, length: int) -> Loaded:
    """Load by vLLM: the log-probability of every token of the prompt."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # Where a processor has AMX, inputs of 4-bit Linears are rounded to 8 bits otherwise.
    os.environ.setdefault("VLLM_CPU_INT4_W4A8", "0")
    from vllm import LLM, SamplingParams

    model = LLM(
        model=str(directory), dtype="bfloat16", max_model_len=length + 8, enforce_eager=True, max_num_seqs=1
    )  # fmt: skip
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0)

    def losses(ids: Sequence[int]) -> Tensor:
        (made,) = model.generate([{"prompt_token_ids": list(ids)}], wanted, use_tqdm=False)
        pairs = zip(ids[1:], made.prompt_logprobs[1:], strict=True)
        return torch.tensor([-row[token].logprob for token, row in pairs], dtype=torch.float64)

    return Loaded(losses, None, "vllm")


LOADERS = {
    "transformers": transformers,
    "gptqmodel": transformers,
    "vllm": vllm,
    "llama.cpp": llama_cpp,
    "mlx-lm": mlx_lm,
}


def differing_codes(directory: Path, call: Callable[[str, Tensor], Tensor]) -> int:
    """Count the codes that are not those of the compressed-tensors directory beside this one."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    stored = load_file(directory.parent / "compressed-tensors" / "model.safetensors")
    differing = 0
    for name in [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]:
        outputs, inputs = stored[f"{name}.weight_shape"].tolist()
        codes = unpack_from_int32(stored[f"{name}.weight_packed"], 4, torch.Size((outputs, inputs))).float()
        scale = stored[f"{name}.weight_scale"].float()
        values = call(name, torch.eye(inputs)).T
        packed_zero = stored.get(f"{name}.weight_zero_point")
        zero = (
            torch.zeros(scale.shape)
            if packed_zero is None
            else unpack_from_int32(packed_zero, 4, scale.shape, packed_dim=0).float()
        )
        spread = inputs // scale.shape[1]
        read = values / scale.repeat_interleave(spread, 1) + zero.repeat_interleave(spread, 1)
        differing += int((read.round() != codes).sum())
    return differing


def differing_texts(tokenize: Callable[[str], list[int]], tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Return the texts, and some that tokenizers disagree about, that a runtime takes apart in another way."""
    special = [f"before{token}after {token}" for token in tokenizer.all_special_tokens]
    return [text for text in (*texts, *TEXTS, *special) if tokenize(text) != tokenizer(text).input_ids]


def one(parsed: argparse.Namespace) -> None:
    """Score one directory by one runtime and print a line of JSON."""
    directory = parsed.out
    tokenizer = AutoTokenizer.from_pretrained(directory.parent / "compressed-tensors")
    plan = bench_plan(options_of(parsed), parsed.n_calib)
    _, text = prepare_text([plan.calibration, *plan.data], tokenizer, plan.seed)
    begun = perf_counter()
    loaded = LOADERS[parsed.one](directory, parsed.length)
    seconds = perf_counter() - begun
    scored = [loaded.losses(ids.tolist())[mask[1:]] for ids, mask in zip(text.ids, text.scored, strict=True)]
    differing = None if loaded.call is None else differing_codes(directory, loaded.call)
    apart = None
    if loaded.tokenize is not None:
        apart = differing_texts(loaded.tokenize, tokenizer, [str(tokenizer.decode(ids)) for ids in text.ids])
    nll = float(torch.cat(scored).double().mean())
    sums = [float(part.double().sum()) for part in scored]
    tokens = [len(part) for part in scored]
    print(
        json.dumps(
            {
                "nll": nll,
                "seconds": seconds,
                "differing": differing,
                "texts": apart,
                "said": loaded.kernels,
                "sums": sums,
                "tokens": tokens,
            }
        )
    )


def cells(parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for every group size, grid, format and runtime."""
    interpreters = dict(pair.split("=", 1) for pair in parsed.python)
    for size in parsed.groups.split(","):
        for grid in RECIPES:
            made = written(parsed, size, grid)
            if parsed.write_only:
                continue
            reference: dict[str, Any] = {}
            for name, runtimes in RUNTIMES.items():
                for runtime in runtimes:
                    row = {"group": size, "grid": grid, "format": name, "runtime": runtime}
                    if not (made / name).exists():
                        yield {**row, "reason": "the format has groups of 32 alone"}
                        continue
                    manifest = json.loads((made / name / "praqtune.json").read_text())
                    files = [path.stat().st_size for path in (made / name).iterdir()]
                    scored = by(parsed, interpreters.get(runtime, sys.executable), runtime, made / name)
                    measured = math.log(manifest["proof"]["measured"])
                    reference = scored if (name, runtime) == REFERENCE else reference
                    yield {
                        **row,
                        "measured": measured,
                        "bytes": sum(files),
                        **scored,
                        "noise": noise(scored, reference),
                    }


def noise(scored: dict[str, Any], reference: dict[str, Any]) -> float | None:
    """Return half of the 95 % interval of a mean difference per token, over sequences; None where there is none."""
    if "sums" not in scored or "sums" not in reference or scored is reference:
        return None
    tokens = np.array(scored["tokens"])
    differences = np.array(scored["sums"]) - np.array(reference["sums"])
    # A ratio estimator, as for perplexities (docs/methods.md).
    left = differences - tokens * differences.sum() / tokens.sum()
    count = len(tokens)
    error = math.sqrt(count / (count - 1) * float((left**2).sum())) / tokens.sum()
    return float(stats.t.ppf(0.975, count - 1) * error)


def written(parsed: argparse.Namespace, size: str, grid: str) -> Path:
    """Return where a winner lies in all formats, after writing it where it does not; say how long that took."""
    place = parsed.out / f"g{size}-{grid}"
    if not place.exists():
        names = [name for name in RUNTIMES if name != "gguf" or size == "32"]
        fields = recipe_fields({"method": RECIPES[grid], "symmetric": grid == "symmetric"})
        setting = Setting(**fields, group_size=int(size), n_calib=parsed.n_calib)
        begun: dict[str, tuple[float, float]] = {}

        def progress(phase: str, done: int, total: int) -> None:
            begun.setdefault(phase, clocks())

        chosen, paths = Chosen(plan=Plan.uniform(setting)), Paths.default()
        deploy(
            bench_plan(options_of(parsed), parsed.n_calib),
            chosen,
            {name: place / name for name in names},
            paths,
            progress,
        )
        first = min(moment for phase, moment in begun.items() if phase.startswith("writing"))
        wall, processor = (end - start for end, start in zip(clocks(), first, strict=True))
        print(
            f"{place.name}: {len(names)} formats took {wall:.1f} s and {processor:.1f} s of processors beyond "
            f"quantizing; load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
        )
    return place


def clocks() -> tuple[float, float]:
    """Return seconds that have passed, and those that processors spent on this process and on its children."""
    return perf_counter(), sum(os.times()[:4])


def options_of(parsed: argparse.Namespace) -> BenchOptions:
    """Return which model and text it is."""
    return BenchOptions(
        model=parsed.model,
        calib_data=parsed.calib_data,
        eval_data=parsed.eval_data,
        seq_len=parsed.length,
        eval_samples=parsed.samples,
    )


def words_of(parsed: argparse.Namespace) -> list[str]:
    """Return the flags that say which text it is."""
    names = ("model", "calib_data", "eval_data", "samples", "length", "n_calib")
    return [f"--{name.replace('_', '-')}={value}" for name in names if (value := getattr(parsed, name)) is not None]


def by(parsed: argparse.Namespace, interpreter: str, runtime: str, directory: Path) -> dict[str, Any]:
    """Score a directory by a runtime in a process of its own; its last error is the reason of a failure."""
    command = [interpreter, __file__, *words_of(parsed), "--one", runtime, "--out", str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return {"reason": f"not done after {SECONDS} s"}
    if ended.returncode:
        return {"reason": reason_of(ended.stderr)}
    made: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return made


def reason_of(errors: str) -> str:
    """Return the last error and what follows it, which may be its words, on one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no reason given"]
    last = max((number for number, line in enumerate(lines) if "Error" in line), default=len(lines) - 1)
    return " ".join(lines[last : last + 3]).replace("|", "/")


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    head = [row[name] for name in COLUMNS[:4]]
    if "reason" in row:
        return f"| {' | '.join([*head, row['reason'], *[''] * 6])} |"
    codes = {None: "not shown", 0: "equal"}.get(row["differing"], f"{row['differing']} differ")
    numbers = (
        f"{math.exp(row['nll']):.4f}",
        f"{row['nll'] - row['measured']:+.5f}",
        verdict(row),
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['seconds']:.1f}",
        codes,
        "-" if row["texts"] is None else f"{len(row['texts'])} texts differ" if row["texts"] else "equal",
    )
    head[3] += f" ({row['said']})"
    return f"| {' | '.join([*head, *numbers])} |"


def verdict(row: dict[str, Any]) -> str:
    """Return the noise of a row, and where its difference is beyond that and beyond what is fine, say so."""
    apart, own = abs(row["nll"] - row["measured"]), row["noise"]
    if own is None:
        return "-" if apart <= FINE else "beyond"
    return f"{own:.5f}" if apart <= max(FINE, own) else f"{own:.5f}, beyond"


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--groups", default="32,64")
    parser.add_argument("--calib-data")
    parser.add_argument("--eval-data", default="bundled:docstrings")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--n-calib", type=int, default=128)
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--python", action="append", default=[], metavar="RUNTIME=INTERPRETER")
    parser.add_argument("--one", choices=LOADERS, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        one(parsed)
        return
    rows = []
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for row in cells(parsed):
        rows.append(row)
        print(line(row), flush=True)
        (parsed.out / "runtimes.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
