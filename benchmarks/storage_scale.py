"""What a study's own bookkeeping costs per trial, as the study grows: asking, reporting, telling.

No model is run: results are made up, everything else is what a worker does - take the lock, look for dead workers,
read the study, propose, claim, report four looks against the incumbent, keep the result, tell. Milliseconds per
trial at 10, 100, 1,000 and 5,000 trials, on SQLite and on a real PostgreSQL, for the GP and the TPE sampler; then
with 1 to 32 simulated workers on PostgreSQL, each a process whose trials take a given time.

    python benchmarks/storage_scale.py --json scale.json
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import optuna  # noqa: E402
import torch  # noqa: E402
from optuna.trial import TrialState, create_trial  # noqa: E402

from benchmarks.servers import postgresql  # noqa: E402
from hpo.search.pruners.registry import Pruning  # noqa: E402
from hpo.space.space import Space, make_space  # noqa: E402
from hpo.study import attributes as names  # noqa: E402
from hpo.study.contract import CalibrationContract, Contract, ModelContract, TextContract  # noqa: E402
from hpo.study.owner import Owner  # noqa: E402
from hpo.study.record import read_study  # noqa: E402
from hpo.workers.preparation import open_study  # noqa: E402
from hpo.workers.queue import Queue  # noqa: E402
from hpo.workers.worker import Budget, Settled, Worker  # noqa: E402
from objectives.progress import silent  # noqa: E402
from objectives.results import save_result  # noqa: E402
from objectives.scoring import Score, look_sizes  # noqa: E402
from objectives.text.sequences import Sequences  # noqa: E402
from objectives.trial import TrialResult  # noqa: E402
from quant.plan import Plan  # noqa: E402
from quant.setting import Setting  # noqa: E402
from quant.sizes import ModelSize  # noqa: E402
from storage.results import ResultStore  # noqa: E402
from storage.studies.opening import open_storage  # noqa: E402
from storage.typed_json import encode  # noqa: E402

SEQUENCES, TOKENS, TRIAL_SECONDS = 64, 511, 30.0
MADE = "made"
SPACE = make_space(Setting(), {})
TEXT = Sequences(
    source="none",
    ids=tuple(torch.zeros(2, dtype=torch.int64) for _ in range(SEQUENCES)),
    scored=tuple(torch.ones(2, dtype=torch.bool) for _ in range(SEQUENCES)),
    clusters=tuple(range(SEQUENCES)),
)


def score_of(setting: Setting, seed: int) -> Score:
    """A made-up measurement."""
    noise = np.random.default_rng(seed).normal(0, 0.02, SEQUENCES)
    mean = 3.5 + 0.3 * (setting.beta - 0.3) ** 2 + 0.02 * abs(math.log(setting.tau / 2.5)) + 1 / setting.group_size
    return Score(
        nll=torch.from_numpy(TOKENS * (mean + noise)),
        tokens=torch.full((SEQUENCES,), TOKENS),
        clusters=torch.arange(SEQUENCES),
    )


def result_of(setting: Setting, seed: int) -> TrialResult:
    size = ModelSize(weights=10**8, codes=5e7, scales=3125e3, rest=0.0, outside=46875e3)
    return TrialResult(
        plan=Plan.uniform(setting),
        outcome="complete",
        score=score_of(setting, seed),
        size=size,
        layers=(),
        seconds={"calibrate": 1.0, "quantize": 10.0, "score": 20.0},
        peak_bytes=10**9,
    )


def made_contract() -> Contract:
    """The contract of a study of which nothing is measured."""
    fingerprint = TEXT.fingerprint()
    return Contract(
        model=ModelContract(
            name=MADE, commit=None, fingerprint=MADE, dtype="float32", stored_as="float32", input_scales=MADE
        ),
        calibration=CalibrationContract(source=TEXT.source, sequences=SEQUENCES, fingerprint=fingerprint),
        tuning=TextContract(
            source=TEXT.source, sequences=SEQUENCES, fingerprint=fingerprint, protocol="packed", seq_len=TOKENS + 1
        ),
        space=SPACE,
        seed=0,
    )


def fill(study: optuna.Study, store: ResultStore, space: Space, count: int) -> None:
    """Bring a study to `count` trials, two thirds of them complete."""
    random = np.random.default_rng(len(study.trials))
    # One file stands for the values of all of them.
    save_result(store, MADE, result_of(Setting(), 0))
    for number in range(len(study.trials), count):
        setting = space.at(random.random(len(space.dimensions)).tolist())
        result = result_of(setting, number)
        assert result.score is not None
        complete = number % 3 > 0
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                value=result.score.perplexity if complete else None,
                params=space.params(setting),
                distributions=space.distributions,
                intermediate_values={size: 30.0 for size in look_sizes(SEQUENCES)},
                user_attrs={
                    names.SETTING: setting.as_dict(),
                    names.ORIGIN: "gp",
                    names.OWNER: encode(Owner.this()),
                    names.RESULT: MADE,
                    names.TOKENS: SEQUENCES * TOKENS,
                    names.OUTCOME: "complete",
                    names.BITS: 4.25,
                    names.BYTES: 10**8,
                    names.PEAK: 10**9,
                    names.SECONDS: dict(result.seconds),
                    names.VERSIONS: {"praqtune": "0.1.0", "torch": "2.13.0"},
                    names.BEAT: {"count": 3, "phase": "telling", "done": 0, "total": 1, "at": "2026-01-01T00:00:00"},
                    **({} if complete else {names.ESTIMATE: vars_of(30.0)}),
                },
            )
        )


def vars_of(perplexity: float) -> dict[str, float]:
    return {"mean_nll": math.log(perplexity), "standard_error": 0.5 / perplexity, "degrees": 50.0, "against": 1}


def worker_on(study: optuna.Study, storage: Any, store: ResultStore, sampler: str, name: str = "w0") -> Worker:
    queue = Queue(study=study, storage=storage, space=SPACE, owner=Owner.this(name=name))
    fields: dict[str, Any] = {"sampler": sampler, "pruning": Pruning(), "seed": 0, "bench": None}
    return Worker(queue=queue, store=store, tuning=TEXT, listen=lambda event: None, progress=silent, **fields)


def one_trial(worker: Worker, budget: Budget, pause: float = 0.0) -> dict[str, float]:
    """Seconds that each part of a trial's bookkeeping takes."""
    started = time.perf_counter()
    trial = worker.ask(budget, Settled())
    proposed = time.perf_counter()
    if isinstance(trial, Settled):
        return {}
    setting = Setting(**trial.user_attrs[names.SETTING])
    result = result_of(setting, trial.number)
    assert result.score is not None
    time.sleep(pause)
    reporting = time.perf_counter()
    for size in look_sizes(SEQUENCES)[:-1]:
        look = result.score.first(size)
        worker.ledger.look(trial, look)
        worker.ledger.is_worth(trial, setting, look)
    reported = time.perf_counter()
    save_result(worker.store, f"run-{trial.number}", result)
    worker.ledger.tell(trial, setting, result, f"run-{trial.number}")
    return {"ask": proposed - started, "report": reported - reporting, "tell": time.perf_counter() - reported}


