"""How many tokens of the calibration text reach each expert.

Responsible for reading these counts, and nothing else, from the cache. May assume that the size was calibrated.
"""

from collections.abc import Sequence

from objectives.calibration.calibration import Calibration
from objectives.calibration.entries import part_name, tokens_routed
from objectives.model.roles import Block


def expert_tokens(calibration: Calibration, blocks: Sequence[Block], size: int) -> dict[str, list[int]]:
    """Return how many tokens the router sends each expert of the first `size` samples, by the name of its module.

    {} without experts.

    Raises:
        DamagedEntryError: If an entry is damaged.
    """
    tokens: dict[str, list[int]] = {}
    key = calibration.first(size).key
    for block in blocks:
        for experts in block.experts:
            means = calibration.cache.window(key, part_name(block))
            tokens[experts.name] = [tokens_routed(means, expert) for expert in experts.experts]
    return tokens
