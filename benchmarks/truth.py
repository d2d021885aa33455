"""Tables of truth: many settings measured to the end, so that searches can be replayed on them in milliseconds.

For each group size the settings are a scrambled Sobol sequence over the original space (beta, tau, n_grid, n_calib),
after the presets as the space allows them. Every setting is scored on the same sequences of every text. A table keeps
the negative log-likelihood of every sequence and its divergence from full precision, and the losses that the search
for alpha ended with. Tables that were measured before divergence was have none.

Measured results are kept below --cache as trials are, so an interrupted run goes on where it stopped, and several
processes started with the same command share the work out.

    python benchmarks/truth.py --model bundled --group-sizes 32,64,128,256 --settings 400
    python benchmarks/truth.py --model DIR --name smollm2 --group-sizes 64 --settings 60 \
        --calib-data wikitext2.test.raw --data c4.jsonl.gz --sequences 48 --seq-len 512
"""

import argparse
import itertools
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from hpo.search.proposal import presets
from hpo.search.samplers.qmc import sobol
from hpo.space.space import Space, make_space
from hpo.workers.measuring import REFERENCE_METHODS, measure_all
from objectives.evaluation import BenchPlan, load_bench
from objectives.model.loading import ModelPlan
from objectives.model.memory import keep_freed_memory
from objectives.scoring import Measure, Score
from objectives.text.sequences import Sequences, TextPlan
from objectives.trial import TrialResult
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore

DIRECTORY = Path(__file__).resolve().parent / "tables"
SEARCHED = ("beta", "tau", "n_grid", "n_calib")
MEASURES: tuple[Measure, ...] = ("nll", "kl")
SUMS = ("nll", "references", "kl", "kl_references")
BUNDLED_TEXTS = "bundled:docstrings,bundled:topics"


@dataclass(frozen=True, kw_only=True)
class Text:
    """What was measured on one text.

    Attributes:
        source: Its name.
        tokens: Scored tokens, int64 `[sequences]`.
        clusters: The document that each sequence comes from, int64 `[sequences]`.
        nll: Nats summed over each sequence's targets, float64 `[settings, sequences]`.
        references: The same of the reference methods, in the order of `REFERENCE_METHODS`, after full precision.
        kl: Divergence from full precision of the settings, nats summed likewise; None where it was not measured.
        kl_references: The same of the references.
    """

    source: str
    tokens: NDArray[np.int64]
    clusters: NDArray[np.int64]
    nll: NDArray[np.float64]
    references: NDArray[np.float64]
    kl: NDArray[np.float64] | None = None
    kl_references: NDArray[np.float64] | None = None

    @cached_property
    def mean_nll(self) -> NDArray[np.float64]:
        """Nats per target of every setting."""
        return np.asarray(self.nll.sum(axis=1) / self.tokens.sum())

    def score(self, index: int) -> Score:
        """Of one setting, as a trial has it."""
        return self._score(self.nll[index], None if self.kl is None else self.kl[index])

    def reference(self, index: int) -> Score:
        """Of full precision, or of one of the reference methods."""
        return self._score(self.references[index], None if self.kl_references is None else self.kl_references[index])

    def ordered(self, order: NDArray[np.int64]) -> "Text":
        """With its sequences in another order, or with some of them."""
        return replace(
            self,
            tokens=self.tokens[order],
            clusters=self.clusters[order],
            nll=self.nll[:, order],
            references=self.references[:, order],
            kl=None if self.kl is None else self.kl[:, order],
            kl_references=None if self.kl_references is None else self.kl_references[:, order],
        )

    def _score(self, nll: NDArray[np.float64], kl: NDArray[np.float64] | None) -> Score:
        tokens, clusters = torch.from_numpy(self.tokens), torch.from_numpy(self.clusters)
        nats = torch.from_numpy(nll)
        if kl is None:
            return Score(nll=nats, tokens=tokens, clusters=clusters)
        # Flips are not kept; a score has both or neither.
        return Score(nll=nats, tokens=tokens, clusters=clusters, kl=torch.from_numpy(kl), flips=torch.zeros_like(nats))


