"""Score model directories by the runtimes that their formats are for, on the text that they were proven by.

    python benchmarks/runtimes.py DIRECTORY... [--data bundled:docstrings] [--samples 8] [--length 128]

Every directory has a `praqtune.json`, which says its format, and is scored by the runtime's own kernels: llama.cpp by
cyllama, MLX by mlx-lm, GPTQ and AWQ by GPTQModel in transformers. Each needs its package, which praqtune does not. A
line has perplexity, how far the mean NLL is from that of the same values in float32 without the runtime, seconds to
load, bytes, and whether the runtime's tokenizer gives the tokens of the original.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from objectives.export.reading import GGUF, TRANSFORMERS, load_directory  # noqa: E402
from objectives.text.sequences import Sequences, TextPlan, prepare_text  # noqa: E402
from storage.model_directory import disk_bytes  # noqa: E402

Logits = Callable[[Sequence[int]], np.ndarray]
TEXT = "def largest(values):\n    return max(values)  # 1234 größer, 'quoted'\n"


def llama_cpp(directory: Path) -> tuple[Logits, list[int] | None]:
    """Score by llama.cpp: all of a sequence in one batch, a logit for each position."""
    from cyllama.llama import llama_cpp as api

    api.disable_logging()
    api.ggml_backend_load_all()
    # What cyllama 0.2.18 asks a model for and gives none.
    model = type("Model", (api.LlamaModel,), {"n_vocab": property(lambda self: self.get_vocab().n_vocab)})(
        str(directory / "model.gguf"), api.LlamaModelParams()
    )
    params = api.LlamaContextParams()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 512
    context = api.LlamaContext(model, params)
    vocabulary = model.get_vocab()

    def logits(ids: Sequence[int]) -> np.ndarray:
        context.kv_cache_clear()
        batch = api.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for position, token in enumerate(ids):
            batch.add(token, position, [0], True)
        context.decode(batch)
        return np.array([context.get_logits_ith(position) for position in range(len(ids))])

    return logits, list(vocabulary.tokenize(TEXT, False, True))


def mlx(directory: Path) -> tuple[Logits, list[int] | None]:
    """Score by mlx-lm, with the kernels that MLX has for this processor."""
    import mlx.core as mx
    from mlx_lm import load

    model, tokenizer = load(str(directory))

    def logits(ids: Sequence[int]) -> np.ndarray:
        return np.array(model(mx.array([list(ids)]))[0].astype(mx.float32))

    return logits, list(tokenizer.encode(TEXT, add_special_tokens=False))


def transformers(directory: Path, reader: str = TRANSFORMERS) -> tuple[Logits, list[int] | None]:
    """Score by transformers, with the kernels of GPTQModel where the format is GPTQ or AWQ."""
    model = load_directory(reader, directory, torch.float32).eval()

    @torch.inference_mode()
    def logits(ids: Sequence[int]) -> np.ndarray:
        return model(torch.tensor([list(ids)])).logits[0].float().numpy()

    return logits, None


RUNTIMES = {"gguf": llama_cpp, "mlx": mlx}
# How the values of a format are read in float32 for comparison, without its runtime.
READ_BY = {"gguf": GGUF, "mlx": "mlx", "gptq": "gptq", "awq": "awq"}


def mean_nll(logits: Logits, text: Sequences) -> float:
    """Return the nats per target."""
    total = count = 0.0
    for ids, scored in zip(text.ids, text.scored, strict=True):
        rows = torch.from_numpy(logits(ids.tolist()))[:-1].double().log_softmax(-1)
        losses = -rows.gather(1, ids[1:, None])[:, 0][scored[1:]]
        total, count = total + float(losses.sum()), count + len(losses)
    return total / count


def main() -> None:
    """Print a line for every directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--data", default="bundled:docstrings")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parsed = parser.parse_args()
    plan = TextPlan(source=parsed.data, part="tuning", count=parsed.samples, length=parsed.length)
    for directory in parsed.directories:
        manifest = json.loads((directory / "praqtune.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(directory)
        [text] = prepare_text([plan], tokenizer)
        begun = perf_counter()
        logits, tokens = RUNTIMES.get(manifest["weights"], transformers)(directory)
        seconds = perf_counter() - begun
        nll = mean_nll(logits, text)
        exact = mean_nll(transformers(directory, READ_BY.get(manifest["weights"], TRANSFORMERS))[0], text)
        same = "-" if tokens is None else tokens == tokenizer.encode(TEXT, add_special_tokens=False)
        print(
            f"{directory} {manifest['weights']}: perplexity {math.exp(nll):.4f}, NLL "
            f"{nll - exact:+.5f} from that of its values in float32, loaded in {seconds:.1f} s, "
            f"{disk_bytes(directory) / 1e6:.2f} MB, same tokens: {same}",
            flush=True,
        )


if __name__ == "__main__":
    main()
