"""Put the weights of a model back after they were changed.

Responsible for weights, biases and norms in memory. May assume room for a copy of those that may change.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def weights_restored(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Undo whatever the block does to the weights and biases of these modules; holds a copy of each.

    A module may be named more than once: a fused Linear for every role it plays.
    """
    parameters = dict.fromkeys(parameter for module in modules for parameter in module.parameters(recurse=False))
    originals = {parameter: parameter.detach().clone() for parameter in parameters}
    try:
        yield
    finally:
        for parameter, original in originals.items():
            parameter.copy_(original)