@dataclass(frozen=True, kw_only=True)
class Truth:
    """One group size of one model.

    Attributes:
        model: Its name.
        space: What the settings were drawn from.
        settings: The presets first.
        presets: How many of them are presets.
        loss: Summed over all Linears, of nearest rounding and of the choice, float64 `[settings, 2]`.
        log_gain: Mean over all Linears of `log(loss / nearest loss)`, float64 `[settings]`.
        texts: By what was measured on them; the first is the tuning text.
    """

    model: str
    space: Space
    settings: tuple[Setting, ...]
    presets: int
    loss: NDArray[np.float64]
    log_gain: NDArray[np.float64]
    texts: tuple[Text, ...]

    @property
    def group_size(self) -> int:
        """Of all settings."""
        return self.space.base.group_size

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Where each setting lies in the unit cube of the space, `[settings, dimensions]`."""
        return np.array([self.space.fractions(setting) for setting in self.settings])


def table_path(model: str, group_size: int) -> Path:
    """Where a table lies."""
    return DIRECTORY / f"{model}-g{group_size}.npz"


def tables(model: str = "*") -> dict[str, Truth]:
    """Every table of a model, or of all models, by the name of its file."""
    paths = sorted(DIRECTORY.glob(f"{model}-g*.npz"))
    named = {path.stem: path.stem.rsplit("-g", 1) for path in paths}
    return {name: load(model, int(group_size)) for name, (model, group_size) in named.items()}


def save(truth: Truth) -> Path:
    """Write a table, compressed; sums in float32, whose error is below 1e-5 nats per token."""
    DIRECTORY.mkdir(exist_ok=True)
    arrays: dict[str, NDArray[np.generic]] = {
        "settings": np.array([[getattr(setting, name) for name in SEARCHED] for setting in truth.settings]),
        "presets": np.array(truth.presets),
        "group_size": np.array(truth.group_size),
        "n_calib": np.array(truth.space.sizes("n_calib")),
        "loss": truth.loss,
        "log_gain": truth.log_gain,
        "sources": np.array([text.source for text in truth.texts]),
    }
    for number, text in enumerate(truth.texts):
        for name in SUMS:
            if getattr(text, name) is not None:
                arrays[f"{name}{number}"] = getattr(text, name).astype(np.float32)
        arrays |= {f"{name}{number}": getattr(text, name) for name in ("tokens", "clusters")}
    path = table_path(truth.model, truth.group_size)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def load(model: str, group_size: int) -> Truth:
    """The inverse of `save`."""
    with np.load(table_path(model, group_size)) as arrays:
        n_calib = ",".join(str(size) for size in arrays["n_calib"])
        space = make_space(Setting(), {"group_size": int(arrays["group_size"]), "n_calib": n_calib})
        settings = [
            replace(space.base, beta=float(beta), tau=float(tau), n_grid=int(n_grid), n_calib=int(samples))
            for beta, tau, n_grid, samples in arrays["settings"]
        ]
        return Truth(
            model=model,
            space=space,
            settings=tuple(settings),
            presets=int(arrays["presets"]),
            loss=arrays["loss"],
            log_gain=arrays["log_gain"],
            texts=tuple(
                Text(
                    source=str(source),
                    tokens=arrays[f"tokens{number}"],
                    clusters=arrays[f"clusters{number}"],
                    **{
                        name: arrays[f"{name}{number}"].astype(np.float64)
                        for name in SUMS
                        if f"{name}{number}" in arrays
                    },
                )
                for number, source in enumerate(arrays["sources"])
            ),
        )


def drawn(space: Space, count: int, seed: int = 0) -> tuple[list[Setting], int]:
    """The presets and `count` Sobol settings of a space, and how many are presets."""
    preset_settings = [setting for _, setting in presets(space)]
    return [*preset_settings, *itertools.islice(sobol(space, seed), count)], len(preset_settings)


def said(phase: str, done: int, total: int) -> None:
    """Progress of settings, not of their phases."""
    if phase.startswith("measuring"):
        print(f"\r{phase} {done}/{total}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--name", help="of the table (default: the model's)")
    parser.add_argument("--calib-data", help="default: the first of --data")
    parser.add_argument("--data", default=BUNDLED_TEXTS)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--n-calib", default="16..128")
    parser.add_argument("--group-sizes", default="32,64,128,256")
    parser.add_argument("--settings", type=int, default=400)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    paths = Paths(options.cache) if options.cache else Paths.default()
    sources = options.data.split(",")
    most = max(make_space(Setting(), {"n_calib": options.n_calib}).sizes("n_calib"))
    length = options.seq_len
    plan = BenchPlan(
        model=ModelPlan(name=options.model),
        calibration=TextPlan(source=options.calib_data or sources[0], part="calibration", count=most, length=length),
        data=tuple(
            TextPlan(source=source, part="tuning", count=options.sequences, length=length) for source in sources
        ),
    )
    bench, texts = load_bench(plan, paths)
    store = ResultStore(paths.results)
    for group_size in map(int, options.group_sizes.split(",")):
        space = make_space(Setting(), {"group_size": group_size, "n_calib": options.n_calib})
        settings, preset_count = drawn(space, options.settings)
        plain = replace(Setting(), group_size=group_size)
        beside = [None, *(replace(plain, method=method) for method in REFERENCE_METHODS)]
        results = measure_all(bench, store, [*beside, *settings], texts, said)
        truth = assemble(options.name or options.model, space, settings, preset_count, results, texts)
        print(f"\n{save(truth)}: {len(settings)} settings, {len(texts[0])} sequences per text", flush=True)


def assemble(
    model: str,
    space: Space,
    settings: list[Setting],
    preset_count: int,
    results: list[list[TrialResult]],
    texts: list[Sequences],
) -> Truth:
    """A table from what was measured of full precision, of the references and of the settings, in this order."""
    beside = 1 + len(REFERENCE_METHODS)
    losses = [
        np.array([(layer.nearest_loss, layer.loss) for layer in measured[0].layers]) for measured in results[beside:]
    ]
    gains = [np.log(np.maximum(loss[:, 1], 1e-30) / np.maximum(loss[:, 0], 1e-30)).mean() for loss in losses]
    sums = [
        {measure: np.array([_sums(measured[number], measure) for measured in results]) for measure in MEASURES}
        for number in range(len(texts))
    ]
    return Truth(
        model=model,
        space=space,
        settings=tuple(settings),
        presets=preset_count,
        loss=np.array([loss.sum(axis=0) for loss in losses]),
        log_gain=np.array(gains),
        texts=tuple(
            Text(
                source=text.source,
                tokens=np.array([int(mask.sum()) for mask in text.scored]),
                clusters=np.array(text.clusters),
                nll=values["nll"][beside:],
                references=values["nll"][:beside],
                kl=values["kl"][beside:],
                kl_references=values["kl"][:beside],
            )
            for text, values in zip(texts, sums, strict=True)
        ),
    )


def _sums(result: TrialResult, measure: Measure) -> NDArray[np.float64]:
    assert result.score is not None
    return result.score.of(measure).numpy()


if __name__ == "__main__":
    main()
