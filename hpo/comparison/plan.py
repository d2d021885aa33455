"""What is to be compared, from what a person types.

Responsible for names: every row of a comparison has one of its own. May assume that settings check their own values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpo.study.record import FULL_PRECISION, Measured, StudyRecord, TrialRecord
from objectives.errors import InputError
from objectives.evaluation import BenchPlan
from objectives.export.runtime import missing_packages
from quant.methods import METHODS
from quant.recipes import recipe_fields
from quant.setting import Setting

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ComparePlan:
    """What is compared.

    Attributes:
        bench: Model and text; the first data set is the one that methods are chosen on.
        settings: One for each method, every method at most once.
        models: Ready-made model directories by the names that their rows get; they have to be there.
        study: What of it is a row besides stands in `chosen`.
        chosen: What the study recommends, or one of its trials.
        notes: What a person should know of that.
    """

    bench: BenchPlan
    settings: tuple[Setting, ...]
    models: Mapping[str, Path]
    study: StudyRecord | None = None
    chosen: Measured | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken = [name for name in self.models if name in METHODS or name == FULL_PRECISION]
        if taken:
            raise InputError(f"{', '.join(taken)} is the name of a method; give the model of --models another name")
        absent = [str(directory) for directory in self.models.values() if not directory.is_dir()]
        if absent:
            raise InputError(f"{', '.join(absent)} of --models is not a directory; give the directory of a model")

    @property
    def study_choice(self) -> Measured | None:
        """Return what was chosen of the study, under a name that says whose it is, and which reference of many."""
        if self.study is None or self.chosen is None:
            return None
        name = self.chosen.name if isinstance(self.chosen, TrialRecord) else self.chosen.full_name
        return replace(self.chosen, name=f"{name} of {self.study.name}")


def method_settings(methods: str, fields: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Make the settings of methods or recipes that are separated by commas, or of `all`; `fields` are common to them.

    Raises:
        InputError: If none is named.
        QuantizationError: If one is unknown, or a value is outside its range.
    """
    named = list(METHODS) if methods == ALL else [name.strip() for name in methods.split(",") if name.strip()]
    if not named:
        raise InputError(f"no method is named; choose some of {', '.join(METHODS)}, or {ALL}")
    return tuple(dict.fromkeys(Setting(**recipe_fields({**fields, "method": name})) for name in named))


def model_directories(text: str) -> dict[str, Path]:
    """Read directories by name from `NAME=DIR,...`.

    Raises:
        InputError: If a part is not of that form, a name comes twice, or packages that read a directory are missing.
    """
    directories: dict[str, Path] = {}
    for part in text.split(","):
        name, equals, directory = (piece.strip() for piece in part.partition("="))
        if not (name and equals and directory):
            raise InputError(f"--models {part!r} is not of the form NAME=DIR; write gptq=./my-gptq-model, for example")
        if name in directories:
            raise InputError(f"--models names {name!r} twice; give every directory a name of its own")
        directories[name] = Path(directory)
        missing = missing_packages(directories[name])
        if missing:
            packages = " and ".join(missing)
            raise InputError(
                f"transformers reads {directory} of --models with {packages}; install that, or leave it out"
            )
    return directories
