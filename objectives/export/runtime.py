"""What the formats of single runtimes have in common: limits, and a proof by the runtime or by specification.

Responsible for everything of a `Format` but its files. May assume that `objectives.export.reading` knows the format.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from objectives.export.formats import FORMATS, RoundedParts, Stored, find_format
from objectives.export.held_values import held_exactly, with_held_values
from objectives.export.limits import Limits, require_linears, require_plan
from objectives.export.reading import SPECIFICATION, TRANSFORMERS, installed, versions_of
from objectives.export.tensors import exact_offsets, half_scales
from objectives.model.provenance import declared_method
from objectives.model.roles import Block, unscaled_inputs
from objectives.trial import Bench
from quant.plan import Plan
from quant.scheme import IntWeight


class RuntimeFormat(ABC):
    """A format that is read by packages that others wrote where they are installed, and by specification elsewhere.

    Attributes:
        limits: What it can hold.
        specification: The reader of `objectives.export.reading` that follows its specification.
        runtime: The reader that uses the packages.
        packages: What that needs.
        rounds: What it may round of the Linears beside their codes, in words.
        rounding_shows: Whether that shows in what the model scores.
    """

    proven = True
    limits: ClassVar[Limits]
    specification: ClassVar[str]
    runtime: ClassVar[str] = TRANSFORMERS
    packages: ClassVar[tuple[str, ...]]
    rounds: ClassVar[str] = "scales"
    rounding_shows: ClassVar[bool] = False

    def require_holds(self, plan: Plan, bench: Bench | None = None) -> None:
        """Refuse what the limits do not allow; see `Format.require_holds`."""
        require_plan(self.limits, plan)
        require_linears(self.limits, plan, () if bench is None else bench.blocks)

    @abstractmethod
    def write(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight], place: Path) -> Stored:
        """Write codes and scales; see `Format.write`."""

    def rounded(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight]) -> RoundedParts | None:
        """Return what has scales and offsets in the Linears as the file holds them; None where it holds all exactly."""
        if all(held_exactly(weight, *self.held(weight)) for weight in codes.values()):
            return None
        in_place = with_held_values(bench, plan, codes, self.held)
        return RoundedParts(parts=self.rounds, in_place=in_place, scored=self.rounding_shows)

    def held(self, weight: IntWeight) -> tuple[Tensor, Tensor]:
        """Return scales and offsets `[O, G]`, float32, as the file has them: codes from zero on are taken times these.

        Zero points are whole, so an offset is that of the scale in float16 unless a format stores it itself.
        """
        scale = half_scales(weight)
        return scale.float(), exact_offsets(replace(weight, scale=scale))

    def reader(self) -> str:
        """Return what reads the files for the proof."""
        return versions_of(*self.packages) if installed(*self.packages) else SPECIFICATION

    def loader(self) -> str:
        """Return the runtime where its packages are installed, else the specification."""
        return self.runtime if installed(*self.packages) else self.specification

    def notes(self, blocks: Sequence[Block]) -> list[str]:
        """Say which inputs are not scaled: here a scale has to fold."""
        note = unscaled_inputs(blocks)
        return [] if note is None else [note]


def missing_packages(directory: Path) -> list[str]:
    """Return what is not installed of the packages that transformers reads a model directory with, by its method."""
    method = declared_method(directory)
    form = find_format(method) if method in FORMATS else None
    needed = form.packages if isinstance(form, RuntimeFormat) else ()
    return [package for package in needed if not installed(package)]