def grown(url: str, home: Path, sampler: str, sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Milliseconds per trial at each size."""
    storage, store = open_storage(url), ResultStore(home / sampler)
    study = open_study(storage, f"scale-{sampler}", made_contract())
    rows = []
    for size in sizes:
        fill(study, store, SPACE, size)
        worker = worker_on(study, storage, store, sampler)
        one_trial(worker, Budget(trials=10**6))
        parts = [one_trial(worker, Budget(trials=10**6)) for _ in range(repeats)]
        row = {name: round(1000 * statistics.median(part[name] for part in parts), 1) for name in parts[0]}
        total = sum(row.values())
        rows.append({"trials": size, **row, "total": round(total, 1), "share": total / 1000 / TRIAL_SECONDS})
    return rows


def simulated(url: str, home: Path, name: str, trials: int, pause: float, results: Any) -> None:
    """One worker of many."""
    storage = open_storage(url)
    study = optuna.load_study(storage=storage, study_name="many")
    worker = worker_on(study, storage, ResultStore(home / "many"), "gp", name)
    budget, parts = Budget(trials=trials), []
    while part := one_trial(worker, budget, pause):
        parts.append(part)
    results.put(parts)


def together(url: str, home: Path, workers: int, trials_each: int, pause: float) -> dict[str, Any]:
    """Many workers at once on one study of a hundred trials."""
    storage = open_storage(url)
    if "many" in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name="many", storage=storage)
    study = open_study(storage, "many", made_contract())
    fill(study, ResultStore(home / "many"), SPACE, 100)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    goal = 100 + workers * trials_each
    started = time.perf_counter()
    arguments = (url, home)
    processes = [
        context.Process(target=simulated, args=(*arguments, f"w{index}", goal, pause, results))
        for index in range(workers)
    ]
    for process in processes:
        process.start()
    parts = [part for _ in processes for part in results.get()]
    for process in processes:
        process.join()
    seconds = time.perf_counter() - started
    record = read_study(study)
    ended = sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials)
    settings = {trial.setting for trial in record.trials[100:]}
    return {
        "workers": workers,
        "trial_seconds": pause,
        **{name: round(1000 * statistics.median(part[name] for part in parts), 1) for name in parts[0]},
        "slowest_ask": round(1000 * max(part["ask"] for part in parts), 1),
        "budget_missed_by": ended - goal,
        "settings_twice": workers * trials_each - len(settings),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 5000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 32])
    parser.add_argument("--trial-seconds", type=float, default=10.0, help="of a simulated trial")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    measured: dict[str, Any] = {"one worker": [], "many workers": []}
    with tempfile.TemporaryDirectory(prefix="praqtune-scale-") as name, postgresql(Path(name) / "pg") as url:
        home = Path(name)
        for backend, address in (("sqlite", f"sqlite:///{home}/study.db"), ("postgresql", url)):
            for sampler in ("gp", "tpe"):
                for row in grown(address, home / backend, sampler, options.sizes, options.repeats):
                    measured["one worker"].append({"storage": backend, "sampler": sampler, **row})
                    print(json.dumps(measured["one worker"][-1]), flush=True)
        for workers in options.workers:
            measured["many workers"].append(together(url, home, workers, 3, options.trial_seconds))
            print(json.dumps(measured["many workers"][-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
