"""Which setting to try next.

Responsible for the start-up points, for who chooses after them, and for never proposing what was tried. A proposal
depends on the study's seed and on the trials that exist, on nothing else: a study that was interrupted goes on as if
it had not been. Pruned trials count with their estimates.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from hpo.search.acquisition import Promise, consider, is_informative, nats, promises, telling
from hpo.space.dimension import DIMENSIONS
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import PRESETS, Setting

SamplerName = Literal["gp", "tpe", "random", "qmc", "grid"]
SAMPLERS: tuple[SamplerName, ...] = ("gp", "tpe", "random", "qmc", "grid")
STARTUP_TRIALS = 5
# A sampler that has converged names the same point again and again: look around it, ever farther away.
NEIGHBOURS, FIRST_REACH = 64, 0.02
MOST_SOBOL = 2**12
MOST_ENUMERATED = 10**6
# log-perplexity of a broken model would flatten all differences between good ones.
WORST_NATS_ABOVE_BEST = 3.0


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of Optuna's samplers.

    Attributes:
        make: By a seed.
        pruned_as: What a pruned trial is to it.
        most: Trials that it is shown at most.
    """

    make: Callable[[int], BaseSampler]
    pruned_as: TrialState
    most: int


MODELS: Mapping[str, Model] = {
    "tpe": Model(make=lambda seed: TPESampler(seed=seed, n_startup_trials=1), pruned_as=TrialState.PRUNED, most=1000),
    "random": Model(make=lambda seed: RandomSampler(seed=seed), pruned_as=TrialState.PRUNED, most=1),
}


def propose(space: Space, trials: Sequence[TrialRecord], sampler: SamplerName, seed: int) -> Setting | None:
    """The next setting of a study.

    Args:
        space: What may be tried.
        trials: All that was tried, is being tried or waits.
        sampler: Who chooses once there is something to learn from.
        seed: The study's.

    Returns:
        A setting no trial has; None when the space has no other.
    """
    tried = _tried(trials)
    if sampler == "grid":
        return next(_untried(_shuffled(space.grid(), seed), tried), None)
    if not _has_more(space, tried):
        return None
    learns = sampler in ("gp", "tpe") and len(trials) >= STARTUP_TRIALS and any(map(is_informative, trials))
    if not learns and sampler != "random":
        return next(_untried(sobol(space, seed), tried), None) or _any_untried(space, tried)
    draw = int(np.random.SeedSequence((seed, len(trials))).generate_state(1)[0])
    if sampler == "gp":
        found = iter([promise.setting for promise in promising(space, trials, draw)])
    else:
        found = _untried(_around(space, suggestion(space, trials, MODELS[sampler], draw), draw), tried)
    return next(found, None) or _any_untried(space, tried)


def presets(space: Space) -> list[tuple[str, Setting]]:
    """The presets as the space allows them, each once, with the origin that their trials carry.

    Those of the original method are known by name; any other method has its defaults.
    """
    method = space.base.method
    known = PRESETS if method == Setting().method else {"defaults": Setting(method=method)}
    read = DIMENSIONS.keys() & space.base.definition.reads
    found: dict[Setting, str] = {}
    for label, preset in known.items():
        projected = space.project(preset)
        moved = any(getattr(preset, name) != getattr(projected, name) for name in read)
        found.setdefault(projected, f"preset {label}" + (" (projected)" if moved else ""))
    return [(origin, setting) for setting, origin in found.items()]


def sobol(space: Space, seed: int) -> Iterator[Setting]:
    """Settings that fill the space evenly (a scrambled Sobol sequence)."""
    if space.dimensions:
        points = qmc.Sobol(len(space.dimensions), rng=np.random.default_rng(seed))
        for _ in range(MOST_SOBOL // 64):
            yield from (space.at(point.tolist()) for point in points.random(64))
    else:
        yield space.base


def promising(space: Space, trials: Sequence[TrialRecord], seed: int) -> list[Promise]:
    """Untried settings, the one of greatest expected improvement first; empty where all that are considered were tried.

    May assume that at least one trial has a value.
    """
    considered = consider(space, trials, sobol(space, seed), seed)
    return promises(space, trials, list(_untried(iter(considered), _tried(trials))))


def suggestion(space: Space, trials: Sequence[TrialRecord], model: Model, seed: int) -> Setting:
    """What one of Optuna's samplers suggests for a study that shows it what we know: pruned trials with estimates."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=model.make(seed))
        known = [trial for trial in trials if is_informative(trial)]
        best = min(map(nats, known), default=0.0)
        told = {trial.number for trial in telling(known, model.most)}
        for trial in trials:
            if trial.number in told or trial.state == "RUNNING":
                shown = _shown(space, trial, model, best)
                if shown is not None:
                    study.add_trial(shown)
        with warnings.catch_warnings():
            # How a fit converged is the sampler's business.
            warnings.simplefilter("ignore")
            return space.setting(study.ask(space.distributions).params)
    finally:
        optuna.logging.set_verbosity(level)


def _shown(space: Space, trial: TrialRecord, model: Model, best: float) -> FrozenTrial | None:
    """A trial as a sampler sees it; None where there is nothing to see."""
    if trial.setting is None:
        return None
    common = {"params": space.params(trial.setting), "distributions": space.distributions}
    if trial.state == "RUNNING":
        return create_trial(state=TrialState.RUNNING, **common)  # type: ignore[arg-type]
    value = min(nats(trial), best + WORST_NATS_ABOVE_BEST)
    state = model.pruned_as if trial.state == "PRUNED" else TrialState.COMPLETE
    return create_trial(state=state, value=value, intermediate_values=dict(trial.running), **common)  # type: ignore[arg-type]


def _around(space: Space, setting: Setting, seed: int) -> Iterator[Setting]:
    """The setting itself, then others around it, farther and farther away."""
    yield setting
    generator = np.random.default_rng(seed)
    center = np.array(space.fractions(setting))
    for number in range(NEIGHBOURS):
        reach = FIRST_REACH * (1 + number)
        point = np.clip(center + generator.normal(scale=reach, size=len(center)), 0, math.nextafter(1, 0))
        yield space.at(point.tolist())


def _has_more(space: Space, tried: set[Setting]) -> bool:
    size = space.size()
    return size is None or len(tried) < size or _any_untried(space, tried) is not None


def _any_untried(space: Space, tried: set[Setting]) -> Setting | None:
    size = space.size()
    if size is None or size > MOST_ENUMERATED:
        return None
    return next(_untried(space.every(), tried), None)


def _tried(trials: Sequence[TrialRecord]) -> set[Setting]:
    return {trial.setting.canonical() for trial in trials if trial.setting is not None}


def _untried(settings: Iterator[Setting], tried: set[Setting]) -> Iterator[Setting]:
    return (setting for setting in settings if setting.canonical() not in tried)


def _shuffled(settings: Sequence[Setting], seed: int) -> Iterator[Setting]:
    return (settings[index] for index in np.random.default_rng(seed).permutation(len(settings)))
