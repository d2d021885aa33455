"""What a refinement keeps on its way, so that it outlives its process.

Responsible for it being read only by a refinement of the same codes. May assume a store of results.
"""

import logging
from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor

from storage.errors import DamagedEntryError, StoredValueError
from storage.results import ResultStore
from storage.typed_json import decode

log = logging.getLogger(__name__)


class OfCodes(Protocol):
    """A record that is of use to the codes alone that it was made with."""

    @property
    def codes(self) -> str:
        """Return their hash."""


Record = TypeVar("Record", bound=OfCodes)


def read_kept(
    store: ResultStore, key: str, kind: type[Record], codes: str, anew: str
) -> tuple[Record, Mapping[str, Tensor]] | None:
    """Return what was kept with these codes (their hash), and its tensors.

    None where nothing was, and with a warning that ends in `anew` where it is damaged or of other codes.
    """
    if key not in store:
        return None
    try:
        stored, tensors = store.load(key)
        record = decode(kind, stored, f"what was kept as {key}")
    except (DamagedEntryError, StoredValueError) as damage:
        log.warning("%s; %s", damage, anew)
        return None
    if record.codes != codes:
        log.warning("quantizing gave other codes than before; %s", anew)
        return None
    return record, tensors
