"""Who reads which document: parts of the work that share none.

Responsible for dealing the documents of a source to the parts that read it, and for what is left of them. May assume
documents as they are read: text, in any order.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import xxhash

Part = Literal["calibration", "tuning", "confirmation", "refinement", "validation"]
# Shares of a source among the parts that read it; a source that one part reads is all its own.
SHARES: Mapping[Part, float] = {"calibration": 0.3, "tuning": 0.45, "confirmation": 0.25}
# Shares of what no sequence of theirs takes anything from.
LEFT_SHARES: Mapping[Part, float] = {"refinement": 0.9, "validation": 0.1}


def deal(documents: Sequence[str], parts: Sequence[Part], seed: int) -> dict[Part, list[str]]:
    """Divide the documents of one source among the parts that read it, each in a seeded order.

    Where a document goes depends on its text, the seed and the parts alone: adding documents moves none of the
    others, and copies of a document count once.
    """
    bounds = np.cumsum([{**SHARES, **LEFT_SHARES}[part] for part in parts])
    dealt: dict[Part, list[tuple[int, str]]] = {part: [] for part in parts}
    for text in dict.fromkeys(documents):
        key = xxhash.xxh3_64_intdigest(text.strip().encode(), seed)
        # One half of the hash says which part, the other half where in it.
        place = (key >> 32) / 2**32 * bounds[-1]
        dealt[parts[int(np.searchsorted(bounds, place, side="right"))]].append((key & 0xFFFFFFFF, text))
    return {part: [text for _, text in sorted(texts)] for part, texts in dealt.items()}


def left_over(documents: Sequence[str], used: Collection[str], shared: bool, seed: int) -> list[str]:
    """Return the documents that are nobody's.

    Args:
        documents: Of one source.
        used: Those that a sequence of another part takes something from.
        shared: Whether anything is measured on the source: then what is left is taken from calibration's share alone,
            so that, where calibration reads it too, measuring on more sequences or confirming later meets none of it.
        seed: Of the split.
    """
    pool = deal(documents, list(SHARES), seed)["calibration"] if shared else list(dict.fromkeys(documents))
    return [text for text in pool if text not in used]


def deal_left_over(documents: Sequence[str], seed: int) -> dict[Part, list[str]]:
    """Divide documents that are nobody's between refining and judging it, whoever else reads their source."""
    # Another seed: by the same one, all that is left of a share would fall to one part.
    return deal(documents, list(LEFT_SHARES), seed + 1)
