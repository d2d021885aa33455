"""One warm trial against the pipeline people use today, in one run on one machine.

The opponent does per trial what today's scripts do, written well: forward passes in float32 that keep every Linear's
inputs, importances by further passes over them, a loss by forward product on 2,048 sampled tokens for each alpha, and
evaluation in float32, one sequence at a time. Its memory grows with n_calib (39 GB for 128 samples of a 135M model),
so larger sizes are extrapolated from the measured ones and labelled. Ours is `run_trial` with a warm calibration
cache, whose one-time cost is printed beside it.

    python benchmarks/trial_cost.py --model DIR --eval-text c4.jsonl.gz --calib-text wikitext2.test.raw
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.design_table import blocks_of
from objectives.calibration.calibration import Calibration
from objectives.model.finding import find_blocks
from objectives.model.loading import Model, ModelPlan, load_model
from objectives.model.memory import keep_freed_memory
from objectives.model.roles import Block, LinearRole
from objectives.model.weights import weights_restored
from objectives.progress import silent
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult, run_trial
from quant.plan import Plan
from quant.scaling.salience import normalise
from quant.scaling.search import candidate_scales
from quant.scheme import effective_weight
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths

SAMPLED_TOKENS = 2048
SCORED = 48
SETTING = Setting(beta=0.5, tau=2.0, n_grid=20, group_size=64, scales="linear")


def product_rate(dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Floating-point operations per second of a bare 2048 x 2048 matrix product."""
    a = torch.randn(2048, 2048).to(dtype)
    b = a @ a
    started, count = perf_counter(), 0
    while perf_counter() - started < seconds:
        torch.mm(a, a, out=b)
        count += 1
    return 2 * 2048**3 * count / (perf_counter() - started)


# The opponent


def keep_inputs(model: Model, linears: list[LinearRole], sequences: Sequences) -> dict[str, Tensor]:
    """Every Linear's inputs over all sequences, float32 `[tokens, I]`, from forward passes of one sequence each."""
    kept: dict[str, list[Tensor]] = {linear.name: [] for linear in linears}

    def keep(name: str, _: Any, args: tuple[Tensor, ...]) -> None:
        kept[name].append(args[0].reshape(-1, args[0].shape[-1]).clone())

    handles = [linear.module.register_forward_pre_hook(partial(keep, linear.name)) for linear in linears]
    for ids in sequences.ids:
        model.module.base_model(input_ids=ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(kept.pop(name)) for name in list(kept)}


