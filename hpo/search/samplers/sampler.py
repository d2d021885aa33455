"""The door for whoever can choose settings: what it is given, and what it must yield.

Responsible for what samplers share: which settings were tried, the draw of a proposal, and what is left of a finite
space. May assume that whoever asks leaves out what was tried.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from hpo.search.twins import Noise, unknown
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting

MOST_ENUMERATED = 10**6


class Sampler(Protocol):
    """Chooses settings."""

    @property
    def learns(self) -> bool:
        """Tell whether it learns from trials, and is asked only once there is something to learn from."""
        ...

    def settings(
        self, space: Space, trials: Sequence[TrialRecord], seed: int, noise: Noise = unknown
    ) -> Iterator[Setting]:
        """Yield settings, the one to try first at first; some may have been tried.

        The study ends when all that it yields were tried. It must depend on its arguments alone.

        Args:
            space: What may be tried.
            trials: All that was tried, is being tried or waits.
            seed: The study's, the same at every call.
            noise: How exactly the study tells settings apart.
        """
        ...


def draw(trials: Sequence[TrialRecord], seed: int) -> int:
    """Draw the seed of one proposal: another one for every trial of a study."""
    return int(np.random.SeedSequence((seed, len(trials))).generate_state(1)[0])


def rest(space: Space) -> Iterator[Setting]:
    """Yield all settings of a finite space that is not too large; of any other space none."""
    size = space.size()
    if size is not None and size <= MOST_ENUMERATED:
        yield from space.every()


def tried(trials: Sequence[TrialRecord]) -> set[Setting]:
    """Collect the settings that trials have, in canonical form."""
    return {trial.setting.canonical() for trial in trials if trial.setting is not None}


def untried(settings: Iterator[Setting], tried_settings: set[Setting]) -> Iterator[Setting]:
    """Yield those settings that no trial has."""
    return (setting for setting in settings if setting.canonical() not in tried_settings)
