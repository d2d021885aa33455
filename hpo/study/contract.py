"""What the numbers of a study mean, as a value that is stored with it, so that numbers of different meaning never meet.

Responsible for the version of what is stored, for refusing studies of another one, and for refusing a worker whose
contract differs. Imports little: whoever asks where a study stands reads its contract.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hpo.space.space import Space
from hpo.study.objective import Name
from objectives.errors import InputError
from storage.typed_json import decode, encode

FORMAT = 3
"""Version of a study's attributes and of its trials'."""
LONGEST_VALUE = 80
LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class ModelContract:
    """What is quantized.

    Attributes:
        name: On the hub, or its directory.
        commit: Of a hub model.
        fingerprint: Of its weights.
        dtype: What it is run in.
        stored_as: The type of its stored weights.
        input_scales: Which input scales fold, and which stay 1.
    """

    name: str
    commit: str | None
    fingerprint: str
    dtype: str
    stored_as: str
    input_scales: str


@dataclass(frozen=True, kw_only=True)
class SequencesContract:
    """Token sequences.

    Attributes:
        source: As it was asked for.
        sequences: How many there are.
        fingerprint: Of their tokens.
    """

    source: str
    sequences: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class CalibrationContract(SequencesContract):
    """All the calibration text.

    Attributes:
        route_all: Whether statistics of experts are of all tokens, and not of those that their router sends them.
    """

    route_all: bool = False


@dataclass(frozen=True, kw_only=True)
class TextContract(SequencesContract):
    """A text that is scored.

    Attributes:
        protocol: How text becomes sequences.
        seq_len: Tokens per sequence at most.
        bos: How sequences begin, as it was asked for; None in studies that were begun before that could be said.
        prefix: Token ids that every packed sequence begins with.
    """

    protocol: str
    seq_len: int
    bos: str | None = None
    prefix: tuple[int, ...] = ()

    @property
    def beginning(self) -> str:
        """Return the `--bos` that gives these sequences; before it could be said, packed text had no special tokens."""
        return self.bos or ("never" if self.protocol == "packed" else "auto")


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The contract of a study.

    Attributes:
        format: Version of what is stored.
        model: What is quantized.
        calibration: Where statistics come from.
        objective: What a trial's value is.
        tuning: The text that it is measured on.
        confirmation: Other documents of it.
        second_confirmation: Another text that the winner is confirmed on.
        space: What is searched and what is fixed.
        seed: Of the text's order and of the proposals.
    """

    format: int = FORMAT
    model: ModelContract
    calibration: CalibrationContract
    objective: Name = "perplexity"
    tuning: TextContract
    confirmation: TextContract | None = None
    second_confirmation: TextContract | None = None
    space: Space
    seed: int

    @property
    def directions(self) -> "list[Literal['minimize']]":
        """Return Optuna's: the value is minimised, and on a front the bytes of the model before it."""
        return ["minimize"] * (2 if self.space.is_front else 1)

    @property
    def parts(self) -> dict[str, object]:
        """What it consists of, by name, for people: of the space the values and dimensions by field."""
        stored = {name: part for name, part in encode(self).items() if part is not None}
        for text in ("tuning", "confirmation", "second_confirmation"):
            # What they begin with says more than what was asked for.
            stored.get(text, {}).pop("bos", None)
        if not self.calibration.route_all:
            stored["calibration"].pop("route_all")
        return {**stored, "space": self.space.parts}


def require_name(name: str) -> None:
    """Refuse the name of a study that storages, files or terminals could not take.

    Raises:
        InputError: If it is empty, too long, or has characters that cannot be printed.
    """
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or not name.strip():
        raise InputError(
            f"a study cannot be called {_short(name)!r} ({len(name)} characters); give 1 to {LONGEST_NAME} printable "
            "characters with --study NAME, or --as NAME where it is imported"
        )


def require_format(stored: Mapping[str, Any], study: str) -> None:
    """Refuse a contract of another version.

    Raises:
        InputError: Naming both versions.
    """
    if stored.get("format") != FORMAT:
        raise InputError(
            f"study {study!r} is of format {stored.get('format')}, and this version of praqtune reads format {FORMAT}; "
            "read it with the version that made it, or begin another with --study NAME"
        )


def stored_contract(stored: Mapping[str, Any], study: str) -> Contract:
    """The contract that a study's attributes hold.

    Raises:
        InputError: If it is of another version.
        StoredValueError: If it is damaged.
    """
    require_format(stored, study)
    return decode(Contract, stored, f"the contract of study {study!r}")


def require_same(stored: Contract, own: Contract, study: str) -> None:
    """Refuse to mix measurements that mean different things.

    Raises:
        InputError: Naming every difference.
    """
    stored_parts, own_parts = dict(_flat(stored.parts)), dict(_flat(own.parts))
    differences = [
        f"{name} is {_short(own_parts.get(name))}, in the study {_short(stored_parts.get(name))}"
        for name in sorted({*stored_parts, *own_parts})
        if stored_parts.get(name) != own_parts.get(name)
    ]
    if differences:
        raise InputError(
            f"study {study!r} was begun with another contract: {'; '.join(differences)}; "
            "repeat its options to go on with it, or begin another with --study NAME"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, part in value.items():
        if isinstance(part, Mapping):
            yield from _flat(part, f"{prefix}{key}.")
        elif part is not None:
            yield f"{prefix}{key}", part


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
