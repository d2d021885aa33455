"""The formats that a quantized model can be written in: what each has to do, and which there are.

Responsible for the door alone. Light to import, so that a command line can list what there is: the module of a format
is imported when it is used. To add one, write a class with these methods and register it in `FORMATS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from objectives.errors import InputError

if TYPE_CHECKING:
    from objectives.export.manifest import Manifest
    from objectives.model.loading import Model
    from objectives.model.roles import Block
    from objectives.progress import Progress
    from objectives.scoring import Score
    from objectives.text.sequences import Sequences
    from objectives.trial import Bench
    from quant.plan import Plan

DEFAULT_FORMAT = "dense"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a written model has to score.

    Attributes:
        text: What it is scored on.
        perplexity: What was measured there; None to measure it now.
        trust_remote_code: Run Python code that comes with the model.
    """

    text: "Sequences"
    perplexity: float | None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to write, and where.

    Attributes:
        bench: Model, roles and calibration.
        plan: How to quantize.
        directory: Must not exist, or be empty; missing parents are made.
        proof: What the result has to score; None for formats that are not proven.
        card: Makes the model card, in Markdown, of the manifest.
    """

    bench: "Bench"
    plan: "Plan"
    directory: Path
    proof: Proof | None = None
    card: "Callable[[Manifest], str] | None" = None


class Format(Protocol):
    """A way to store a quantized model as a directory."""

    @property
    def proven(self) -> bool:
        """Return whether `write` loads and scores the result before it appears; it is then given a proof and a card."""

    def require_holds(self, blocks: "Sequence[Block]", plan: "Plan") -> None:
        """Refuse a plan that the format cannot hold, before anything is computed.

        Args:
            blocks: The model's roles; none yet where the model is not loaded, so that the plan alone is judged.
            plan: How to quantize.

        Raises:
            InputError: With the reason and what to do instead.
        """

    def write(self, export: Export, progress: "Progress") -> "Manifest":
        """Quantize the model and write it; the directory appears whole, and proven where the format is, or not at all.

        Returns:
            The contents of `praqtune.json`.

        Raises:
            InputError: If the format cannot hold the plan, or the plan does not suit the model or the text.
            QuantizationError: If a weight is not finite.
            RunError: If the result does not score what was measured.
            StorageError: If something is at the directory already, or the disk is full or refuses.
        """

    def score(
        self,
        directory: Path,
        text: "Sequences",
        model: "Model",
        progress: "Progress",
        trust_remote_code: bool = False,
    ) -> "Score":
        """Load what was written as whoever deploys it would, and score it as `model` was.

        Raises:
            RunError: If it does not load or cannot be scored.
        """

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


def _packed() -> Format:
    from objectives.export.packed import Packed

    return Packed()


FORMATS: dict[str, RegisteredFormat] = {
    "dense": RegisteredFormat(summary="4-bit values in the model's own type", load=_dense),
    "packed": RegisteredFormat(summary="INT4, proven to score the same", load=_packed),
}


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
