"""The ask/tell loop on real trials of a tiny model: every trial ends, nothing is lost, nothing is done twice."""

import itertools
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from hpo.search.proposal import STARTUP_TRIALS
from hpo.search.pruners.pruner import Case, Rule
from hpo.search.pruners.registry import PRUNERS, Pruning
from hpo.search.samplers.registry import SAMPLERS
from hpo.search.stopping import Stopping
from hpo.search.twins import Noise, unknown
from hpo.space.space import Space, make_space
from hpo.study.attributes import CONTRACT as CONTRACT_KEY
from hpo.study.attributes import OWNER, REFERENCES
from hpo.study.events import Event, Finished, Looked, Notice
from hpo.study.objective import KL, Objective
from hpo.study.owner import Owner
from hpo.study.record import TrialRecord, read_study
from hpo.workers import measuring
from hpo.workers import worker as worker_module
from hpo.workers.administration import retry_failed
from hpo.workers.interrupts import Interrupts, Terminated
from hpo.workers.ledger import Ledger
from hpo.workers.measuring import measure_references, require_same_machine_result
from hpo.workers.preparation import open_study
from hpo.workers.queue import Queue
from hpo.workers.worker import Budget, Worker
from objectives.errors import InputError, RunError
from objectives.progress import Progress, silent
from objectives.quantization import model_size
from objectives.results import keep_measured, load_result, measurement_key
from objectives.scoring import Score
from objectives.teacher import Teacher
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult
from quant.plan import Plan
from quant.recipes import recipe_fields
from quant.setting import Setting
from storage.errors import StorageError
from storage.results import ResultStore
from storage.studies.opening import open_storage
from storage.typed_json import encode
from tests.hpo.made_studies import CONTRACT
from tests.objectives import tiny

SPACE = make_space(Setting(n_calib=8), {"n_calib": 8, "group_size": "32,64", "n_grid": "2..4"})
TEXT = tiny.sequences([24] * 40, seed=9)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path_factory.mktemp("cache"))


Make = Callable[..., Worker]


@pytest.fixture
def make(bench: Bench, tmp_path: Path) -> Make:
    """Makes workers; without a name they work on one study."""

    def worker(name: str = "s", listen: Callable[[Event], None] = lambda event: None, **changes: Any) -> Worker:
        storage = open_storage(f"journal:{tmp_path}/{name}.log")
        study = open_study(storage, name, CONTRACT)
        fields: dict[str, Any] = {
            "queue": Queue(study=study, storage=storage, space=SPACE),
            "store": ResultStore(tmp_path / f"results-{name}"),
            "bench": bench,
            "tuning": TEXT,
            "sampler": "gp",
            "pruning": Pruning(),
            "seed": 0,
            "listen": listen,
            "progress": silent,
        }
        return Worker(**{**fields, **changes})

    return worker


@pytest.mark.parametrize(
    "pruner", [pytest.param(name, marks=pytest.mark.slow) if place else name for place, name in enumerate(PRUNERS)]
)
def test_a_study_keeps_its_budget_and_every_trial_ends(make: Make, pruner: str) -> None:
    """Twelve trials, complete or pruned, each with setting, outcome, sizes, seconds and values; no setting twice."""
    events: list[Event] = []
    worker = make(pruning=Pruning(name=pruner), listen=events.append)
    worker.work(Budget(trials=12))
    record = read_study(worker.study)
    assert len(record.trials) == 12
    assert {trial.state for trial in record.trials} <= {"COMPLETE", "PRUNED"}
    assert len({trial.setting for trial in record.trials}) == 12
    for trial in record.trials:
        assert trial.setting is not None
        assert SPACE.setting(trial.params) == trial.setting
        assert trial.bits_per_weight is not None
        assert {"quantize", "score"} <= set(trial.seconds)
        values = load_result(worker.store, str(trial.result)).score
        assert values is not None
        assert int(values.tokens.sum()) == trial.tokens
        if trial.state == "COMPLETE":
            assert values.perplexity == pytest.approx(trial.perplexity)
            assert len(values.nll) == len(TEXT)
    finished = [event for event in events if isinstance(event, Finished)]
    assert [event.done for event in finished] == list(range(1, 13))
    assert finished[-1].best == record.best
    assert any(isinstance(event, Looked) for event in events)


