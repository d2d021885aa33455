"""Optuna's studies in memory, without what it says of them.

Responsible for its notices being silent inside a block and as they were afterwards. Needs nothing.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence them inside the block: a study in memory is no one's, and how a fit converged is Optuna's business."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
