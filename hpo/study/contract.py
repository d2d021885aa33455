"""What the numbers of a study mean, so that numbers of different meaning never meet.

Responsible for writing it down and for refusing a worker whose contract differs. May assume JSON-able values.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpo.space.space import Space
from objectives.errors import InputError
from objectives.model.loading import Model
from objectives.model.roles import Block, unscaled_inputs
from objectives.text.sequences import Sequences, TextPlan

FORMAT = 2
LONGEST_VALUE = 80


def make_contract(
    model: Model,
    blocks: Sequence[Block],
    space: Space,
    calibration: Sequences,
    texts: Mapping[str, tuple[TextPlan, Sequences]],
    seed: int,
) -> dict[str, Any]:
    """The contract of a study.

    Args:
        model: What is quantized.
        blocks: Its layer roles.
        space: What is searched and what is fixed.
        calibration: All the calibration text.
        texts: Plan and tokens of the tuning text and of each confirmation text, by what they are for.
        seed: Of the text's order and of the proposals.
    """
    return {
        "format": FORMAT,
        "model": {
            "name": model.name,
            "commit": model.commit,
            "fingerprint": model.fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            "stored as": str(model.stored_dtype).removeprefix("torch."),
            "input scales": _input_scales(space, blocks),
        },
        "calibration": _text(calibration),
        **{
            purpose: {**_text(sequences), "protocol": plan.protocol, "seq_len": plan.length}
            for purpose, (plan, sequences) in texts.items()
        },
        "space": space.describe(),
        "seed": seed,
    }


def require_same(stored: Mapping[str, Any], own: Mapping[str, Any], study: str) -> None:
    """Refuse to mix measurements that mean different things.

    Raises:
        InputError: Naming every difference.
    """
    theirs, ours = dict(_flat(stored)), dict(_flat(own))
    differences = [
        f"{name} is {_short(ours.get(name))}, in the study {_short(theirs.get(name))}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if differences:
        raise InputError(
            f"study {study!r} was begun with another contract: {'; '.join(differences)}; "
            "repeat its options to go on with it, or begin another with --study NAME"
        )


def _input_scales(space: Space, blocks: Sequence[Block]) -> str:
    if space.base.scales == "linear":
        return "one for every Linear, applied at run time"
    return unscaled_inputs(blocks) or "all fold into what produces the inputs"


def _text(sequences: Sequences) -> dict[str, Any]:
    return {"source": sequences.source, "sequences": len(sequences), "fingerprint": sequences.fingerprint()}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, part in value.items():
        if isinstance(part, Mapping):
            yield from _flat(part, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", part


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