def test_a_trial_is_told_the_value_of_the_objective(make: Make) -> None:
    """Of divergence that is its mean: running values and estimates are of it, and perplexity is kept beside it."""
    events: list[Event] = []
    worker = make(objective=KL, listen=events.append, pruning=Pruning(error=0.4))
    worker.study.set_user_attr(CONTRACT_KEY, encode(replace(CONTRACT, objective="kl")))
    worker.work(Budget(trials=8))
    record = read_study(worker.study)
    looks = [event for event in events if isinstance(event, Looked)]
    for trial in record.complete:
        values = load_result(worker.store, str(trial.result)).score
        assert values is not None
        assert trial.value == trial.kl == values.mean_kl
        assert trial.perplexity == pytest.approx(values.perplexity)
        assert trial.running[8] == pytest.approx(values.first(8).mean_kl)
        assert {event.value for event in looks if event.trial.number == trial.number} <= set(trial.running.values())
    assert record.pruned
    for trial in record.pruned:
        assert trial.value is None
        assert trial.estimate is not None
        assert trial.estimate.mean_kl is not None
        assert trial.estimate.low <= trial.estimate.value <= trial.estimate.high


@dataclass(frozen=True, kw_only=True)
class Second:
    """A pruner of somebody else: whatever has an incumbent ends at its second look."""

    seen: list[int]

    def in_optuna(self, rule: Rule, sequences: int) -> optuna.pruners.BasePruner:
        return optuna.pruners.NopPruner()

    def reports(self, look: Score, total: int, objective: Objective) -> dict[int, float]:
        return {len(look.nll): float(total)}

    def should_prune(self, case: Case, rule: Rule) -> bool:
        self.seen.append(len(case.look.nll))
        return len(case.look.nll) == 2 * rule.first_look and case.incumbent() is not None


def test_a_pruner_that_was_registered_gives_trials_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in the table is enough: it can be chosen, is named where others are, is asked, and reports."""
    seen: list[int] = []
    monkeypatch.setitem(PRUNERS, "second", Second(seen=seen))
    with pytest.raises(InputError, match="choose one of paired, wilcoxon, median, hyperband, none, second"):
        Pruning(name="third")
    worker = make(pruning=Pruning(name="second", first_look=4))
    worker.work(Budget(trials=6))
    record = read_study(worker.study)
    # The first trial of each of two size classes has no incumbent.
    assert (len(record.complete), len(record.pruned)) == (2, 4)
    assert {tuple(trial.running.items()) for trial in record.pruned} == {((4, 40.0), (8, 40.0))}
    assert all(trial.estimate is not None for trial in record.pruned)
    assert set(seen) == {4, 8, 16, 32}


@dataclass(frozen=True, kw_only=True)
class Backwards:
    """A sampler of somebody else: the space from its end."""

    learns: bool = False

    def settings(
        self, space: Space, trials: Sequence[TrialRecord], seed: int, noise: Noise = unknown
    ) -> Iterator[Setting]:
        return iter([space.at([(9 - step) / 10] * len(space.dimensions)) for step in range(10)])


@pytest.mark.parametrize("learns", [False, True])
def test_a_sampler_that_was_registered_chooses(make: Make, monkeypatch: pytest.MonkeyPatch, learns: bool) -> None:
    """A line in the table is enough; one that learns is asked after start-up; what it repeats is left out."""
    sampler = Backwards(learns=learns)
    monkeypatch.setitem(SAMPLERS, "backwards", sampler)
    ours = list(sampler.settings(SPACE, [], 0))
    worker = make(sampler="backwards", pruning=Pruning(name="none"))
    worker.work(Budget(trials=9))
    trials = read_study(worker.study).trials
    start_up = STARTUP_TRIALS if learns else 0
    tried = [trial.setting for trial in trials]
    assert len(set(tried)) == 9
    assert tried[start_up:] == [setting for setting in ours if setting not in tried[:start_up]][: 9 - start_up]
    assert not set(tried[:start_up]) & set(ours)
    assert {trial.origin for trial in trials} == {"backwards"}


@pytest.mark.slow
def test_one_seed_gives_identical_trials_also_when_the_study_was_interrupted(make: Make) -> None:
    """A study of nine trials equals one of four that went on to nine; another seed gives another one."""
    whole, parts, other = make("whole"), make("parts"), make("other", seed=1)
    whole.work(Budget(trials=9))
    parts.work(Budget(trials=4))
    make("parts").work(Budget(trials=9))
    other.work(Budget(trials=4))

    def trials(worker: Worker) -> list[object]:
        found = read_study(worker.study).trials
        return [(trial.setting, trial.state, trial.perplexity, trial.running, trial.estimate) for trial in found]

    assert trials(whole) == trials(parts)
    assert trials(whole)[:4] != trials(other)


def test_weights_that_were_scored_are_not_scored_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever setting gave them: the trials are those of a study that scored, each with its twin's name."""
    scored, spared = (make(name, pruning=Pruning(name="none")) for name in ("scored", "spared"))
    scored.work(Budget(trials=2))
    for number, trial in enumerate(read_study(scored.study).trials):
        keep_measured(spared.store, spared.bench, TEXT, f"other-{number}", load_result(scored.store, str(trial.result)))
    monkeypatch.setattr("objectives.trial.score", lambda *_, **__: pytest.fail("scored"))
    spared.work(Budget(trials=2))
    one, other = (read_study(worker.study) for worker in (scored, spared))
    assert [trial.running for trial in one.trials] == [trial.running for trial in other.trials]
    assert [trial.perplexity for trial in one.trials] == [trial.perplexity for trial in other.trials]
    first, second = other.trials
    twin = replace(second, number=2, fingerprint=first.fingerprint)
    assert other.twin_of(first) is other.twin_of(second) is None
    assert replace(other, trials=(*other.trials, twin)).twin_of(twin) == first
    assert other.twin_of(replace(twin, fingerprint=None)) is None


