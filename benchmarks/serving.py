"""Start the server of each runtime on a directory that `runtimes.py` wrote, and ask it what the model says.

    python benchmarks/serving.py --out OUT/g32-asymmetric --python vllm=... --python mlx-lm=... --python llama.cpp=...

Every server runs in its own environment and is asked for a greedy continuation over HTTP, as clients ask; beside it
stand the seconds until it answered, and how many characters at its beginning are those of the compressed-tensors
directory in transformers. Runtimes compute in other orders, so that a tie may fall otherwise: an equal beginning shows
that weights, tokenizer and configuration are read as they were written; what is computed to the digit is in
`runtimes.py`. cyllama's server has no endpoint but chat, in a format of its own, so its answer is compared with none.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SECONDS = 600
FIRST_PORT = 8101
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_INT4_W4A8": "0",
    "PYTHONNOUSERSITE": "1",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A runtime's server: which directories it serves, the command after its interpreter, and what is asked."""

    formats: Sequence[str]
    command: str
    chat: bool = False
    name: str = "{directory}"


SERVERS = {
    # The package vllm-cpu has the module but not the metadata that `vllm serve` asks for its version.
    "vllm": Server(
        formats=("compressed-tensors", "awq", "gptq"),
        command="-m vllm.entrypoints.openai.api_server --model {directory} --port {port} --enforce-eager "
        "--max-model-len {length}",
    ),
    "llama.cpp": Server(
        formats=("gguf",),
        command="-m cyllama server -m {directory}/model.gguf --port {port}",
        chat=True,
    ),
    "mlx-lm": Server(
        formats=("mlx",),
        command="-m mlx_lm server --model {directory} --port {port}",
        name="default_model",
    ),
}


def continuation(directory: Path, prompt: str, tokens: int) -> str:
    """Return what transformers says after a prompt, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model.eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        made = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def asked(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post an object, and return the one that is answered."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        answered: dict[str, Any] = json.load(answer)
    return answered


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server answers; whether it does before it ends or its time is up."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=SECONDS).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
        else:
            return True
    return False


def said(server: Server, url: str, directory: Path, prompt: str, tokens: int) -> str:
    """Return what a server that answers says after the prompt."""
    body = {"model": server.name.format(directory=directory), "max_tokens": tokens, "temperature": 0}
    if server.chat:
        body["messages"] = [{"role": "user", "content": prompt}]
        return str(asked(f"{url}/v1/chat/completions", body)["choices"][0]["message"]["content"])
    return str(asked(f"{url}/v1/completions", {**body, "prompt": prompt})["choices"][0]["text"])


def served(
    server: Server, interpreter: str, directory: Path, port: int, options: argparse.Namespace
) -> tuple[str, str]:
    """Start a server, ask it, end it; return seconds until it answered and what it said, or why it did not."""
    words = [word.format(directory=directory, port=port, length=options.length) for word in server.command.split()]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder = Path(interpreter).parent
    environment = {**own, **ENVIRONMENT, "PATH": f"{folder}{os.pathsep}{own['PATH']}"}
    begun = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([interpreter, *words], stdout=log, stderr=log, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            if not answers(url, process):
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                return "", f"did not answer: {lines[-1]}".replace("|", "/")
            return f"{time.monotonic() - begun:.1f}", said(server, url, directory, options.prompt, options.tokens)
        except urllib.error.HTTPError as error:
            return "", f"{error}: {error.read().decode(errors='replace')[:200]}"
        finally:
            process.terminate()
            process.wait(timeout=60)


def common(first: str, second: str) -> int:
    """Count the characters that two texts begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a directory of one winner in several formats")
    parser.add_argument("--python", action="append", default=[], metavar="RUNTIME=INTERPRETER")
    parser.add_argument("--prompt", default="Return the sum of")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of context that vLLM keeps room for")
    options = parser.parse_args()
    interpreters = dict(pair.split("=", 1) for pair in options.python)
    reference = options.out / "compressed-tensors"
    expected = continuation(reference, options.prompt, options.tokens)
    print("| format | server | s until it answers | says | equal characters |\n|---|---|---|---|---|")
    cells = [(runtime, name) for runtime in interpreters for name in SERVERS[runtime].formats]
    for port, (runtime, name) in enumerate(cells, FIRST_PORT):
        if (options.out / name).is_dir():
            server = SERVERS[runtime]
            directory = (options.out / name).resolve()
            seconds, words = served(server, interpreters[runtime], directory, port, options)
            # Some leave out the space that a continuation begins with.
            own, other = words.strip(), expected.strip()
            equal = f"{common(own, other)} of {len(other)}" if seconds and not server.chat else ""
            print(f"| {name} | {runtime} | {seconds} | {json.dumps(words)} | {equal} |", flush=True)


if __name__ == "__main__":
    main()
