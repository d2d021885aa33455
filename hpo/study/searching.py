"""How a study was begun to search, as it is stored beside its contract, which leaves that open.

Responsible for the names under which it is stored; they are those of the flags. Every worker may search in its own way,
but for the runtime that models are to run in, which the commands of the study's report name.
"""

from dataclasses import dataclass, fields

from hpo.study.options import BenchOptions, RefineOptions, SearchOptions
from objectives.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SearchMode:
    """Who proposes and prunes, what ends the study, and what was allowed; as usual where nothing is said."""

    sampler: str = SearchOptions.sampler
    pruner: str = SearchOptions.pruner
    prune_error: float = SearchOptions.prune_error
    first_look: int = SearchOptions.first_look
    until: str | None = SearchOptions.until
    patience: int | None = SearchOptions.patience
    presets_only: bool = SearchOptions.presets_only
    for_: str | None = SearchOptions.for_
    tensor_parallel: int = SearchOptions.tensor_parallel
    trust_remote_code: bool = BenchOptions.trust_remote_code
    allow_partial: bool = BenchOptions.allow_partial
    allow_partial_groups: bool = BenchOptions.allow_partial_groups
    refine: bool = RefineOptions.refine
    refine_data: str | None = RefineOptions.refine_data
    refine_samples: int = RefineOptions.refine_samples
    refine_codes: int = RefineOptions.refine_codes
    refine_drift: float = RefineOptions.refine_drift
    refine_parts: str = RefineOptions.refine_parts
    refine_batch_tokens: int = RefineOptions.refine_batch_tokens
    refine_passes: int = RefineOptions.refine_passes
    refine_rate: float = RefineOptions.refine_rate
    refine_trials: int = RefineOptions.refine_trials

    @property
    def runtime(self) -> str:
        """Return the flags that say where models are to run; nothing where they may run anywhere."""
        devices = f" --tensor-parallel {self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        return "" if self.for_ is None else f"--for {self.for_}{devices}"

    def unusual(self) -> dict[str, object]:
        """Return by name what differs from the defaults, in their order."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @property
    def allowed(self) -> dict[str, object]:
        """Return by name what a model may do or be only because it was allowed, as `unusual` does."""
        names = ("trust_remote_code", "allow_partial", "allow_partial_groups")
        return {name: value for name, value in self.unusual().items() if name in names}

    @property
    def refining(self) -> dict[str, object]:
        """Return by name what of it is about refining, as `unusual` does."""
        return {name: value for name, value in self.unusual().items() if name.startswith("refine")}


def require_same_runtime(stored: SearchMode, own: SearchMode, study: str) -> None:
    """Refuse to go on with a study for another runtime than it was begun for; no runtime is that of the study.

    Raises:
        InputError: Naming both.
    """
    if own.runtime and own.runtime != stored.runtime:
        begun, remedy = f"with {stored.runtime}", f"give {stored.runtime}"
        if not stored.runtime:
            begun, remedy = "without --for", "leave it out"
        raise InputError(
            f"study {study!r} was begun {begun}, and {own.runtime} is given; {remedy}, or begin another with "
            "--study NAME"
        )
