"""Do the damages of sites add up? Predicted against measured divergence of random plans, and what bits bought.

Predictors that are held against each other: what is shipped (each site alone, scaled by its Gram loss), the Gram
losses, and the Fisher information of the full-precision model from backward passes with labels that it draws itself
(`KL = E <dlog p / dW, W_eff - W>^2 / 2`). Plans are drawn freely, and at equal bits, where nothing but the distribution
is left to predict. Afterwards, at several budgets, the allocated plan against the uniform setting of as many bits.

    python benchmarks/additivity.py --plans 20 --json additivity.json
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from hpo.study.bench import bench_plan
from hpo.study.options import BenchOptions
from objectives.budget import allocate, parse_budget
from objectives.evaluation import lay_out
from objectives.paired import Difference, paired_difference
from objectives.progress import silent
from objectives.results import load_result, measurement_key, save_result
from objectives.scoring import Score
from objectives.sensitivity import Sensitivities, few_sequences, measure_sensitivities
from objectives.suitability import suitable_group_sizes
from objectives.text.sequences import Sequences
from objectives.trial import Bench, quantized, run_trial
from quant.allocation import Allocator, Choice, Options
from quant.plan import Plan
from quant.recipes import recipe_fields
from quant.scheme import loaded
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.paths import Paths
from storage.results import ResultStore

BITS = 4.5
SAMPLES = 4
"""Draws of labels for each sequence of the backward passes."""


def measured(bench: Bench, plan: Plan, text: Sequences, store: ResultStore) -> tuple[ModelSize, Score]:
    key = measurement_key(bench, plan, text)
    if key not in store:
        save_result(store, key, run_trial(bench, plan, text))
    result = load_result(store, key)
    assert result.score is not None
    return result.size, result.score


def free_plan(rows: Sensitivities, dice: random.Random) -> Plan:
    """Every site one of its ways, by odds that differ from plan to plan so that sizes do, too."""
    odds = [dice.random() ** 3 for _ in range(8)]
    return _plan(rows, [dice.choices(range(len(row.settings)), odds[: len(row.settings)])[0] for row in rows.sites])


def equal_plan(rows: Sensitivities, dice: random.Random, weights: int) -> Plan:
    """A plan of the same bits as all others: what would be best if sites mattered as dice say."""
    options = [
        Options(
            site=row.site.name,
            choices=tuple(
                Choice(
                    name=str(place), bits=bits, damage=importance * row.site.weights * 4.0 ** (-bits / row.site.weights)
                )
                for place, bits in enumerate(row.bits)
            ),
        )
        for row in rows.sites
        for importance in [dice.lognormvariate(0, 2)]
    ]
    return rows.plan(Allocator(options).at(int(BITS * weights)).choices)


def _plan(rows: Sensitivities, places: Sequence[int]) -> Plan:
    return Plan(
        named={
            name: row.settings[place]
            for row, place in zip(rows.sites, places, strict=True)
            for name in row.site.linears
        }
    )


def fisher(bench: Bench, rows: Sensitivities, text: Sequences) -> dict[str, dict[Setting, float]]:
    """Predict the damage of each site in each way, in nats per token, from backward passes through full precision."""
    changes: dict[Setting, dict[str, Tensor]] = {}
    linears = {linear.name: linear for block in bench.blocks for linear in block.linears}
    original = {name: linear.weight().detach().float().clone() for name, linear in linears.items()}
    for place in range(max(len(row.settings) for row in rows.sites) - 1):
        plan = _plan(rows, [min(place, len(row.settings) - 2) for row in rows.sites])
        with quantized(bench, plan, with_codes=True) as made:
            for name, codes in made.codes.items():
                change = made.folded[name].undone(loaded(codes)) - original[name]
                changes.setdefault(plan.setting_for(name), {})[name] = change
    squares: dict[str, dict[Setting, float]] = {row.site.name: dict.fromkeys(row.settings, 0.0) for row in rows.sites}
    module, tokens = bench.model.module, 0
    parameters = dict.fromkeys(linear.parameter for linear in linears.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    torch.manual_seed(0)
    for ids, scored in zip(text.ids, text.scored, strict=True):
        tokens += int(scored.sum())
        for _ in range(SAMPLES):
            logits = module(ids[None]).logits[0, :-1].float()[scored[1:]]
            log_odds = logits.log_softmax(-1)
            drawn = torch.multinomial(log_odds.detach().exp(), 1)
            log_odds.gather(1, drawn).sum().backward()
            for row in rows.sites:
                for setting in row.settings[:-1]:
                    product = sum(
                        float((_gradient(linears[name]) * changes[setting][name]).sum()) for name in row.site.linears
                    )
                    squares[row.site.name][setting] += product**2 / 2 / SAMPLES
            for parameter in parameters:
                parameter.grad = None
    for parameter in parameters:
        parameter.requires_grad_(False)
    return {site: {setting: total / tokens for setting, total in ways.items()} for site, ways in squares.items()}


def _gradient(linear: Any) -> Tensor:
    gradient: Tensor = linear.part_of(linear.parameter.grad).float()
    return gradient


def correlations(values: Mapping[str, Sequence[float]], truth: Sequence[float]) -> dict[str, float]:
    return {name: round(float(spearmanr(predicted, truth).statistic), 3) for name, predicted in values.items()}


def interval(difference: Difference) -> str:
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def compared(
    bench: Bench, recipe: Setting, budgets: Sequence[str], text: Sequences, store: ResultStore
) -> list[dict[str, Any]]:
    """Hold the plan of each budget against the best uniform setting of no more bits, on held-out text."""
    uniform = {}
    for size in suitable_group_sizes(bench.blocks):
        plan = Plan.uniform(replace(recipe, group_size=size))
        uniform[size] = measured(bench, plan, text, store)
    rows = []
    for words in budgets:
        budget = parse_budget(words)
        allocated = allocate(bench, recipe, budget, store, silent)
        own_size, own = measured(bench, allocated.plan, text, store)
        affordable = [size for size, (taken, _) in uniform.items() if budget.spare(taken) >= 0]
        best = min(affordable, key=lambda size: uniform[size][1].mean("kl"), default=None)
        row = {
            "budget": words,
            "bits": round(own_size.bits_per_weight, 3),
            "MB": round(own_size.model_bytes / 1e6, 2),
            "predicted KL": round(allocated.allocation.damage, 4),
            "KL": round(own.mean("kl"), 4),
        }
        if best is not None:
            taken, score = uniform[best]
            row |= {
                "uniform group": best,
                "uniform bits": round(taken.bits_per_weight, 3),
                "uniform MB": round(taken.model_bytes / 1e6, 2),
                "uniform KL": round(score.mean("kl"), 4),
                "KL difference": interval(paired_difference(own, score, measure="kl")),
                "NLL difference": interval(paired_difference(own, score)),
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--eval-data", default="bundled:docstrings")
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--recipe", default="gw-awq+full+range+gptq")
    parser.add_argument("--n-calib", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=48, help="sequences on which plans and uniform settings meet")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--budgets", default="4.2,4.35,4.5,4.75", help="bits per weight, or sizes such as 190MB")
    parser.add_argument("--fisher", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cache", type=Path, default=Path("additivity-cache"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    options = BenchOptions(
        model=given.model, eval_data=given.eval_data, seq_len=given.seq_len, eval_samples=given.held_out
    )
    paths = Paths(given.cache)
    laid_out = lay_out(bench_plan(options, given.n_calib), paths, silent)
    bench, store, (text, *_) = laid_out.bench, ResultStore(paths.results), laid_out.data
    recipe = Setting(**recipe_fields({"method": given.recipe, "n_calib": given.n_calib}))
    report: dict[str, Any] = {"model": given.model, "recipe": given.recipe}

    rows = measure_sensitivities(bench, recipe, store, silent)
    report["sensitivities"] = {
        "seconds": round(rows.seconds, 1),
        "sites": len(rows.sites),
        "together": [
            (round(sum(row.damage(min(place, len(row.settings) - 2)) for row in rows.sites), 4), round(kl, 4))
            for place, kl in enumerate(rows.measured)
        ],
    }
    print(json.dumps(report["sensitivities"]), flush=True)
    report["budgets"] = compared(bench, recipe, given.budgets.split(","), text, store)
    by_fisher = {}
    if given.fisher:
        started = perf_counter()
        by_fisher = fisher(bench, rows, few_sequences(bench.calibration.text))
        report["fisher seconds"] = round(perf_counter() - started, 1)

    weights = sum(row.site.weights for row in rows.sites)
    dice = random.Random(0)
    for kind in ("free", "equal bits"):
        plans = [
            free_plan(rows, dice) if kind == "free" else equal_plan(rows, dice, weights) for _ in range(given.plans)
        ]
        names = ("alone x Gram", "Gram", "bits", *(["Fisher"] if by_fisher else []))
        truth, predictions = [], {name: [] for name in names}  # type: ignore[var-annotated]
        for plan in plans:
            own_size, score = measured(bench, plan, text[: given.sequences], store)
            truth.append(score.mean("kl"))
            ways = [(row, plan.setting_for(row.site.linears[0])) for row in rows.sites]
            predictions["alone x Gram"].append(rows.predicted(plan))
            predictions["Gram"].append(sum(row.losses[row.settings.index(setting)] for row, setting in ways))
            if by_fisher:
                predictions["Fisher"].append(sum(by_fisher[row.site.name][setting] for row, setting in ways))
            predictions["bits"].append(-own_size.bits_per_weight)
        ratios = sorted(kl / predicted for kl, predicted in zip(truth, predictions["alone x Gram"], strict=True))
        report[kind] = {
            "Spearman": correlations(predictions, truth),
            "measured": [round(kl, 5) for kl in truth],
            "predicted": {name: [round(value, 5) for value in values] for name, values in predictions.items()},
            "measured / predicted": [round(ratios[0], 3), round(ratios[len(ratios) // 2], 3), round(ratios[-1], 3)],
        }
        print(kind, json.dumps({name: report[kind][name] for name in ("Spearman", "measured / predicted")}), flush=True)

    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
