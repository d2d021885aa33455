"""Optuna's samplers, asked on a copy of the study that they understand.

Responsible for what they are shown - pruned trials count with their estimates - and for going on around a point that a
converged sampler names again and again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.quiet import quiet_optuna
from hpo.search.acquisition import is_informative, most_informative, nats_of
from hpo.search.samplers.sampler import draw, rest
from hpo.search.twins import Noise, unknown
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting

# A sampler that has converged names the same point again and again: look around it, ever farther away.
NEIGHBOURS, FIRST_SCALE = 64, 0.02
# The nats of a broken model would flatten all differences between good ones.
WORST_NATS_ABOVE_BEST = 3.0


@dataclass(frozen=True, kw_only=True)
class FromOptuna:
    """One of Optuna's samplers.

    Attributes:
        make: By a seed.
        learns: Whether it learns from trials.
        pruned_as: What a pruned trial is to it.
        most: Trials that it is shown at most.
    """

    make: Callable[[int], BaseSampler]
    learns: bool
    pruned_as: TrialState
    most: int

    def settings(
        self, space: Space, trials: Sequence[TrialRecord], seed: int, noise: Noise = unknown
    ) -> Iterator[Setting]:
        """Yield what it suggests, others around that, then what is left."""
        drawn = draw(trials, seed)
        yield from _around(space, suggestion(space, trials, self, drawn), drawn)
        yield from rest(space)


def suggestion(space: Space, trials: Sequence[TrialRecord], sampler: FromOptuna, seed: int) -> Setting:
    """Ask one of Optuna's samplers on a study that shows it what we know: pruned trials with estimates."""
    with quiet_optuna():
        study = optuna.create_study(sampler=sampler.make(seed))
        informative = [trial for trial in trials if is_informative(trial)]
        best = min(map(nats_of, informative), default=0.0)
        chosen = {trial.number for trial in most_informative(informative, sampler.most)}
        for trial in trials:
            if trial.number in chosen or trial.state == "RUNNING":
                shown = _shown(space, trial, sampler, best)
                if shown is not None:
                    study.add_trial(shown)
        return space.setting(study.ask(space.distributions).params)


def _shown(space: Space, trial: TrialRecord, sampler: FromOptuna, best: float) -> FrozenTrial | None:
    """Make a trial as a sampler sees it; None where there is nothing to see."""
    if trial.setting is None:
        return None
    common = {"params": space.params(trial.setting), "distributions": space.distributions}
    if trial.state == "RUNNING":
        return create_trial(state=TrialState.RUNNING, **common)  # type: ignore[arg-type]
    value = min(nats_of(trial), best + WORST_NATS_ABOVE_BEST)
    state = sampler.pruned_as if trial.state == "PRUNED" else TrialState.COMPLETE
    return create_trial(state=state, value=value, intermediate_values=dict(trial.running), **common)  # type: ignore[arg-type]


def _around(space: Space, setting: Setting, seed: int) -> Iterator[Setting]:
    """Yield the setting itself, then others around it, farther and farther away."""
    yield setting
    generator = np.random.default_rng(seed)
    center = np.array(space.fractions(setting))
    for number in range(NEIGHBOURS):
        scale = FIRST_SCALE * (1 + number)
        point = np.clip(center + generator.normal(scale=scale, size=len(center)), 0, math.nextafter(1, 0))
        yield space.at(point.tolist())


TPE = FromOptuna(
    make=lambda seed: TPESampler(seed=seed, n_startup_trials=1), learns=True, pruned_as=TrialState.PRUNED, most=1000
)
RANDOM = FromOptuna(make=lambda seed: RandomSampler(seed=seed), learns=False, pruned_as=TrialState.PRUNED, most=1)
