"""The formats that a quantized model can be written in: what each has to do, and which there are.

Responsible for the door alone. Light to import, so that a command line can list what there is: the module of a format
is imported when it is used. To add one, write a class with these methods and register it in `FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from objectives.errors import InputError

if TYPE_CHECKING:
    from objectives.export.limits import Limits
    from objectives.export.manifest import Manifest
    from objectives.model.roles import Block
    from objectives.scoring import Score
    from objectives.text.sequences import Sequences
    from objectives.trial import Bench
    from quant.plan import Plan
    from quant.scheme import IntWeight

DEFAULT_FORMAT = "dense"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a written model has to score.

    Attributes:
        text: What it is scored on.
        perplexity: What was measured there; None to measure it now.
        score: The same by sequence, as far as it was kept: what differs from it no more than a runtime's arithmetic
            scatters is accepted.
        trust_remote_code: Run Python code that comes with the model.
    """

    text: "Sequences"
    perplexity: float | None
    score: "Score | None" = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to write, and where.

    Attributes:
        bench: Model, roles and calibration.
        plan: How to quantize.
        directories: By the name of the format; they must not exist, or be empty; missing parents are made.
        proof: What the results have to score; None where no format is proven.
        card: Makes the model card of a proven format, in Markdown, of the manifest.
    """

    bench: "Bench"
    plan: "Plan"
    directories: "Mapping[str, Path]"
    proof: Proof | None = None
    card: "Callable[[Manifest], str] | None" = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a format wrote.

    Attributes:
        linear_bytes: Of the quantized Linears in the files, without their biases; None where that is not counted.
        notes: What it could not hold exactly, as counted.
    """

    linear_bytes: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoundedParts:
    """What a format rounds beside the codes.

    Attributes:
        parts: In words, as `embeddings and head`.
        in_place: Has the values of the file in the model meanwhile, which is then what a reader has to load.
        scored: Whether that shows in what the model scores, which is then measured with them in place.
    """

    parts: str
    in_place: AbstractContextManager[None]
    scored: bool = True


class Format(Protocol):
    """A way to store a quantized model as a directory."""

    @property
    def limits(self) -> "Limits | None":
        """Return what its runtimes load; None where they load anything."""

    @property
    def proven(self) -> bool:
        """Return whether the result is loaded and scored before it appears; a proof and a card are then needed."""

    def require_holds(self, plan: "Plan", bench: "Bench | None" = None) -> None:
        """Refuse a plan that the format cannot hold, before anything is computed.

        Args:
            plan: How to quantize.
            bench: Model and roles; None where the model is not loaded, so that the plan alone is judged.

        Raises:
            InputError: With the reason and what to do instead.
        """

    def write(self, bench: "Bench", plan: "Plan", codes: "Mapping[str, IntWeight]", place: Path) -> Stored:
        """Write a model whose weights are quantized at the moment.

        Args:
            bench: Model and roles.
            plan: How it was quantized.
            codes: What the weights are stored as, by the name of the Linear; none where no format is proven.
            place: An unfinished directory, which appears once everything is proven.

        Raises:
            QuantizationError: If the format cannot hold a scale.
        """

    def rounded(self, bench: "Bench", plan: "Plan", codes: "Mapping[str, IntWeight]") -> "RoundedParts | None":
        """Return what the format rounds of what a trial measured; None where it holds all of that exactly.

        Args:
            bench: Model and roles; the weights are quantized at the moment.
            plan: As for `write`.
            codes: As for `write`.
        """

    def reader(self) -> str:
        """Return what reads the files for the proof: packages and versions, or the format's specification."""

    def loader(self) -> str:
        """Return what that is called in `objectives.export.reading`, which loads as whoever deploys the model would."""

    def notes(self, blocks: "Sequence[Block]") -> list[str]:
        """Return what a person should know of a model in this format."""


@dataclass(frozen=True, kw_only=True)
class RegisteredFormat:
    """A format as it is chosen by name.

    Attributes:
        summary: What it is, for help.
        load: Makes it.
    """

    summary: str
    load: Callable[[], Format]


def _dense() -> Format:
    from objectives.export.dense import Dense

    return Dense()


def _compressed_tensors() -> Format:
    from objectives.export.compressed_tensors import CompressedTensors

    return CompressedTensors()


def _gptq() -> Format:
    from objectives.export.gptq import Gptq

    return Gptq()


def _awq() -> Format:
    from objectives.export.awq import Awq

    return Awq()


def _gguf() -> Format:
    from objectives.export.gguf import Gguf

    return Gguf()


def _gguf_q8() -> Format:
    from objectives.export.gguf_q8 import GgufQ8

    return GgufQ8()


def _mlx() -> Format:
    from objectives.export.mlx import Mlx

    return Mlx()


FORMATS: dict[str, RegisteredFormat] = {
    "dense": RegisteredFormat(
        summary="a full-size model that holds the quantized values, for experiments; not proven", load=_dense
    ),
    "compressed-tensors": RegisteredFormat(
        summary="INT4 for vLLM, SGLang and transformers (this and what follows is reloaded and scored as proof)",
        load=_compressed_tensors,
    ),
    "gptq": RegisteredFormat(summary="INT4 for vLLM, SGLang and GPTQModel", load=_gptq),
    "awq": RegisteredFormat(summary="INT4 for vLLM, SGLang and GPTQModel", load=_awq),
    "gguf": RegisteredFormat(summary="Q4_0 or Q4_1 for llama.cpp, Ollama and LM Studio", load=_gguf),
    "gguf-q8": RegisteredFormat(summary="as gguf, with embeddings and head in Q8_0", load=_gguf_q8),
    "mlx": RegisteredFormat(summary="INT4 for MLX", load=_mlx),
}


RUNTIMES: dict[str, str] = {
    "vllm": "compressed-tensors",
    "gptq": "gptq",
    "awq": "awq",
    "gguf": "gguf",
    "mlx": "mlx",
}
"""What a model can be quantized for, and the format that it is then written in."""
ALIASES: dict[str, str] = {"sglang": "vllm", "llama.cpp": "gguf", "ollama": "gguf", "lmstudio": "gguf"}
"""Runtimes that load what is quantized for another one, under whose name a study is stored."""


def find_format(name: str) -> Format:
    """Return the format of that name.

    Raises:
        InputError: If there is none, naming those there are.
    """
    if name not in FORMATS:
        raise InputError(f"format {name!r} is unknown; choose {' or '.join(FORMATS)}")
    return FORMATS[name].load()


def formats_help() -> str:
    """Say what `--format` can be, in one line."""
    usual = {DEFAULT_FORMAT: f"{DEFAULT_FORMAT} (default)"}
    named = (f"{usual.get(name, name)}: {registered.summary}" for name, registered in FORMATS.items())
    return "; ".join(named)
