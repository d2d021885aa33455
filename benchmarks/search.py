"""Which search finds the best setting with the fewest evaluated tokens: replays on the tables of truth.

Part `pruners`: forty random settings under every pruner. Part `samplers`: whole searches. Part `stopping`: ours until a
rule ends it. Parts can be run alone; what is done is kept in --work and not done again, so an interrupted run goes on.

    python benchmarks/search.py --replicates 40 --json search.json --plots DIR
    python benchmarks/search.py --part pruners --replicates 200
"""

import argparse
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import joblib
import matplotlib
import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from benchmarks.replay import (
    Ended,
    Field,
    Fixed,
    Optunas,
    Ours,
    Proposer,
    Search,
    Until,
    best_was_pruned,
    field,
    proposer,
    regret_curve,
    replay,
)
from benchmarks.truth import load, table_path
from hpo.search.proposal import STARTUP_TRIALS, propose
from hpo.search.pruners.registry import Pruning
from hpo.search.samplers.optunas import FromOptuna, suggestion
from hpo.search.stopping import without_improvement
from hpo.search.twins import Noise
from hpo.space.space import Space
from hpo.study.record import TrialRecord
from quant.setting import Setting

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
Make = Callable[[Field, int], Search]
MakeSampler = Callable[[int], optuna.samplers.BaseSampler]
MOST_TOKENS = 24.0
# Tokens, in full trials, and trials.
MOST = {"pruners": (math.inf, 40), "samplers": (MOST_TOKENS, 80), "stopping": (math.inf, 60)}
AT = np.arange(1.0, MOST_TOKENS + 0.5, 0.5)
TARGET = 0.05
SHOWN = (5, 10, 20)
OPTUNA_PRUNERS: tuple[str, ...] = ("median", "wilcoxon", "hyperband")


def _random(number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=number)


def _tpe(number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=number)


def _gp(number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=number, warn_independent_sampling=False)


def _optuna(sampler: MakeSampler, pruner: str, where: Field, seed: int) -> Search:
    return Optunas(where, seed, sampler(seed), Pruning(name=pruner))


def _ours(suggest: Proposer, pruning: Pruning, where: Field, seed: int) -> Search:
    return Ours(where, seed, suggest, pruning)


def twins_too(space: Space, trials: list[TrialRecord], seed: int, noise: Noise) -> Setting | None:
    """Ours where nothing is known of the noise, so that nothing is a twin: as it was before."""
    return propose(space, trials, "gp", seed)


def optunas_gp(space: Space, trials: list[TrialRecord], seed: int, noise: Noise) -> Setting:
    """Our start-up and estimates, shown to Optuna's Gaussian process."""
    if len(trials) < STARTUP_TRIALS:
        proposed = propose(space, trials, "qmc", seed)
        assert proposed is not None
        return proposed
    sampler = FromOptuna(make=_gp, learns=True, pruned_as=TrialState.COMPLETE, most=100)
    return suggestion(space, trials, sampler, seed + len(trials))


def pruner_searches() -> dict[str, Make]:
    """Random settings, no presets: what differs is who gives trials up."""
    searches: dict[str, Make] = {"none": partial(_optuna, _random, "none")}
    searches |= {name: partial(_optuna, _random, name) for name in OPTUNA_PRUNERS}
    for error in (0.2, 0.1, 0.05, 0.02, 0.01, 0.005):
        searches[f"paired {error:g}"] = partial(_paired, error)
    return searches


def _paired(error: float, where: Field, seed: int) -> Search:
    return Ours(where, seed, proposer("random"), Pruning(error=error), with_presets=False)


def sampler_searches() -> dict[str, Make]:
    """Whole searches, ours and Optuna's."""
    searches: dict[str, Make] = {
        "ours": partial(_ours, proposer("gp"), Pruning()),
        "ours, error .3": partial(_ours, proposer("gp"), Pruning(error=0.3)),
        "ours, twins too": partial(_ours, twins_too, Pruning()),
        "ours, no presets": lambda where, seed: Ours(where, seed, proposer("gp"), Pruning(), with_presets=False),
        "ours, Optuna GP": partial(_ours, optunas_gp, Pruning()),
        "ours, TPE": partial(_ours, proposer("tpe"), Pruning()),
        "ours, random": partial(_ours, proposer("random"), Pruning()),
        "ours, no pruner": partial(_ours, proposer("gp"), Pruning(name="none")),
        "presets": lambda where, seed: Fixed(list(range(where.truth.presets))),
        "random": partial(_optuna, _random, "none"),
    }
    for pruner in OPTUNA_PRUNERS:
        searches[f"TPE, {pruner}"] = partial(_optuna, _tpe, pruner)
        searches[f"GP, {pruner}"] = partial(_optuna, _gp, pruner)
    return searches