def importances(block: Block, linear: LinearRole, kind: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """`E|x|` `[I]` and `E|act(z)|` `[O]` by a pass over the kept inputs."""
    magnitude = torch.zeros(inputs.shape[1])
    h = torch.zeros(linear.weight().shape[0])
    for x in inputs.split(SAMPLED_TOKENS):
        magnitude += x.abs().sum(0)
        z = x @ linear.weight().T
        h += (block.activation(z) if kind == "mlp" else z).abs().sum(0)
    return magnitude / len(inputs), h / len(inputs)


def search(weight: Tensor, inputs: Tensor, salience: Tensor, weights: Tensor) -> Tensor:
    """The best effective weight `[O, I]`, every alpha judged by a forward product on sampled inputs `[I, tokens]`."""
    rounding = partial(effective_weight, scheme=SETTING.scheme(torch.bfloat16))
    best, chosen = torch.inf, weight
    output = torch.empty(len(weight), inputs.shape[1])
    for scale in candidate_scales(salience, SETTING.n_grid):
        effective = rounding(weight, scale)
        torch.mm(effective - weight, inputs, out=output)
        loss = float(torch.linalg.vector_norm(output, dim=1).square() @ weights)
        if loss < best:
            best, chosen = loss, effective
    return chosen


def opponent(model: Model, blocks: list[Block], calibrated: Sequences, scored: Sequences) -> dict[str, float]:
    """Seconds of each phase of one trial, and the floating-point operations of its loss loop."""
    linears = [linear for block in blocks for linear in block.linears]
    seconds = {"keep inputs": 0.0, "importances": 0.0, "search": 0.0, "score": 0.0}
    sample = torch.randperm(sum(map(len, calibrated.ids)), generator=torch.Generator().manual_seed(0))[:SAMPLED_TOKENS]
    operations = 0
    with torch.inference_mode(), weights_restored([linear.module for linear in linears]):
        clock = perf_counter()
        kept = keep_inputs(model, linears, calibrated)
        seconds["keep inputs"] = perf_counter() - clock
        for block in blocks:
            for site in block.sites:
                for linear in site.linears:
                    clock = perf_counter()
                    inputs = kept.pop(linear.name)
                    a, h = importances(block, linear, site.kind, inputs)
                    p = h @ linear.weight().abs() if site.kind == "mlp" else a
                    blend = [normalise(salience, "soft") for salience in (a, p)]
                    salience = (1 - SETTING.beta) * blend[0] + SETTING.beta * blend[1]
                    weights = len(h) * torch.softmax(h / SETTING.tau, 0)
                    seconds["importances"] += perf_counter() - clock
                    clock = perf_counter()
                    linear.set_weight(search(linear.weight().clone(), inputs[sample].T.contiguous(), salience, weights))
                    seconds["search"] += perf_counter() - clock
                    operations += 2 * SAMPLED_TOKENS * linear.weight().numel() * (SETTING.n_grid + 1)
        clock = perf_counter()
        for ids in scored.ids:
            logits = model.module(input_ids=ids[None], use_cache=False).logits[0, :-1]
            functional.cross_entropy(logits, ids[1:])
        seconds["score"] = perf_counter() - clock
    return {**seconds, "operations": operations}


# Ours


def our_operations(blocks: list[Block], model: Model, scored: Sequences) -> dict[str, int]:
    """Floating-point operations of the products of a trial: the search's (as if none was skipped) and the score's."""
    linears = [linear for block in blocks for linear in block.linears]
    search = sum(2 * linear.weight().numel() * linear.weight().shape[1] for linear in linears) * (SETTING.n_grid + 1)
    tokens = sum(map(len, scored.ids))
    head = model.module.get_output_embeddings().get_parameter("weight").numel()
    per_token = 2 * (head + sum(linear.weight().numel() for linear in linears))
    config = model.module.config
    # Scores and values of causal attention: half of all pairs of positions.
    pairs = sum(len(ids) ** 2 // 2 for ids in scored.ids)
    attention = 4 * pairs * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return {"quantize": search, "score": per_token * tokens + attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--calib-text", required=True)
    parser.add_argument("--n-calib", type=int, nargs="+", default=[16, 32], help="sizes at which the opponent is run")
    parser.add_argument("--extrapolate", type=int, nargs="*", default=[128])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    rates = {"float32": product_rate(torch.float32), "bfloat16": product_rate(torch.bfloat16)}
    print("bare matrix product: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()))

    model = load_model(ModelPlan(name=options.model))
    blocks = find_blocks(model.module)
    scored = blocks_of(options.eval_text, model.tokenizer, "tuning")[-SCORED:]
    calibrated = blocks_of(options.calib_text, model.tokenizer, "calibration")
    # One size says nothing about others.
    extrapolated = options.extrapolate if len(set(options.n_calib)) > 1 else []
    sizes = sorted({*options.n_calib, *extrapolated})
    calibration = Calibration(model, blocks, calibrated, TensorCache(Paths.default()))
    clock = perf_counter()
    read = calibration.ensure(sizes, silent)
    print(f"calibrating once at {sizes}: {perf_counter() - clock:.1f} s for {read} samples not yet in the cache")
    bench = Bench(model=model, blocks=blocks, calibration=calibration)
    counted = our_operations(blocks, model, scored)
    results: dict[int, TrialResult] = {}
    for size in sizes:
        setting = Setting(**{**SETTING.as_dict(), "n_calib": size})
        run_trial(bench, Plan.uniform(setting), scored[:2])
        results[size] = run_trial(bench, Plan.uniform(setting), scored)
        parts = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in results[size].seconds.items())
        reached = ", ".join(
            f"{phase} {operations / 1e12:.2f} TFLOP at {operations / results[size].seconds[phase] / 1e9:.0f} GFLOP/s "
            f"({operations / results[size].seconds[phase] / rates['bfloat16']:.0%} of bfloat16)"
            for phase, operations in counted.items()
        )
        print(f"ours, n_calib {size}: {sum(results[size].seconds.values()):.1f} s ({parts}); {reached}; peak "
              f"{results[size].peak_bytes / 1e9:.2f} GB")  # fmt: skip
    del model, bench, calibration

    wide = load_model(ModelPlan(name=options.model, dtype="float32"))
    wide_blocks = find_blocks(wide.module)
    costs: dict[int, float] = {}
    measured: dict[int, dict[str, float]] = {}
    for size in options.n_calib:
        phases = opponent(wide, wide_blocks, calibrated[:size], scored)
        operations = phases.pop("operations")
        costs[size], measured[size] = sum(phases.values()), phases
        parts = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in phases.items())
        rate = operations / phases["search"]
        print(f"opponent, n_calib {size}: {costs[size]:.1f} s ({parts}); loss loop {operations / 1e12:.2f} TFLOP at "
              f"{rate / 1e9:.0f} GFLOP/s ({rate / rates['float32']:.0%} of float32)")  # fmt: skip
    small, large = min(costs), max(costs)
    slope = (costs[large] - costs[small]) / max(1, large - small)
    summary = []
    for size in sizes:
        seconds = costs.get(size, costs[small] + slope * (size - small))
        label = "measured" if size in costs else "extrapolated"
        ratio = seconds / sum(results[size].seconds.values())
        summary.append({"n_calib": size, "opponent_seconds": seconds, "opponent": label, "ratio": ratio})
        print(f"n_calib {size}: opponent {seconds:.1f} s ({label}), ours {ratio:.1f} times faster")
    after = {"float32": product_rate(torch.float32), "bfloat16": product_rate(torch.bfloat16)}
    print(
        "bare matrix product afterwards: "
        + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in after.items())
    )
    if options.json:
        record = {"rates": rates, "rates_after": after, "summary": summary, "opponent": measured, "scored": SCORED}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