def test_pruned_trials_save_tokens_and_carry_estimates(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that is given up after the first look says what it would probably have scored, against whom."""
    monkeypatch.setattr("hpo.search.pruners.paired.is_hopeless", lambda look, incumbent, rule: True)
    worker = make()
    worker.work(Budget(trials=6))
    record = read_study(worker.study)
    first = {size: next(t for t in record.trials if t.group_size == size) for size in (32, 64)}
    assert {trial.number for trial in record.complete} == {trial.number for trial in first.values()}
    for trial in record.pruned:
        assert trial.estimate is not None
        assert trial.estimate.against == first[int(trial.group_size or 0)].number
        assert trial.estimate.low <= trial.estimate.value <= trial.estimate.high
        assert list(trial.running) == [8]
        assert trial.tokens == 8 * 23
    assert record.tokens_saved == pytest.approx(4 / 6 * (1 - 8 / 40))


def test_a_trial_whose_rivals_values_are_damaged_is_measured_to_the_end(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is nobody to compare it with: a notice says so, and nothing fails."""
    monkeypatch.setattr("hpo.search.pruners.paired.is_hopeless", lambda look, incumbent, rule: True)
    events: list[Event] = []
    make().work(Budget(trials=3))
    for file in (tmp_path / "results-s").glob("*.safetensors"):
        file.write_bytes(b"no result")
    worker = make(listen=events.append)
    worker.work(Budget(trials=4))
    assert read_study(worker.study).trials[3].state == "COMPLETE"
    assert any("not compared with a trial" in event.text for event in events if isinstance(event, Notice))


def test_an_interrupt_hands_the_running_trial_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits with its number, the model has its weights again, and the next worker begins with it."""
    worker = make()
    worker.work(Budget(trials=2))
    before = tiny.state(worker.bench.model.module)

    def interrupted(look: Score, *others: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "is_worth", lambda self, trial, setting, look: interrupted(look))
        with pytest.raises(KeyboardInterrupt):
            worker.work(Budget(trials=5))
    assert [trial.state for trial in read_study(worker.study).trials] == ["COMPLETE", "COMPLETE", "WAITING"]
    assert tiny.same_bits(before, tiny.state(worker.bench.model.module))
    make().work(Budget(trials=5))
    record = read_study(worker.study)
    assert len(record.trials) == 5
    assert all(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials)


@pytest.mark.parametrize("transaction", [10, 20, 25, 30])
def test_a_signal_inside_a_transaction_hands_the_running_trial_back(
    make: Make, tmp_path: Path, transaction: int
) -> None:
    """Whatever a worker was writing when it was told to end is written, so the trial can be handed back after it."""
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    assert isinstance(storage, RDBStorage)
    study = open_study(storage, "s", CONTRACT)
    interrupts, transactions = Interrupts(), itertools.count(1)

    def stop(connection: object) -> None:
        # A heartbeat writes in a thread of its own.
        if current_thread() is main_thread() and next(transactions) == transaction:
            os.kill(os.getpid(), signal.SIGTERM)

    worker = make(queue=Queue(study=study, storage=storage, space=SPACE), interrupts=interrupts)
    worker.work(Budget(trials=1))
    sqlalchemy.event.listen(storage.engine, "commit", stop)
    with pytest.raises(Terminated), interrupts.watched():
        worker.work(Budget(trials=3))
    states = [trial.state for trial in read_study(study).trials]
    assert "RUNNING" not in states
    assert states.count("COMPLETE") <= 2


def test_a_result_that_was_kept_but_not_told_is_not_measured_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies between the two costs nothing: the trial is told what is known."""
    worker = make()
    monkeypatch.setattr(Ledger, "tell", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        worker.work(Budget(trials=1))
    monkeypatch.undo()
    monkeypatch.setattr(worker_module, "run_trial", lambda *arguments: pytest.fail("measured again"))
    make().work(Budget(trials=1))
    (trial,) = read_study(worker.study).trials
    assert trial.state == "COMPLETE"
    assert list(trial.running) == [8, 16, 32, 40]


@pytest.mark.slow
def test_what_another_study_measured_is_not_measured_again_and_pruned_all_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A study beside one that pruned nothing has the trials that it would have had alone."""
    alone = make("alone")
    alone.work(Budget(trials=8))
    shared = ResultStore(tmp_path / "shared")
    everything, beside = make("everything", pruning=Pruning(name="none"), store=shared), make("beside", store=shared)
    everything.work(Budget(trials=8))
    measured: list[Setting] = []
    run_trial = worker_module.run_trial

    def counted(bench: Bench, plan: Plan, *others: Any) -> TrialResult:
        measured.append(plan.only)
        return run_trial(bench, plan, *others)

    monkeypatch.setattr(worker_module, "run_trial", counted)
    beside.work(Budget(trials=8))
    settings = {trial.setting for trial in read_study(everything.study).trials}
    assert not settings & set(measured)
    assert len(measured) < 8

    def trials(worker: Worker) -> list[object]:
        return [
            (trial.setting, trial.state, trial.perplexity, trial.running) for trial in read_study(worker.study).trials
        ]

    assert trials(alone) == trials(beside)


def test_a_damaged_result_is_measured_again(make: Make, tmp_path: Path) -> None:
    """A notice names the file; nothing stands in the way of the study."""
    first = make("first")
    first.work(Budget(trials=1))
    kept = tmp_path / "results-first" / f"{read_study(first.study).trials[0].result}.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1])
    notices: list[Event] = []
    second = make("second", store=first.store, listen=notices.append)
    second.work(Budget(trials=1))
    assert read_study(second.study).trials[0].perplexity == read_study(first.study).trials[0].perplexity
    assert any("damaged" in str(event) and "measured again" in str(event) for event in notices)
    assert load_result(first.store, kept.stem).score is not None


def test_a_late_result_is_kept_and_told_by_whoever_has_the_trial_now(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was suspended until its trial was taken over tells nothing; its successor measures nothing."""
    notices: list[Event] = []
    worker = make(listen=notices.append)
    run_trial = worker_module.run_trial

    def suspended(bench: Bench, plan: Plan, *others: Any) -> TrialResult:
        result = run_trial(bench, plan, *others)
        (trial,) = worker.study.get_trials(states=(TrialState.RUNNING,))
        worker.queue.storage.set_trial_user_attr(trial._trial_id, OWNER, encode(Owner.this(name="successor")))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "run_trial", suspended)
        patch.setattr(Queue, "others_run", lambda queue: 0)
        worker.work(Budget(trials=1))
    assert any("trial 0 is no longer this worker's" in str(event) for event in notices)
    assert read_study(worker.study).trials[0].state == "RUNNING"
    successor = make()
    assert replace(successor.queue, owner=Owner.this(name="successor")).hand_back() == [0]
    monkeypatch.setattr(worker_module, "run_trial", lambda *arguments: pytest.fail("measured again"))
    successor.work(Budget(trials=1))
    assert read_study(worker.study).trials[0].state == "COMPLETE"


def test_a_storage_that_comes_back_costs_no_result(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is lost when the result is told is waited for; the trial is measured once."""
    notices: list[Event] = []
    worker = make(listen=notices.append)
    tell, lost, measured = optuna.Study.tell, [3], [0]
    run_trial = worker_module.run_trial

    def counted(*arguments: Any) -> TrialResult:
        measured[0] += 1
        return run_trial(*arguments)

    def unreachable(study: optuna.Study, *arguments: Any, **named: Any) -> Any:
        if lost[0]:
            lost[0] -= 1
            raise StorageInternalError("lost") from OperationalError("update", {}, OSError("server closed"))
        return tell(study, *arguments, **named)

    monkeypatch.setattr("storage.studies.retries.FIRST_PAUSE", 0.01)
    monkeypatch.setattr(optuna.Study, "tell", unreachable)
    monkeypatch.setattr(worker_module, "run_trial", counted)
    worker.work(Budget(trials=1))
    assert read_study(worker.study).trials[0].state == "COMPLETE"
    assert measured == [1]
    assert sum("the storage cannot be reached (server closed)" in str(event) for event in notices) == 1


def test_most_of_twenty_failures_stop_a_study(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One success at first does not keep a broken study alive."""
    worker = make(sampler="random", pruning=Pruning(name="none"))
    worker.work(Budget(trials=2))
    monkeypatch.setattr(worker_module, "run_trial", results("non-finite"))
    with pytest.raises(RunError, match="of the last 20 trials of study 's' failed"):
        worker.work(Budget(trials=40))
    assert len(read_study(worker.study).trials) == 20


def results(outcome: str, score: Score | None = None) -> Callable[..., TrialResult]:
    """A trial that ends in `outcome` whatever is tried."""

    def run(bench: Bench, plan: Plan, *others: object) -> TrialResult:
        size = model_size(bench.model, bench.blocks, plan)
        return TrialResult(plan=plan, outcome=outcome, score=score, size=size, layers=(), seconds={}, peak_bytes=10**9)

    return run


@pytest.mark.parametrize(
    ("outcome", "score", "reason"),
    [
        ("non-finite", None, "NaN or Inf"),
        ("out-of-memory", None, "out of memory at a peak of 1.00 GB"),
        (
            "complete",
            Score(nll=torch.full((40,), 1e6), tokens=torch.full((40,), 23), clusters=torch.arange(40)),
            "perplexity is infinite",
        ),
    ],
)
def test_a_trial_without_a_value_fails_with_its_reason_and_five_of_them_end_the_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, outcome: str, score: Score | None, reason: str
) -> None:
    """Every worker finds the same, and what can be done is said."""
    worker = make()
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "run_trial", results(outcome, score))
        with pytest.raises(RunError, match=f"all 5 trials of study 's' failed; the last: {outcome}.*{reason}"):
            worker.work(Budget(trials=20))
    record = read_study(worker.study)
    assert [(trial.state, trial.outcome) for trial in record.trials] == [("FAIL", outcome)] * 5
    assert record.best is None
    with pytest.raises(RunError, match="`study retry s`"):
        make().work(Budget(trials=20))


