"""Write a quantized model as a directory that loads like any other.

Responsible for what is in it: dense weights `W_eff` in the model's own type, tokenizer, generation configuration, and
the record of how they came about. The model in memory is as it was afterwards. May assume that the bench was laid out
for the model; `storage.model_directory` makes the directory whole or absent.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from objectives.export.companions import copy_companions
from objectives.export.formats import Export
from objectives.export.manifest import Manifest, make_manifest, write_manifest
from objectives.export.rescoring import rescore
from objectives.model.loading import Model
from objectives.model.roles import Block
from objectives.progress import Progress
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import quantized
from quant.plan import Plan
from storage.model_directory import new_directory, require_vacant


class Dense:
    """The format of every model of transformers: it holds whatever can be quantized, and saves no memory."""

    proven = False

    def require_holds(self, blocks: Sequence[Block], plan: Plan) -> None:
        """Refuse nothing: the values themselves are stored."""

    def write(self, export: Export, progress: Progress) -> Manifest:
        """Write the quantized weights in the model's own type; see `Format.write`."""
        model = export.bench.model
        weights = sum(parameter.numel() * parameter.itemsize for parameter in model.module.parameters())
        require_vacant(export.directory, weights)
        with quantized(export.bench, export.plan, progress) as result:
            phase = f"writing {export.directory}"
            progress(phase, 0, 1)
            manifest = make_manifest(export.bench, export.plan, result.layers, weights="dense")
            with new_directory(export.directory) as place, configuration_kept(model.module):
                model.module.save_pretrained(place)
                model.tokenizer.save_pretrained(place)
                copy_companions(model, place)
                write_manifest(place, manifest)
            progress(phase, 1, 1)
        return manifest

    def score(
        self, directory: Path, text: Sequences, model: Model, progress: Progress, trust_remote_code: bool = False
    ) -> Score:
        """Score a directory in a fresh process; see `Format.score`."""
        return rescore(directory, text, model, progress, trust_remote_code)

    def notes(self, blocks: Sequence[Block]) -> list[str]:
        """Return nothing beyond what holds for every format."""
        return []


@contextmanager
def configuration_kept(module: Any) -> Iterator[None]:
    """Undo what saving writes into the configuration of the model in memory: its type as text, its class."""
    before = dict(vars(module.config))
    try:
        yield
    finally:
        vars(module.config).clear()
        vars(module.config).update(before)
