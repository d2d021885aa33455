"""What is kept of a course beside its tensors, so that it outlives its process.

Responsible for it being read only by a course with the same codes. May assume a store of results.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from objectives.refinement_record import HeldBack
from storage.errors import DamagedEntryError, StoredValueError
from storage.results import ResultStore
from storage.typed_json import decode

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Where a course is, beside its tensors; the fields are those of `Subject` and `Ended`."""

    codes: str
    step: int
    kept_step: int
    halvings: int
    looks: tuple[HeldBack, ...]


def read_saved(store: ResultStore, key: str, codes: str) -> tuple[Saved, Mapping[str, Tensor]] | None:
    """Return what was saved with these codes (their hash), and its tensors.

    None where nothing was, and with a warning where it is damaged or of other codes.
    """
    if key not in store:
        return None
    try:
        record, tensors = store.load(key)
        saved = decode(Saved, record, f"the state {key}")
    except (DamagedEntryError, StoredValueError) as damage:
        log.warning("%s; refining begins anew", damage)
        return None
    if saved.codes != codes:
        log.warning("quantizing gave other codes than before; refining begins anew")
        return None
    return saved, tensors
