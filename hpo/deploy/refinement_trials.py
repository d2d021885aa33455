"""Several refinements of one winner, of which the nearest to full precision on what is held back is kept.

Responsible for what is tried after the options that were given, for pruning what is behind, and for ending in time.
Reads only what refining itself holds back, so that no other text chooses. The same seed tries the same, whether it was
ended in between or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import optuna
import xxhash
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import PercentilePruner
from optuna.samplers import GPSampler

from hpo.quiet import quiet_optuna
from objectives.progress import Progress
from objectives.refined import Refined
from objectives.refinement.course import LOOKS
from objectives.refinement.options import (
    GoesOn,
    RefinementOptions,
    RefinementText,
    TooLittleTimeError,
    sequences_of,
    to_the_end,
)
from objectives.refinement.refine import forget_begun, is_finished, refine, refinement_key
from objectives.refinement_record import HeldBack, RefinementTrial
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.plan import Plan
from storage.results import ResultStore
from storage.typed_json import decode, encode

SEARCHED = ("rate", "passes", "batch_tokens", "parts", "code_steps", "code_drift")
"""The options that trials differ in, which are fields of a trial's record by the same names."""
FARTHEST_RATE = 4.0
"""So many times the given rate, or the given rate by as many, is tried."""
HIGHEST_RATE = 0.5
MOST_PASSES = 2
RANDOM_TRIALS = 3
"""Before the sampler learns from them."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is refined several times.

    Attributes:
        bench: Model, roles and calibration.
        plan: Whose codes are refined.
        text: What is read.
        given: Options of the first refinement; their time is for all of them.
        trials: How many there are.
        store: Where they are kept.
    """

    bench: Bench
    plan: Plan
    text: RefinementText
    given: RefinementOptions
    trials: int
    store: ResultStore

    @property
    def key(self) -> str:
        """Return the key of what was tried."""
        parts = f"{refinement_key(self.bench, self.plan, self.text, self.given)} {self.trials}"
        return f"refinements-{xxhash.xxh3_128_hexdigest(parts.encode())}"

    def options(self, trial: RefinementTrial) -> RefinementOptions:
        """Return the options of one that was tried."""
        return replace(self.given, **_searched(trial))

    def refine(self, options: RefinementOptions, progress: Progress, goes_on: GoesOn = to_the_end) -> Refined:
        """Refine once, or read that."""
        return refine(self.bench, self.plan, self.text, options, self.store, progress, goes_on)

    def forget_begun(self, trials: Sequence[RefinementTrial]) -> None:
        """Remove what these kept on the way."""
        for trial in trials:
            forget_begun(self.bench, self.plan, self.text, self.options(trial), self.store)


