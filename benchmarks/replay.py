"""Studies replayed on tables of truth: the searches that are compared, and a clock of evaluated tokens.

A search suggests a setting, which snaps to the nearest setting of the table that it has not had; its sequences are
then read from the table, look by look, as a worker would measure them. Ours is the product's own code, `propose` and
its paired pruner; the others are Optuna's samplers and pruners as they come. Every replicate has its own seed and its
own order of the sequences.
"""

import heapq
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState, create_trial

from benchmarks.truth import Text, Truth
from hpo.search.incumbent import Incumbent, estimate, make_incumbent
from hpo.search.proposal import propose
from hpo.search.pruners.pruner import Case
from hpo.search.pruners.registry import Pruning
from hpo.search.stopping import COMPARED, has_converged, median_error
from hpo.search.twins import Noise
from hpo.space.size_class import SizeClass
from hpo.space.space import Space
from hpo.study.attributes import RESULT, SETTING
from hpo.study.objective import PERPLEXITY
from hpo.study.record import TrialRecord, trial_record
from hpo.workers.ledger import MOST_OTHERS
from objectives.scoring import Score, look_sizes
from quant.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One trial of a replay.

    Attributes:
        row: Its setting in the table.
        read: Sequences that were read for it.
        complete: Whether these are all.
        tokens: That the whole study had evaluated when it ended, as a share of one full trial's.
    """

    row: int
    read: int
    complete: bool
    tokens: float


class Search(Protocol):
    """Something that looks for the best setting of a table."""

    def ask(self) -> int | None:
        """The row to measure next; None when there is none left."""

    def go_on(self, row: int, read: int) -> bool:
        """Whether a trial is worth its next sequences."""

    def tell(self, row: int, read: int) -> None:
        """A trial has ended."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """What a replicate searches: a table, its sequences in the replicate's own order."""

    truth: Truth
    text: Text

    @property
    def sequences(self) -> int:
        """Of a full trial."""
        return len(self.text.tokens)

    @property
    def regret(self) -> NDArray[np.float64]:
        """Of every setting: percent of perplexity above the table's best."""
        return np.asarray(100 * np.expm1(self.text.mean_nll - self.text.mean_nll.min()))


def field(truth: Truth, seed: int) -> Field:
    """The table with the sequences of its tuning text in an order of their own."""
    text = truth.texts[0]
    order = np.random.default_rng((seed, 1)).permutation(len(text.tokens))
    return Field(
        truth=truth,
        text=text.ordered(order),
    )


class Snap:
    """Rows of a table by nearness in the unit cube, each given out once."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._free = np.ones(len(truth.settings), dtype=bool)

    def nearest(self, setting: Setting) -> int | None:
        """The nearest row that was not given out yet."""
        if not self._free.any():
            return None
        point = np.array(self._truth.space.fractions(setting))
        distance = np.where(self._free, ((self._truth.points - point) ** 2).sum(axis=1), np.inf)
        return self.take(int(distance.argmin()))

    def take(self, row: int) -> int:
        """Give out this very row."""
        self._free[row] = False
        return row


Proposer = Callable[[Space, list[TrialRecord], int, Noise], Setting | None]


def proposer(sampler: str) -> Proposer:
    """The product's, with one of its samplers."""
    return lambda space, trials, seed, noise: propose(space, trials, sampler, seed, noise)


class Ours:
    """The product: presets first, then what it proposes; the paired pruner."""

    def __init__(
        self,
        field: Field,
        seed: int,
        suggest: Proposer,
        pruning: Pruning,
        with_presets: bool = True,
    ) -> None:
        self._field, self._seed, self._suggest, self._pruning = field, seed, suggest, pruning
        self._snap = Snap(field.truth)
        self.trials: list[TrialRecord] = []
        self._queue = list(range(field.truth.presets)) if with_presets else []

    def ask(self) -> int | None:
        if self._queue:
            row = self._snap.take(self._queue.pop(0))
        else:
            setting = self._suggest(self._field.truth.space, self.trials, self._seed, self._noise)
            nearest = None if setting is None else self._snap.nearest(setting)
            if nearest is None:
                return None
            row = nearest
        self.trials.append(_running(len(self.trials), row, self._field.truth))
        return row

    def go_on(self, row: int, read: int) -> bool:
        look = self._field.text.score(row).first(read)
        case = Case(look=look, incumbent=self._incumbent, optuna_prunes=lambda: False)
        return not self._pruning.pruner.should_prune(case, self._pruning)

    def tell(self, row: int, read: int) -> None:
        number = next(index for index, trial in enumerate(self.trials) if trial.result == str(row))
        score = self._field.text.score(row).first(read)
        if read == self._field.sequences:
            ended = replace(self.trials[number], state="COMPLETE", perplexity=score.perplexity)
        else:
            incumbent = self._incumbent()
            estimated = None if incumbent is None else estimate(score, incumbent)
            ended = replace(self.trials[number], state="PRUNED", estimate=estimated)
        self.trials[number] = ended

    def has_converged(self) -> bool:
        """What `--until converged` asks before every trial."""
        return has_converged(self._field.truth.space, self.trials, self._noise, self._seed)

    def _noise(self, _: SizeClass) -> float:
        return median_error(self._scores(COMPARED))

    def _scores(self, others: int) -> list[Score]:
        """Of the best complete trial, of so many others at most, and of the references; none before one is complete."""
        text = self._field.text
        scores = [text.score(int(trial.result or 0)) for trial in self._complete()[: 1 + others]]
        return [*scores, *(text.reference(number) for number in range(1, len(text.references)))] if scores else []

    def _complete(self) -> list[TrialRecord]:
        complete = [trial for trial in self.trials if trial.state == "COMPLETE"]
        return sorted(complete, key=lambda trial: (trial.perplexity, trial.number))

    def _incumbent(self) -> Incumbent | None:
        if not (scores := self._scores(MOST_OTHERS)):
            return None
        return make_incumbent(self._complete()[0].number, scores[0], scores[1:])


