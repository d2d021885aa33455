"""Which setting to try next.

Responsible for the presets, for the start-up points, for asking the sampler after them, and for never proposing what
was tried. A proposal depends on the study's seed and on the trials that exist and their scores, on nothing else: a
study that was interrupted goes on as if it had not been. Pruned trials count with their estimates.
"""

from collections.abc import Sequence
from dataclasses import replace

from hpo.search.acquisition import is_informative
from hpo.search.samplers.registry import SAMPLERS, START_UP
from hpo.search.samplers.sampler import rest, tried, untried
from hpo.search.twins import Noise, unknown
from hpo.space.dimension import DIMENSIONS
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import PRESETS, RECIPE, Setting

STARTUP_TRIALS = 5


def propose(
    space: Space, trials: Sequence[TrialRecord], sampler: str, seed: int, noise: Noise = unknown
) -> Setting | None:
    """Choose the next setting of a study.

    Args:
        space: What may be tried.
        trials: All that was tried, is being tried or waits.
        sampler: Who chooses once there is something to learn from; a name in `SAMPLERS`.
        seed: The study's.
        noise: How exactly the trials tell settings apart.

    Returns:
        A setting no trial has; None when the sampler has no other.
    """
    tried_settings = tried(trials)
    if not _has_more(space, tried_settings):
        return None
    chosen = SAMPLERS[sampler]
    starts = len(trials) < STARTUP_TRIALS or not any(map(is_informative, trials))
    chooser = START_UP if chosen.learns and starts else chosen
    return next(untried(chooser.settings(space, trials, seed, noise), tried_settings), None)


def presets(space: Space) -> list[tuple[str, Setting]]:
    """List the presets as the space allows them, each once, with the origin that their trials carry.

    Those of the original method are known by name; any other method has its defaults. The recommended recipe is not
    in a space without its ingredients. On a front the last one is there at several budgets.
    """
    method = space.base.method
    named = PRESETS if method == Setting().method else {"defaults": Setting(method=method)}
    origins: dict[Setting, str] = {}
    for label, preset in named.items():
        projected = space.project(preset)
        changed = [name for name in DIMENSIONS if _differs(name, preset, projected)]
        # Without one of its ingredients it is another recipe.
        if label != RECIPE or not set(changed) & {"range_search", "rounding"}:
            origins.setdefault(projected, f"preset {label}" + (" (projected)" if changed else ""))
    for dimension in space.dimensions:
        if dimension.name == "bit_budget" and origins:
            # A front is known at its ends and between them before anything is searched.
            setting, origin = list(origins.items())[-1]
            origins |= {replace(setting, bit_budget=level): origin for level in dimension.levels()}  # type: ignore[arg-type]
    return [(origin, setting) for setting, origin in origins.items()]


def _differs(name: str, preset: Setting, projected: Setting) -> bool:
    return name in preset.reads & projected.reads and getattr(preset, name) != getattr(projected, name)


def _has_more(space: Space, tried_settings: set[Setting]) -> bool:
    size = space.size()
    return size is None or len(tried_settings) < size or next(untried(rest(space), tried_settings), None) is not None