def test_failed_settings_are_tried_again_when_what_was_in_the_way_is_gone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else, once, and beside the budget."""
    worker = make()
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "run_trial", results("non-finite"))
        with pytest.raises(RunError, match="all 5 trials"):
            worker.work(Budget(trials=20))
    assert retry_failed(worker.study, worker.queue.storage) == [0, 1, 2, 3, 4]
    make().work(Budget(trials=7))
    record = read_study(worker.study)
    assert record.best is not None
    assert len(record.counted) == 7
    assert [trial.setting for trial in record.trials[:5]] == [trial.setting for trial in record.trials[5:10]]
    assert retry_failed(worker.study, worker.queue.storage) == []


def test_a_mistake_of_ours_fails_the_trial_with_its_traceback_and_stops_the_worker(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to guess where it was."""
    monkeypatch.setattr(worker_module, "run_trial", lambda *arguments: {}["absent"])
    worker = make()
    with pytest.raises(KeyError):
        worker.work(Budget(trials=3))
    (trial,) = read_study(worker.study).trials
    assert (trial.state, trial.outcome) == ("FAIL", "error")
    assert "KeyError: 'absent'" in str(trial.reason)


def test_a_full_disk_hands_the_trial_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk refuses is no property of the setting."""

    def refuse(*arguments: object) -> None:
        raise StorageError("no space")

    worker = make()
    monkeypatch.setattr(worker_module, "keep_measured", refuse)
    with pytest.raises(StorageError):
        worker.work(Budget(trials=3))
    assert [trial.state for trial in read_study(worker.study).trials] == ["WAITING"]


def test_a_space_that_is_used_up_ends_the_run(make: Make) -> None:
    """No budget makes a setting be tried twice."""
    worker = make()
    small = make_space(Setting(n_calib=8), {"n_calib": 8, "group_size": 64, "n_grid": "2..4", "beta": 0.5, "tau": 1})
    limited = make(queue=Queue(study=worker.study, storage=worker.queue.storage, space=small))
    limited.work(Budget(trials=50))
    assert len(read_study(worker.study).trials) == 3


def test_a_study_whose_patience_has_ended_is_over(make: Make) -> None:
    """Two trials in a row without an improvement end it, also when it is begun again."""
    make(stopping=Stopping(patience=2)).work(Budget(trials=40))
    worker = make(stopping=Stopping(patience=2))
    trials = read_study(worker.study).trials
    assert 3 <= len(trials) < 40
    worker.work(Budget(trials=40))
    assert read_study(worker.study).trials == trials


def test_nothing_begins_after_the_deadline(make: Make) -> None:
    """A timeout of nothing runs nothing."""
    worker = make()
    worker.work(Budget(trials=5, deadline=-math.inf))
    assert read_study(worker.study).trials == ()


def test_references_are_measured_once_and_at_every_group_size(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision first; a second time everything is read from the store."""
    worker = make()
    measured = measure_references(worker.bench, worker.store, SPACE, TEXT, silent)
    assert [(reference.name, reference.group_size) for reference in measured] == [
        ("full precision", None),
        *((method, size) for size in (32, 64) for method in ("rtn", "gw-awq", "gwh-praq-v1")),
    ]
    monkeypatch.setattr("hpo.workers.measuring.score_all", lambda *arguments: pytest.fail("scored again"))
    assert measure_references(worker.bench, worker.store, SPACE, TEXT, silent) == measured