def stopped_searches() -> dict[str, Make]:
    """Ours, until a rule ends it."""
    rules: dict[str, Callable[[Ours], bool]] = {"to the end": lambda _: False, "until converged": Ours.has_converged}
    for patience in (5, 10, 20):
        rules[f"patience {patience}"] = partial(_is_out_of_patience, patience)
    return {name: partial(_until, rule) for name, rule in rules.items()}


def _until(rule: Callable[[Ours], bool], where: Field, seed: int) -> Search:
    return Until(Ours(where, seed, proposer("gp"), Pruning()), rule)


def _is_out_of_patience(patience: int, search: Ours) -> bool:
    return without_improvement(search.trials) >= patience


SEARCHES: Mapping[str, Callable[[], dict[str, Make]]] = {
    "pruners": pruner_searches,
    "samplers": sampler_searches,
    "stopping": stopped_searches,
}


def version(name: str) -> int:
    """Of what a replay runs: a changed search is another one."""
    used = ("space/*", "search/pruners/*") if "," in name and not name.startswith("ours") else ("**/*",)
    shared = [ROOT / "objectives" / "paired.py", ROOT / "benchmarks" / "replay.py"]
    files = [*shared, *(file for pattern in used for file in sorted(ROOT.glob(f"hpo/{pattern}.py")))]
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


def run_one(
    part: str, name: str, model: str, group_size: int, number: int, workers: int, work: Path, code: int
) -> dict[str, Any]:
    """One replicate, or what is kept of it."""
    key = f"{part}|{name}|{model}|{group_size}|{number}|{workers}|{MOST[part]}|{TARGET}|{code}"
    path = work / f"{zlib.crc32(key.encode()):08x}-{part}.json"
    if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
        return dict(kept)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    make = SEARCHES[part]()[name]
    where = field(load(model, group_size), number)
    ended = replay(make(where, number), where, *MOST[part], workers)
    replicate = {"key": key, "part": part, "name": name, "model": model, "group_size": group_size, "workers": workers}
    replicate |= summary(ended, where)
    path.write_text(json.dumps(replicate))
    return replicate


def summary(ended: list[Ended], where: Field) -> dict[str, Any]:
    """What is kept of a replicate."""
    curve = regret_curve(ended, where, AT)
    reached = [trial.tokens for trial in ended if trial.complete and where.regret[trial.row] <= TARGET]
    by_trial = np.minimum.accumulate([where.regret[trial.row] if trial.complete else np.inf for trial in ended])
    return {
        "curve": [None if np.isinf(value) else round(float(value), 5) for value in curve],
        "by_trial": [None if np.isinf(value) else round(float(value), 5) for value in by_trial],
        "tokens": ended[-1].tokens,
        "trials": len(ended),
        "pruned": sum(not trial.complete for trial in ended),
        "reached": min(reached, default=None),
        "final": float(by_trial[-1]),
        "best_pruned": best_was_pruned(ended, where),
        "best_pruned_percent": best_pruned_percent(ended, where),
    }


def best_pruned_percent(ended: list[Ended], where: Field) -> float:
    """How much better than the best completed trial the best evaluated one was; 0 where that was completed."""
    everything = min(where.regret[trial.row] for trial in ended)
    return float(min((where.regret[trial.row] for trial in ended if trial.complete), default=np.inf) - everything)


def quantiles(values: list[float], probabilities: tuple[float, ...] = (0.05, 0.5, 0.95)) -> list[float]:
    """Of values of which some may be infinite."""
    return [float(value) for value in np.quantile(np.array(values), probabilities, method="inverted_cdf")]


