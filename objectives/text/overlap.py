"""How much of some token sequences stands in others, wherever it begins there.

Responsible for counting sequences that repeat. May assume token ids alone: whose they are is for whoever asks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

OVERLAP_WINDOW = 32
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)


def count_repeats(sequences: Sequence[Tensor], others: Sequence[Tensor]) -> int:
    """Count those of `others` of whose runs of `OVERLAP_WINDOW` tokens more than half stand in `sequences`.

    Sequences are read as one text: what is repeated may begin in one of them and end in the next.
    """
    windows = [_windows(ids) for ids in others]
    repeats = np.isin(np.concatenate(windows), _windows(torch.cat(list(sequences))))
    ends = np.cumsum([len(hashes) for hashes in windows])
    return sum(2 * int(part.sum()) > len(part) for part in np.split(repeats, ends[:-1]))


def _windows(ids: Tensor) -> NDArray[np.uint64]:
    """Hash every run of `OVERLAP_WINDOW` tokens: a polynomial modulo 2^64."""
    if len(ids) < OVERLAP_WINDOW:
        return np.empty(0, dtype=np.uint64)
    factors = HASH_BASE ** np.arange(OVERLAP_WINDOW, dtype=np.uint64)
    hashes: NDArray[np.uint64] = sliding_window_view(ids.numpy().astype(np.uint64), OVERLAP_WINDOW) @ factors
    return hashes
