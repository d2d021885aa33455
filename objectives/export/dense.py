"""Write a quantized model as a directory that loads like any other.

Responsible for what is in it: dense weights `W_eff` in the type that they were measured in, tokenizer, generation
configuration. May assume a model whose weights are quantized at the moment.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from objectives.export.companions import copy_companions
from objectives.export.formats import Stored
from objectives.export.reading import TRANSFORMERS
from objectives.export.shards import save_in_shards
from objectives.export.tensors import configuration_kept
from objectives.model.roles import Block
from objectives.trial import Bench
from quant.plan import Plan
from quant.scheme import IntWeight


class Dense:
    """The format of every model of transformers: it holds whatever can be quantized, and saves no memory."""

    limits = None
    proven = False

    def require_holds(self, plan: Plan, bench: Bench | None = None) -> None:
        """Refuse nothing: the values themselves are stored."""

    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        """Write the quantized weights in the type that they were measured in; see `Format.write`."""
        model = bench.model
        if model.weights.streamed:
            save_in_shards(model, bench.blocks, place)
        else:
            with configuration_kept(model.module):
                model.module.save_pretrained(place)
        model.tokenizer.save_pretrained(place)
        copy_companions(model, place)
        return Stored(linear_bytes=None)

    def rounded(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight]) -> None:
        """Return None: embeddings and head are stored as they are."""

    def reader(self) -> str:
        """Return what reads the files for the proof."""
        return "transformers"

    def loader(self) -> str:
        """Return transformers, as `objectives.export.reading` calls it."""
        return TRANSFORMERS

    def notes(self, blocks: Sequence[Block]) -> list[str]:
        """Return nothing beyond what holds for every format."""
        return []
