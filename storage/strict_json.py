"""JSON that every strict reader accepts.

Responsible for what Python's `json` would write and JSON has not: NaN, Infinity, numbers of other libraries.
"""

import json
import math
from collections.abc import Mapping

import numpy as np


def plain(value: object) -> object:
    """Convert a value to the types that JSON has; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def json_text(value: Mapping[str, object]) -> str:
    """Return indented JSON of `plain(value)`, with a newline at its end."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(value: Mapping[str, object]) -> str:
    """Return JSON of `plain(value)` on one line, without a newline at its end."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
