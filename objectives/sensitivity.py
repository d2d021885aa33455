"""How much each site of a model is hurt by each way to store it: what an allocation of bits is made from.

Responsible for the ways that a recipe offers a site, for measuring, and for predicting what a plan loses
(docs/methods.md, Allocation of bits). Everything that is measured is a trial of a plan on a few sequences of the
calibration text, kept in the result store: a killed run goes on, and another budget measures nothing. May assume that
the bench was laid out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter, sleep

import torch

from objectives.errors import InputError, RunError
from objectives.model.sites import Site, find_sites
from objectives.progress import Progress
from objectives.results import load_result, measurement_key, save_result
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult, run_trial
from quant.allocation import Choice, Options
from quant.plan import Plan
from quant.setting import UNQUANTIZED, Setting
from quant.sizes import input_scale_bits, matrix_bits
from storage.errors import DamagedEntryError
from storage.results import ResultStore

GROUP_SIZES = (128, 64, 32)
"""Of the choices in the bits of the recipe."""
FINE_BITS = 8
"""Of the choice between these and 16 bit, in the largest group that divides the inputs."""
TOKENS = 2048
"""On which a site alone is scored."""
POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """One site: how it may be stored, and what that loses.

    Attributes:
        site: Which Linears.
        settings: The ways, fewest bits first; the last leaves it in 16 bit.
        bits: What the site takes in each.
        losses: Its squared output error in each, from the Gram matrix, over all its Linears; 0 in 16 bit.
        kl: Divergence of the model, in nats per token, in which this site alone is quantized, by the first of the ways,
            less what any change in its block makes the model's number type round otherwise.
    """

    site: Site
    settings: tuple[Setting, ...]
    bits: tuple[int, ...]
    losses: tuple[float, ...]
    kl: float

    def damage(self, place: int) -> float:
        """Predict the divergence, in nats per token, of the site stored in the way at `place`.

        Divergence is quadratic in small errors, so it is as much less as the squared error is.
        """
        return self.kl * self.losses[place] / self.losses[0] if self.losses[0] else 0.0

    def damage_of(self, setting: Setting) -> float:
        """Predict it for one of its settings."""
        return self.damage(self.settings.index(setting))


@dataclass(frozen=True, kw_only=True)
class Sensitivities:
    """All sites of a model, under one recipe.

    Attributes:
        sites: In the model's order.
        measured: Divergence of the model in which every site is stored in its first way, its second, ..., measured on
            the same text; what sums of predictions can be held against.
        tokens: On which it was measured.
        seconds: Spent on measuring now; what was kept from before costs nothing.
    """

    sites: tuple[Sensitivity, ...]
    measured: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def options(self) -> list[Options]:
        """Return the choices of every site, by the place of their setting."""
        return [
            Options(
                site=row.site.name,
                choices=tuple(
                    Choice(name=str(place), bits=bits, damage=row.damage(place)) for place, bits in enumerate(row.bits)
                ),
            )
            for row in self.sites
        ]

    def plan(self, choices: Mapping[str, Choice], recipe: Setting | None = None) -> Plan:
        """Return the plan that stores each site as it was chosen.

        Args:
            choices: By the name of the site.
            recipe: Another one of the same grid to quantize them by, in the same ways; None for the one that was
                measured.
        """
        return Plan(
            named={
                linear: (row.settings if recipe is None else site_settings(recipe, row.site))[
                    int(choices[row.site.name].name)
                ]
                for row in self.sites
                for linear in row.site.linears
            }
        )

    def predicted(self, plan: Plan) -> float:
        """Predict the divergence of a plan of these settings, in nats per token: the sum over its sites."""
        return sum(row.damage_of(plan.setting_for(row.site.linears[0])) for row in self.sites)


def site_settings(recipe: Setting, site: Site) -> tuple[Setting, ...]:
    """List the ways in which a recipe may store a site, fewest bits first.

    Its bits in groups of 128, 64 and 32, as far as these divide the inputs, or per row where the method is so; 8 bits
    in the largest of these groups; 16 bit.

    Raises:
        InputError: If the method keeps rows in 16 bit, or no group size divides the inputs.
    """
    if recipe.definition.keeps_rows or recipe.is_unquantized:
        raise InputError(
            f"{recipe.label()} cannot be allocated bits, because it keeps weights in 16 bit already; use another method"
        )
    widths = sorted({inputs for _, inputs in site.shapes})
    sizes = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    if recipe.definition.per_row:
        sizes = [recipe.group_size]
    if not sizes:
        listed = ", ".join(map(str, GROUP_SIZES))
        raise InputError(
            f"none of the group sizes {listed} divides the {' and '.join(map(str, widths))} inputs of {site.name}; use "
            "a method with one scale per row, rtn-channel or awq"
        )
    ways = [replace(recipe, group_size=size) for size in sizes]
    if recipe.bits < FINE_BITS:
        ways.append(replace(recipe, bits=FINE_BITS, group_size=sizes[0]))
    return (*ways, replace(recipe, bits=UNQUANTIZED))


def plans_by_way(ways: Mapping[Site, Sequence[Setting]]) -> list[Plan]:
    """List the plans that store every site in its first way, in its second, ..., but for the last, which is 16 bit."""
    most = max(len(settings) - 1 for settings in ways.values())
    return [
        Plan(named={name: _way(settings, place) for site, settings in ways.items() for name in site.linears})
        for place in range(most)
    ]


def _way(ways: Sequence[Setting], place: int) -> Setting:
    """Return the way at a place; a site with fewer ways has its last quantized one there."""
    return ways[min(place, len(ways) - 2)]


def few_sequences(text: Sequences) -> Sequences:
    """Return the first sequences of a text that have enough tokens."""
    tokens = count = 0
    while count < len(text) and tokens < TOKENS:
        tokens += int(text.scored[count].sum())
        count += 1
    return text[:count]


def measure_sensitivities(bench: Bench, recipe: Setting, store: ResultStore, progress: Progress) -> Sensitivities:
    """Measure every site under a recipe: each way once for the whole model, each site alone in its first way, and what
    each block shows where next to nothing of it is damaged.

    Raises:
        InputError: If the recipe cannot be allocated bits, or does not suit the model or the text.
        RunError: If a plan cannot be measured, for lack of memory or finite numbers.
    """
    started = perf_counter()
    text = few_sequences(bench.calibration.text)
    sites = find_sites(bench.blocks)
    settings = {site.name: site_settings(recipe, site) for site in sites}
    left = replace(recipe, bits=UNQUANTIZED)
    together = plans_by_way({site: settings[site.name] for site in sites})
    alone = [Plan(named=dict.fromkeys(site.linears, settings[site.name][0]), others=left) for site in sites]
    fine = _fine_plans(bench, sites, settings)
    results = iter(measured_plans(bench, [*together, *alone, *fine.values()], store, text, progress))
    of_all, of_each = list(islice(results, len(together))), list(islice(results, len(alone)))
    losses = [{layer.name: layer.final_loss for layer in result.layers} for result in of_all]
    rows = [
        Sensitivity(
            site=site,
            settings=ways,
            bits=tuple(site_bits(site, setting, bench) for setting in ways),
            losses=(*(sum(losses[place][name] for name in site.linears) for place in range(len(ways) - 1)), 0.0),
            kl=_kl(result),
        )
        for (site, ways), result in zip(((site, settings[site.name]) for site in sites), of_each, strict=True)
    ]
    floors = {depth: _floor(_kl(result), rows, depth) for depth, result in zip(fine, results, strict=True)}
    return Sensitivities(
        sites=tuple(replace(row, kl=max(0.0, row.kl - floors.get(row.site.depth, 0.0))) for row in rows),
        measured=tuple(map(_kl, of_all)),
        tokens=sum(int(scored.sum()) for scored in text.scored),
        seconds=perf_counter() - started,
    )


def _fine_plans(bench: Bench, sites: Sequence[Site], settings: Mapping[str, tuple[Setting, ...]]) -> dict[int, Plan]:
    """Return for each block the plan that stores it in 8 bits and all others in 16, which damages next to nothing.

    What a model diverges so is what its number type rounds otherwise after a change there. On a model of many sites
    that is most of what one of them shows alone, and a sum over sites would count it for each. None where the model
    computes in float32, or the recipe has nothing finer than itself.
    """
    if bench.model.dtype == torch.float32:
        return {}
    named: dict[int, dict[str, Setting]] = {}
    for site in sites:
        coarse, *_, fine, left = settings[site.name]
        if fine.bits > coarse.bits:
            named.setdefault(site.depth, {}).update(dict.fromkeys(site.linears, fine))
    return {depth: Plan(named=of_block, others=left) for depth, of_block in named.items()}


def _floor(kl: float, rows: Sequence[Sensitivity], depth: int) -> float:
    """Return what of the divergence of a block in 8 bits is not damage, as far as that is predicted."""
    return max(0.0, kl - sum(row.damage(len(row.settings) - 2) for row in rows if row.site.depth == depth))


def site_bits(site: Site, setting: Setting, bench: Bench) -> int:
    """Count what a site takes under a setting."""
    if setting.is_unquantized:
        return 8 * bench.model.stored_dtype.itemsize * site.weights
    scheme = setting.scheme(bench.model.dtype)
    return sum(
        matrix_bits(outputs, inputs, scheme).total + input_scale_bits(inputs, setting)
        for outputs, inputs in site.shapes
    )


def measured_plans(
    bench: Bench, plans: Sequence[Plan], store: ResultStore, text: Sequences, progress: Progress
) -> list[TrialResult]:
    """Return the trials of plans; processes that ask for the same share the work out among them.

    Raises:
        InputError: If a plan does not suit the model or the text.
        RunError: If one cannot be measured, for lack of memory or finite numbers.
    """
    keys = [measurement_key(bench, plan, text) for plan in plans]
    leases = [store.lease(key) for key in keys]
    while missing := [place for place, key in enumerate(keys) if key not in store]:
        measured_here = False
        for place in missing:
            progress("measuring what each site loses", sum(key in store for key in keys), len(keys))
            with leases[place].if_free() as free:
                if free:
                    measured_plan(bench, plans[place], store, text)
                    measured_here = True
        if not measured_here:
            sleep(POLL_SECONDS)
    return [measured_plan(bench, plan, store, text) for plan in plans]


def measured_plan(bench: Bench, plan: Plan, store: ResultStore, text: Sequences) -> TrialResult:
    """Return the trial of a plan, run to its end now unless it was before.

    Raises:
        InputError: If the plan does not suit the model or the text.
        RunError: If it cannot be measured, for lack of memory or finite numbers.
    """
    key = measurement_key(bench, plan, text)
    if key in store:
        try:
            return load_result(store, key)
        except DamagedEntryError:
            store.remove(key)
    result = run_trial(bench, plan, text)
    if result.outcome != "complete":
        raise RunError(f"a plan could not be measured to its end ({result.outcome}): {plan.label()}")
    save_result(store, key, result)
    return result


def _kl(result: TrialResult) -> float:
    assert result.score is not None
    kl = result.score.mean_kl
    assert kl is not None
    return max(0.0, kl)
