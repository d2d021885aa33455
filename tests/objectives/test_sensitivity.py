"""What each site loses is measured once, and an allocation of bits is made from it under any budget."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import objectives.sensitivity
from objectives.budget import Budget, allocate, parse_budget, require_affordable, size_limits
from objectives.errors import InputError
from objectives.model.sites import Site, find_sites
from objectives.progress import silent
from objectives.quantization import model_size
from objectives.results import load_result, measurement_key, save_result
from objectives.sensitivity import (
    Sensitivities,
    Sensitivity,
    few_sequences,
    measure_sensitivities,
    measured_plan,
    measured_plans,
    site_settings,
)
from objectives.trial import Bench, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.results import ResultStore
from tests.objectives import tiny

RECIPE = Setting(method="gw-awq", n_calib=8, n_grid=3)
ROLES = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16)
    # One MLP that matters much more than the other.
    made.module.model.layers[0].mlp.down_proj.weight.mul_(6)
    return tiny.bench(made, tmp_path_factory.mktemp("bits") / "home")


@pytest.fixture(scope="module")
def store(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    return ResultStore(tmp_path_factory.mktemp("results") / "results")


@pytest.fixture(scope="module")
def measured(bench: Bench, store: ResultStore) -> Sensitivities:
    return measure_sensitivities(bench, RECIPE, store, silent)


def site(inputs: int) -> Site:
    return Site(depth=0, roles=("o",), linears=("a",), shapes=((8, inputs),))


# What is offered


@pytest.mark.parametrize(
    ("recipe", "inputs", "ways"),
    [
        (RECIPE, 256, ["4 bit g128", "4 bit g64", "4 bit g32", "8 bit g128", "16 bit"]),
        (RECIPE, 576, ["4 bit g64", "4 bit g32", "8 bit g64", "16 bit"]),
        (replace(RECIPE, symmetric=False), 32, ["4 bit g32 asym", "8 bit g32 asym", "16 bit"]),
        (replace(RECIPE, bits=8), 64, ["8 bit g64", "8 bit g32", "16 bit"]),
        (replace(RECIPE, method="awq"), 7, ["4 bit per row", "8 bit per row", "16 bit"]),
    ],
)
def test_a_recipe_offers_what_suits_the_inputs(recipe: Setting, inputs: int, ways: list[str]) -> None:
    """Groups that divide them, eight bits in the largest of these, sixteen."""
    assert [setting.stored_as for setting in site_settings(recipe, site(inputs))] == ways


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (replace(RECIPE, method="awq-mixed"), "cannot be allocated bits, because it keeps weights in 16 bit already"),
        (replace(RECIPE, bits=16), "cannot be allocated bits"),
        (RECIPE, "none of the group sizes 128, 64, 32 divides the 48 inputs of a; use a method with one scale per row"),
    ],
)
def test_a_recipe_that_offers_nothing_is_refused(recipe: Setting, said: str) -> None:
    """With what to do instead."""
    with pytest.raises(InputError, match=said):
        site_settings(recipe, site(48))


# What is measured


def test_every_site_has_its_damages(measured: Sensitivities, bench: Bench) -> None:
    """Less with more bits and none in sixteen; sizes are those that are counted; the site that matters is known."""
    assert [row.site.roles for row in measured.sites] == [*ROLES, *ROLES]
    for row in measured.sites:
        damages = [row.damage(place) for place in range(len(row.settings))]
        assert damages[0] == pytest.approx(row.kl)
        assert row.kl >= damages[-2] >= damages[-1] == 0
        assert list(row.bits) == sorted(row.bits)
        assert row.bits[-1] == 16 * row.site.weights
    assert sum(row.kl > 0 for row in measured.sites) > len(measured.sites) / 2
    worst = sorted(measured.sites, key=lambda row: row.kl)[-2:]
    assert {row.site.roles for row in worst if row.site.depth == 0} == {("gate", "up"), ("down",)}
    smallest, largest = size_limits(bench, RECIPE)
    assert 8 * (smallest.codes + smallest.scales) == sum(row.bits[0] for row in measured.sites)
    assert (smallest.bits_per_weight, largest.bits_per_weight) == (pytest.approx(4.25 - 2 / 28 / 8 * 4, abs=0.05), 16)
    assert len(measured.measured) == 4


def kl_of(bench: Bench, place: int, rows: Sequence[Sensitivity]) -> float:
    """Measured where these sites are stored in one of their ways, and everything else stays in 16 bit."""
    named = {name: row.settings[place] for row in rows for name in row.site.linears}
    score = run_trial(
        bench, Plan(named=named, others=replace(RECIPE, bits=16)), few_sequences(bench.calibration.text)
    ).score
    assert score is not None
    assert score.mean_kl is not None
    return score.mean_kl


def test_a_site_alone_is_what_was_measured_above_what_its_number_type_rounds_otherwise(
    measured: Sensitivities, bench: Bench
) -> None:
    """A block in 8 bits shows that, where next to nothing is damaged; what is predicted of that damage stays."""
    row = measured.sites[3]
    block = [other for other in measured.sites if other.site.depth == row.site.depth]
    alone = {other.site.name: kl_of(bench, 0, [other]) for other in block}
    fine = sum(alone[other.site.name] * other.losses[-2] / other.losses[0] for other in block)
    floor = kl_of(bench, -2, block) - fine
    assert floor > 0
    assert row.kl == pytest.approx(alone[row.site.name] - floor, rel=1e-9)


def test_in_float32_nothing_is_taken_off(tmp_path: Path) -> None:
    """And nothing is measured for it."""
    exact = tiny.bench(tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.float32), tmp_path / "home")
    results = ResultStore(tmp_path / "results")
    rows = measure_sensitivities(exact, RECIPE, results, silent)
    assert [row.kl for row in rows.sites[:2]] == [kl_of(exact, 0, [row]) for row in rows.sites[:2]]
    assert len(list((tmp_path / "results").glob("*.safetensors"))) == 4 + len(rows.sites)


def test_predictions_add_up(measured: Sensitivities, bench: Bench) -> None:
    """Near what a plan of them all loses, and the sum of its sites."""
    first = Plan(named={name: row.settings[0] for row in measured.sites for name in row.site.linears})
    assert measured.predicted(first) == pytest.approx(sum(row.kl for row in measured.sites))
    assert measured.predicted(first) == pytest.approx(measured.measured[0], rel=0.5)
    left = Plan(named={name: row.settings[-1] for row in measured.sites for name in row.site.linears})
    assert measured.predicted(left) == 0


def test_nothing_is_measured_twice(
    measured: Sensitivities, bench: Bench, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another budget, or another process, reads what is kept; what is damaged is measured again."""
    trials: list[Plan] = []

    def noted(bench: Bench, plan: Plan, *rest: object) -> object:
        trials.append(plan)
        return run_trial(bench, plan, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(objectives.sensitivity, "run_trial", noted)
    again = measure_sensitivities(bench, RECIPE, store, silent)
    assert again.sites == measured.sites
    assert trials == []
    damaged = next(store._directory.glob("*.safetensors"))
    damaged.write_bytes(b"")
    assert measure_sensitivities(bench, RECIPE, store, silent).sites == measured.sites
    assert len(trials) == 1


def test_only_as_much_text_as_is_needed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sequences of the calibration text that have enough tokens."""
    monkeypatch.setattr(objectives.sensitivity, "TOKENS", 40)
    assert len(few_sequences(bench.calibration.text)) == 3


# What a budget buys


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("4.25", Budget(bits_per_weight=4.25)),
        ("110MB", Budget(model_bytes=110e6)),
        (" 4.7 gb", Budget(model_bytes=4.7e9)),
        ("900B", Budget(model_bytes=900)),
    ],
)
def test_a_budget_is_bits_or_bytes(text: str, budget: Budget) -> None:
    """With a unit it is the size of the whole model."""
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "x", "0", "-4", "4.25bits", "1e3", "nan", "4,25", "12 TB"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    """One line says what can be given."""
    with pytest.raises(InputError, match=r"cannot be read; give bits per weight .* such as 4\.25, or the size"):
        parse_budget(text)


def test_bits_go_where_they_count(measured: Sensitivities, bench: Bench, store: ResultStore) -> None:
    """The budget is kept, in bits and in bytes; the site that matters gets the most bits, and less is predicted."""
    for budget in (Budget(bits_per_weight=6.0), Budget(model_bytes=model_size_at(bench, 6.0))):
        allocated = allocate(bench, RECIPE, budget, store, silent)
        size = model_size(bench.model, bench.blocks, allocated.plan)
        assert budget.spare(size) >= 0
        assert size.bits_per_weight > 5.8
        first = [row.site for row in measured.sites if row.site.depth == 0 and row.site.roles in ROLES[2:]]
        assert max(allocated.plan.setting_for(site.linears[0]).bits for site in first) > 4
        assert allocated.allocation.damage == pytest.approx(measured.predicted(allocated.plan))
        assert allocated.allocation.damage < 0.5 * sum(row.kl for row in measured.sites)
        assert allocated.allocation.gap == 0
        assert "allocated to 8 sites" in allocated.note
    for found in find_sites(bench.blocks):
        assert len({allocated.plan.setting_for(name) for name in found.linears}) == 1


def model_size_at(bench: Bench, bits: float) -> float:
    """Bytes of the whole model whose blocks have so many bits."""
    size, _ = size_limits(bench, RECIPE)
    return size.outside + size.weights * bits / 8


def test_more_budget_never_loses_more(bench: Bench, store: ResultStore) -> None:
    """And all of it buys what loses nothing."""
    smallest, _ = size_limits(bench, RECIPE)
    damages = [
        allocate(bench, RECIPE, Budget(bits_per_weight=bits), store, silent).allocation.damage
        for bits in (smallest.bits_per_weight, 4.4, 5, 7, 12, 16)
    ]
    assert damages == sorted(damages, reverse=True)
    assert damages[-1] == 0


@pytest.mark.parametrize("budget", [Budget(bits_per_weight=4.0), Budget(bits_per_weight=16.1), Budget(model_bytes=1e4)])
def test_a_budget_outside_is_refused_before_anything_is_measured(budget: Budget, bench: Bench, tmp_path: Path) -> None:
    """Both limits are named, in bits and in bytes, and sizes that can be given instead."""
    with pytest.raises(
        InputError, match=r"cannot be allocated: plans take from 4\.\d+ bits per weight \(0\.\d+ MB\) to 16\.000 bits"
    ) as caught:
        allocate(bench, RECIPE, budget, ResultStore(tmp_path / "results"), silent)
    assert not (tmp_path / "results").exists()
    remedies = re.findall(r"such as ([\d.]+(?:MB)?)", str(caught.value))
    assert len(remedies) == 2
    for remedy in remedies:
        require_affordable(bench, RECIPE, parse_budget(remedy))


def test_what_another_process_measures_is_waited_for_and_not_measured_twice(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one holds the lease of a plan; meanwhile this one measures the rest."""
    text = few_sequences(bench.calibration.text)
    plans = [Plan.uniform(replace(RECIPE, method="rtn", group_size=size)) for size in (64, 32)]
    shared, apart = ResultStore(tmp_path / "shared"), ResultStore(tmp_path / "apart")
    measured_plan(bench, plans[0], apart, text)
    key = measurement_key(bench, plans[0], text)
    slept: list[float] = []

    def other_ends(seconds: float) -> None:
        slept.append(seconds)
        save_result(shared, key, load_result(apart, key))

    monkeypatch.setattr(objectives.sensitivity, "sleep", other_ends)
    with shared.lease(key).if_free() as free:
        assert free
        results = measured_plans(bench, plans, shared, text, silent)
    assert [result.plan for result in results] == plans
    assert len(slept) == 1