class _Watch:
    """Tells Optuna's trial of each look, once; its pruner says whether it goes on."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial, self._told = trial, 0
        self.pruned = False

    def __call__(self, looks: Sequence[HeldBack]) -> bool:
        for look in looks[self._told :]:
            self._trial.report(look.kl, self._told)
            self._told += 1
            self.pruned = self.pruned or bool(self._trial.should_prune())
        return not self.pruned


def refine_best(stage: Stage, progress: Progress) -> Refined:
    """Refine as often as was asked for, first with the options that were given, and return the best.

    A refinement is pruned from the middle of its looks on where it was never as near to full precision as the best
    quarter of those before it was after as many; so the nearest never is. Where time runs out, it is the nearest until
    then, and the same call goes on.

    Raises:
        InputError, QuantizationError, StorageError: As `refine`.
    """
    if stage.key not in stage.store:
        made = _search(stage, progress)
        trials = tuple(trial for trial, _ in made)
        if len(made) < stage.trials or not (trials[-1].finished or trials[-1].pruned):
            nearest = min((refined for _, refined in made), key=lambda refined: refined.refinement.after)
            return _telling_of(trials, nearest)
        stage.store.save(stage.key, {"trials": encode(trials)}, {})
        stage.forget_begun(trials)
    record, _ = stage.store.load(stage.key)
    trials = decode(tuple[RefinementTrial, ...], record["trials"], f"the refinements {stage.key}")
    chosen = min((trial for trial in trials if trial.finished), key=lambda trial: trial.kl)
    refined = stage.refine(stage.options(chosen), progress)
    # It is made anew where quantizing came to give other codes.
    stage.forget_begun([chosen])
    return _telling_of(trials, refined)


def _search(stage: Stage, progress: Progress) -> list[tuple[RefinementTrial, Refined]]:
    """Refine until all trials are done or there is no time for another."""
    began = monotonic()
    space = _space(stage.given, stage.text.training)
    made: list[tuple[RefinementTrial, Refined]] = []
    with quiet_optuna():
        study = optuna.create_study(
            sampler=GPSampler(seed=stage.given.seed, n_startup_trials=RANDOM_TRIALS),
            pruner=PercentilePruner(25.0, n_startup_trials=1, n_warmup_steps=LOOKS // 2),
        )
        study.enqueue_trial(_proposal(stage.given))
    while len(made) < stage.trials:
        spent = monotonic() - began
        left = stage.given.timeout
        if made and left is not None:
            left -= spent
            if spent / len(made) > left:
                break
        with quiet_optuna():
            trial = study.ask(space)
        options = replace(_proposed(stage.given, trial.params), timeout=left)
        watch = _Watch(trial)
        try:
            refined = stage.refine(options, _numbered(progress, len(made) + 1, stage.trials), watch)
        except TooLittleTimeError:
            if not made:
                raise
            break
        finished = is_finished(refined, stage.store)
        if finished:
            # Where time ended it the last look is out of turn, and nothing to be compared with those of others.
            watch(refined.refinement.looks)
        made.append((_tried(options, refined, finished=finished, pruned=watch.pruned and not finished), refined))
        if not finished and not watch.pruned:
            break
        study.tell(trial, refined.refinement.after)
    return made


def _searched(of: RefinementOptions | RefinementTrial) -> dict[str, Any]:
    """Return by name what one refinement has other than another."""
    return {name: getattr(of, name) for name in SEARCHED}


def _proposal(options: RefinementOptions) -> dict[str, Any]:
    """Return options as Optuna proposes them: what is tuned is one of several choices, by their names."""
    return {**_searched(options), "parts": ",".join(options.parts)}


def _proposed(given: RefinementOptions, proposal: dict[str, Any]) -> RefinementOptions:
    """Return the options that were given with what is proposed in their place, the inverse of `_proposal`."""
    return replace(given, **{**proposal, "parts": tuple(proposal["parts"].split(","))})


def _space(given: RefinementOptions, text: Sequences) -> dict[str, BaseDistribution]:
    """Return what is tried around the options that were given; codes move only where they may.

    Drifts are few, so that refinements which move codes alike move them once.
    """
    lowest, highest = given.rate / FARTHEST_RATE, min(given.rate * FARTHEST_RATE, HIGHEST_RATE)
    codes = (given.code_steps, 2 * given.code_steps, 0) if given.code_steps else (0,)
    drift, tokens = given.code_drift, given.batch_tokens
    drifts = (drift, min(2 * drift, 1.0), drift / 2) if given.code_steps else (drift,)
    # Steps of as many sequences are the same.
    steps = {sequences_of(text, number): number for number in (tokens // 2, 2 * tokens, tokens)}
    parts = (given.parts, ("scales",)) if "scales" in given.parts else (given.parts,)
    return {
        "rate": FloatDistribution(lowest, max(highest, given.rate), log=True),
        "passes": IntDistribution(1, max(MOST_PASSES, given.passes)),
        "batch_tokens": CategoricalDistribution(tuple(steps.values())),
        "parts": CategoricalDistribution(tuple(dict.fromkeys(map(",".join, parts)))),
        "code_steps": CategoricalDistribution(codes),
        "code_drift": CategoricalDistribution(tuple(dict.fromkeys(drifts))),
    }


def _numbered(progress: Progress, number: int, trials: int) -> Progress:
    if trials == 1:
        return progress

    def telling(phase: str, done: int, total: int) -> None:
        progress(f"refinement {number} of {trials}: {phase}", done, total)

    return telling


def _tried(options: RefinementOptions, refined: Refined, *, finished: bool, pruned: bool) -> RefinementTrial:
    return RefinementTrial(
        **_searched(options),
        steps=refined.refinement.steps,
        kl=refined.refinement.after,
        finished=finished,
        pruned=pruned,
    )


def _telling_of(trials: tuple[RefinementTrial, ...], refined: Refined) -> Refined:
    """Return what was made with all that was tried, where that is more than one."""
    several = trials if len(trials) > 1 else ()
    return replace(refined, refinement=replace(refined.refinement, trials=several))