class Until:
    """Ours until a rule says that nothing better is to be expected."""

    def __init__(self, search: Ours, rule: Callable[[Ours], bool]) -> None:
        self._ours, self._rule = search, rule
        self.go_on, self.tell = search.go_on, search.tell

    def ask(self) -> int | None:
        return None if self._rule(self._ours) else self._ours.ask()


class Optunas:
    """One of Optuna's samplers with one of its pruners, in a study of its own, as their documentation uses them."""

    def __init__(self, field: Field, seed: int, sampler: BaseSampler, pruning: Pruning) -> None:
        self._field, self._pruner = field, pruning.pruner
        self._snap = Snap(field.truth)
        # Hyperband deals trials to its brackets by a hash of the name.
        judge = pruning.pruner.in_optuna(pruning, field.sequences)
        self._study = optuna.create_study(study_name=f"replay {seed}", sampler=sampler, pruner=judge)
        self._running: dict[int, Trial] = {}
        self._told: dict[int, set[int]] = {}

    def ask(self) -> int | None:
        space = self._field.truth.space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            suggestion = self._study.ask(space.distributions)
        # The suggestion is replaced by its nearest neighbour; a failed trial is nothing to samplers and pruners.
        self._study.tell(suggestion, state=TrialState.FAIL)
        row = self._snap.nearest(space.setting(suggestion.params))
        if row is None:
            return None
        self._study.enqueue_trial(space.params(self._field.truth.settings[row]))
        self._running[row] = self._study.ask(space.distributions)
        return row

    def go_on(self, row: int, read: int) -> bool:
        self._report(row, read)
        return not self._running[row].should_prune()

    def tell(self, row: int, read: int) -> None:
        if read == self._field.sequences:
            self._report(row, read)
            self._study.tell(self._running.pop(row), self._field.text.score(row).perplexity)
        else:
            self._study.tell(self._running.pop(row), state=TrialState.PRUNED)

    def _report(self, row: int, read: int) -> None:
        steps = self._told.setdefault(row, set())
        look = self._field.text.score(row).first(read)
        for step, value in self._pruner.reports(look, self._field.sequences, PERPLEXITY).items():
            if step not in steps:
                steps.add(step)
                self._running[row].report(value, step)


class Fixed:
    """Rows in a given order, all measured to the end."""

    def __init__(self, rows: list[int]) -> None:
        self._rows = list(rows)

    def ask(self) -> int | None:
        return self._rows.pop(0) if self._rows else None

    def go_on(self, row: int, read: int) -> bool:
        return True

    def tell(self, row: int, read: int) -> None:
        pass


def replay(search: Search, field: Field, most_tokens: float, most_trials: int, workers: int = 1) -> list[Ended]:
    """Run a search until the study has evaluated so many full trials' tokens, or started so many trials.

    Workers run side by side; a trial takes as long as its tokens, so quantizing counts nothing.
    """
    looks = look_sizes(field.sequences)
    spent = np.concatenate([[0.0], np.cumsum(field.text.tokens) / field.text.tokens.sum()])
    ended: list[Ended] = []
    evaluated, started = 0.0, 0
    events: list[tuple[float, int, int, int]] = []  # time, order, row, number of the look that ends then

    def start(now: float) -> None:
        nonlocal started
        if started >= most_trials or evaluated >= most_tokens:
            return
        row = search.ask()
        if row is not None:
            heapq.heappush(events, (now + spent[looks[0]], started, row, 0))
            started += 1

    for _ in range(workers):
        start(0.0)
    while events and evaluated < most_tokens:
        now, order, row, look = heapq.heappop(events)
        read = looks[look]
        evaluated += float(spent[read] - (spent[looks[look - 1]] if look else 0.0))
        complete = read == field.sequences
        if not complete and search.go_on(row, read):
            heapq.heappush(events, (now + float(spent[looks[look + 1]] - spent[read]), order, row, look + 1))
            continue
        search.tell(row, read)
        ended.append(Ended(row=row, read=read, complete=complete, tokens=evaluated))
        start(now)
    return ended


def regret_curve(ended: list[Ended], field: Field, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Regret of the best completed trial, in percent, when so many full trials' tokens were evaluated."""
    regret = field.regret
    curve = np.full(len(at), np.inf)
    for trial in ended:
        if trial.complete:
            curve[at >= trial.tokens - 1e-9] = np.minimum(curve[at >= trial.tokens - 1e-9], regret[trial.row])
    return curve


def best_was_pruned(ended: list[Ended], field: Field) -> bool:
    """Whether the best of the trials that a study evaluated was given up."""
    best = min(ended, key=lambda trial: float(field.text.mean_nll[trial.row]))
    return not best.complete


def _running(number: int, row: int, truth: Truth) -> TrialRecord:
    setting, space = truth.settings[row], truth.space
    begun = create_trial(
        state=TrialState.RUNNING,
        params=space.params(setting),
        distributions=space.distributions,
        user_attrs={SETTING: setting.as_dict(), RESULT: str(row)},
    )
    return replace(trial_record(begun), name=f"trial {number}", number=number)