def curves(replicates: list[dict[str, Any]]) -> NDArray[np.float64]:
    """All curves of one search, `[replicates, tokens]`."""
    return np.array([[np.inf if value is None else value for value in replicate["curve"]] for replicate in replicates])


def table_of(replicates: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: a search over all its replicates."""
    reached = [np.inf if replicate["reached"] is None else replicate["reached"] for replicate in replicates]
    all_curves = curves(replicates)
    return {
        "replicates": len(replicates),
        "regret": {f"{at:g}": quantiles(list(all_curves[:, int(np.searchsorted(AT, at))])) for at in SHOWN},
        "tokens_to_target": quantiles(reached),
        "tokens": float(np.mean([replicate["tokens"] for replicate in replicates])),
        "trials": float(np.mean([replicate["trials"] for replicate in replicates])),
        "pruned": float(
            np.sum([replicate["pruned"] for replicate in replicates])
            / np.sum([replicate["trials"] for replicate in replicates])
        ),
        "best_pruned": float(np.mean([replicate["best_pruned"] for replicate in replicates])),
        "best_pruned_percent": float(np.mean([replicate["best_pruned_percent"] for replicate in replicates])),
        "final": quantiles([replicate["final"] for replicate in replicates]),
    }


def shown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    head = "| search | regret at 5 | at 10 | at 20 | tokens to 0.05 % | tokens | trials | pruned | best pruned |"
    lines = [head, "|---|" + "---|" * (head.count("|") - 2)]
    for name, row in rows.items():
        cells = [f"{q[1]:.3f} [{q[0]:.3f}, {q[2]:.3f}]" for q in row["regret"].values()]
        low, middle, high = row["tokens_to_target"]
        cells += [f"{middle:.1f} [{low:.1f}, {high:.1f}]", f"{row['tokens']:.1f}", f"{row['trials']:.0f}"]
        cells += [
            f"{100 * row['pruned']:.0f} %",
            f"{100 * row['best_pruned']:.1f} % ({row['best_pruned_percent']:.3f})",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(searches: Mapping[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Median regret and 90 % band against evaluated tokens."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, replicates in searches.items():
        band = np.array([quantiles(list(column)) for column in curves(replicates).T])
        (line,) = axes.plot(AT, np.where(np.isfinite(band[:, 1]), band[:, 1], np.nan), label=name)
        low, high = (np.where(np.isfinite(band[:, side]), band[:, side], np.nan) for side in (0, 2))
        axes.fill_between(AT, low, high, color=line.get_color(), alpha=0.08)
    axes.set(xlabel="tokens evaluated, in full trials", ylabel="perplexity above the best setting, %", title=title)
    axes.set_yscale("symlog", linthresh=0.02)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(SEARCHES), action="append")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--group-sizes", default="32,64,128,256")
    parser.add_argument("--replicates", type=int, default=40)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--only", help="names of searches, separated by semicolons")
    parser.add_argument("--work", type=Path, default=Path("search-work"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sizes = [int(size) for size in options.group_sizes.split(",")]
    sizes = [size for size in sizes if table_path(options.model, size).exists()]
    out: dict[str, Any] = {}
    for part in options.part or SEARCHES:
        names = list(SEARCHES[part]())
        if options.only:
            names = [name for name in names if name in options.only.split(";")]
        for workers in map(int, options.workers.split(",")):
            jobs = [
                joblib.delayed(run_one)(part, name, options.model, size, number, workers, options.work, version(name))
                for name in names
                for size in sizes
                for number in range(options.replicates)
            ]
            results = joblib.Parallel(n_jobs=options.jobs)(jobs)
            for size in sizes:
                searches = {
                    name: [run for run in results if (run["name"], run["group_size"]) == (name, size)] for name in names
                }
                title = f"{part}: {options.model}, group size {size}, {workers} workers"
                rows = {name: table_of(replicates) for name, replicates in searches.items()}
                out[title] = rows
                print(f"\n### {title}\n\n{shown(rows)}", flush=True)
                if options.plots:
                    options.plots.mkdir(parents=True, exist_ok=True)
                    plot(searches, title, options.plots / f"{part}-{options.model}-g{size}-w{workers}.png")
    if options.json:
        options.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