def test_the_steps_to_a_recipe_are_measured_where_the_study_has_not(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearest rounding and the method are references; every ingredient changes what is measured; nothing twice."""
    worker = make()
    references = measure_references(worker.bench, worker.store, SPACE, TEXT, silent)
    worker.study.set_user_attr(REFERENCES, encode(references))
    record = read_study(worker.study)
    recipe = recipe_fields({"method": "gw-awq+full+range+alpha+gptq"})
    setting = Setting(**recipe, n_calib=8, group_size=32)
    scored: list[str] = []
    score_all = measuring.score_all

    def counted(
        module: torch.nn.Module, text: Sequences, label: str, progress: Progress, teacher: Teacher | None
    ) -> Score:
        scored.append(label)
        return score_all(module, text, label, progress, teacher)

    monkeypatch.setattr(measuring, "score_all", counted)
    steps = measuring.measure_steps(worker.bench, worker.store, record, setting, TEXT, silent)
    assert [step.name for step in steps] == ["rtn", "gw-awq", "+full", "+range", "+alpha", "+gptq"]
    assert steps[-1].setting == setting
    assert len(scored) == 4
    assert len({step.perplexity for step in steps}) == len(steps)
    assert measuring.measure_steps(worker.bench, worker.store, record, setting, TEXT, silent) == steps
    assert len(scored) == 4


def names(worker: Worker, method: str, **given: object) -> list[tuple[str, str]]:
    """What is measured beside a study of that method, with its size class."""
    space = make_space(Setting(method=method, n_calib=8), {"n_calib": 8, **given})
    measured = measure_references(worker.bench, worker.store, space, TEXT, silent)
    return [(reference.name, str(reference.size_class)) for reference in measured[1:]]


def test_rows_with_one_scale_have_references_of_at_most_their_bits(make: Make) -> None:
    """Groups need more bits, so nothing in groups is measured beside them."""
    row = "one scale per row"
    for method in ("awq", "praq-real"):
        assert names(make(), method, n_grid=3) == [("rtn-channel", row), ("awq", row)]


def test_kept_rows_are_measured_against_the_plain_choice_and_against_groups_of_no_more_bits(make: Make) -> None:
    """Each share has awq-mixed at that share; where the memory of a group size is reached, the methods in groups."""
    worker = make()
    found = names(worker, "praq-mixed", keep_ratio="0.02,0.12")
    assert found[:2] == [("awq-mixed", f"one scale per row, {share} % of rows in 16 bit") for share in (2, 12)]
    small = model_size(
        worker.bench.model, worker.bench.blocks, Plan.uniform(Setting(method="awq-mixed", keep_ratio=0.02))
    )
    sizes = [size for size in (32, 64) if 4 + 16 / size <= small.bits_per_weight]
    expected = dict.fromkeys((*sizes[:1], 32))
    assert found[2:] == [
        (f"{method} g{size}", f"group size {size}") for size in expected for method in ("rtn", "gw-awq", "gwh-praq-v1")
    ]


def test_kept_rows_are_pruned_against_trials_of_equal_bits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trial of every share is measured to the end, whatever trials with more rows in 16 bit have reached."""
    monkeypatch.setattr("hpo.search.pruners.paired.is_hopeless", lambda look, incumbent, rule: True)
    worker = make()
    space = make_space(Setting(method="praq-mixed", n_calib=8), {"n_calib": 8, "keep_ratio": "0.1,0.2,0.3"})
    mixed = make(queue=Queue(study=worker.study, storage=worker.queue.storage, space=space))
    mixed.work(Budget(trials=9))
    record = read_study(worker.study)
    first: dict[object, int] = {}
    for trial in record.trials:
        first.setdefault(trial.size_class, trial.number)
    assert len(first) > 1
    assert {trial.number for trial in record.complete} == set(first.values())
    assert all(trial.estimate and trial.estimate.against == first[trial.size_class] for trial in record.pruned)


def test_a_machine_that_scores_differently_may_not_join(make: Make) -> None:
    """A mean that moved by more than 0.002 is refused with both values; the same machine is welcome."""
    worker = make()
    full = measure_references(worker.bench, worker.store, SPACE, TEXT, silent)[0]
    stored = load_result(worker.store, str(full.result)).score
    assert stored is not None
    require_same_machine_result(worker.bench, stored, TEXT, silent)
    moved = replace(stored, nll=stored.nll + 0.003 * stored.tokens)
    with pytest.raises(InputError, match=r"nats per token here and .* in the study"):
        require_same_machine_result(worker.bench, moved, TEXT, silent)


def test_equal_work_has_equal_keys_and_other_work_others(bench: Bench) -> None:
    """What a method does not read is no part of its key; text, setting and calibration size are."""
    key = measurement_key(bench, Plan.uniform(Setting(method="rtn", n_calib=8)), TEXT)
    assert key == measurement_key(
        bench, Plan.uniform(Setting(method="rtn", n_calib=8, beta=0.1, tau=1.0, n_grid=3)), TEXT
    )
    others = [
        measurement_key(bench, Plan.uniform(Setting(method="rtn", n_calib=8, group_size=64)), TEXT),
        measurement_key(bench, Plan.uniform(Setting(method="gw-awq", n_calib=8)), TEXT),
        measurement_key(bench, Plan.uniform(Setting(method="gw-awq", n_calib=4)), TEXT),
        measurement_key(bench, Plan.uniform(Setting(method="rtn", n_calib=8)), TEXT[:39]),
        measurement_key(bench, None, TEXT),
    ]
    assert len({key, *others}) == 6
