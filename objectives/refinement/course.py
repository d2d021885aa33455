"""The course of a refinement: steps of Adam, looks at text that is held back, and a state that outlives its process.

Responsible for the best point that was seen, for falling back to it where a value is not finite, and for ending in
time. May assume a model that holds the codes; it holds the last point afterwards. Shape letter: `P` all that
is tuned.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

import torch
from torch import Tensor

from objectives.forward import halves
from objectives.model.memory import is_out_of_memory, release_cached
from objectives.progress import Progress, silent
from objectives.refinement.gradient import pull_back, recomputed
from objectives.refinement.kept import read_kept
from objectives.refinement.options import GoesOn, RefinementOptions, RefinementText, TooLittleTimeError
from objectives.refinement.tuned import Tuned
from objectives.refinement_record import HeldBack
from objectives.scoring import score_all
from objectives.teacher import Teacher
from objectives.text.batches import batches
from objectives.trial import Bench
from storage.results import ResultStore
from storage.typed_json import encode

log = logging.getLogger(__name__)

LOOKS = 8
MOST_HALVINGS = 2
SECONDS_BETWEEN_SAVES = 60.0
BETAS = (0.9, 0.95)
# Changes are relative, so that a gradient is as small as the share of a group in all of a model.
EPSILON = 1e-10
ADAM = "adam/"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a course ended.

    Attributes:
        best: The changes of the least KL on what was held back, float32 `[P]`; zero where the start was best.
        kept_step: After how many steps they were reached.
        steps: How many were taken.
        finished: Whether no more are to be taken.
        halvings: How often the rate was halved because a value was not finite.
        looks: What text that is held back said on the way.
    """

    best: Tensor
    kept_step: int
    steps: int
    finished: bool
    halvings: int
    looks: Sequence[HeldBack]

    @classmethod
    def at_once(cls, start: Tensor, kl: float) -> "Ended":
        """Return the end of a course that no time was left for; `start` is `[P]`."""
        look = HeldBack(step=0, kl=kl)
        return cls(best=start, kept_step=0, steps=0, finished=False, halvings=0, looks=[look])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is refined, on what.

    Attributes:
        bench: Its model holds the codes.
        tuned: What of it is tuned.
        text: What is read.
        training: Full precision on the text that is learned from.
        validation: Full precision on what is held back.
        codes: Hash of the codes.
    """

    bench: Bench
    tuned: Tuned
    text: RefinementText
    training: Teacher
    validation: Teacher
    codes: str


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Where a course is, beside its tensors; the fields are those of `Subject` and `Ended`."""

    codes: str
    step: int
    kept_step: int
    halvings: int
    looks: tuple[HeldBack, ...]


class Course:
    """One refinement from its first step, or from where it was saved as `key`, to its end."""

    def __init__(
        self,
        subject: Subject,
        options: RefinementOptions,
        store: ResultStore,
        key: str,
        progress: Progress,
        left: float | None,
        goes_on: GoesOn,
    ) -> None:
        """Begin, or go on.

        Args:
            subject: What is refined, on what.
            options: How.
            store: Where it is kept how far this is.
            key: There.
            progress: Told of every step.
            left: Seconds after which no step begins; None for as long as it takes.
            goes_on: Asked after each look.
        """
        self._left, self._goes_on = left, goes_on
        self._subject, self._options, self._progress = subject, options, progress
        self._store, self._key = store, key
        self._steps = options.steps(subject.text.training)
        self._halves = halves(subject.bench.model.module, subject.text.training)
        self._batch_tokens = options.batch_tokens
        self._changes = torch.nn.Parameter(subject.tuned.changes.clone())
        self._changes.grad = self._gradient = torch.zeros_like(subject.tuned.changes)
        self._best = subject.tuned.changes.clone()
        self._optimizer = self._fresh_optimizer()
        self._step = self._kept_step = self._halvings = 0
        self._looks: list[HeldBack] = []

    def run(self) -> Ended:
        """Take all steps, or those that there is time for, or those until it is given up.

        Raises:
            TooLittleTimeError: If the time is less than the first step takes.
            StorageError: If the store cannot be written.
        """
        self._resume()
        if not self._looks:
            self._look()
        began = saved = monotonic()
        taken = 0
        while not self._over and not self._late(began, taken) and self._goes_on(self._looks):
            self._take_step()
            taken += 1
            self._require_time(monotonic() - began, taken)
            if self._step % math.ceil(len(self._steps) / LOOKS) == 0 or self._step == len(self._steps):
                self._look()
            self._tell(monotonic() - began, taken)
            if monotonic() - saved >= SECONDS_BETWEEN_SAVES:
                self._save()
                saved = monotonic()
        finished = self._over
        if not finished:
            # Before the look that is out of turn: whoever goes on sees what it would have seen.
            self._save()
            if self._looks[-1].step != self._step:
                self._look()
        return Ended(
            best=self._best,
            kept_step=self._kept_step,
            steps=self._step,
            finished=finished,
            # The last value that is not finite ends the course instead.
            halvings=min(self._halvings, MOST_HALVINGS),
            looks=self._looks,
        )

    @property
    def _over(self) -> bool:
        return self._step == len(self._steps) or self._halvings > MOST_HALVINGS

    def _take_step(self) -> None:
        self._subject.tuned.write(self._changes.detach())
        kl = self._pulled_back(self._steps[self._step])
        rate = self._options.rate_at(self._step, len(self._steps)) / 2**self._halvings
        self._step += 1
        if not (math.isfinite(kl) and bool(self._gradient.isfinite().all())):
            self._fall_back()
            return
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def _pulled_back(self, indices: Sequence[int]) -> float:
        """Leave the gradient of the mean KL of some sequences in `_gradient`; returns that mean, nats per token."""
        text, model, tuned = self._subject.text.training, self._subject.bench.model, self._subject.tuned
        targets = sum(int(text.scored[index].sum()) for index in indices)
        while True:
            total = torch.zeros((), dtype=torch.float64, device=model.device)
            self._gradient.zero_()
            try:
                with (
                    recomputed(model, self._subject.bench.blocks, partial(tuned.pulling_back, self._gradient)),
                    tuned.pulling_back(self._gradient),
                ):
                    for batch in batches(text, indices, self._batch_tokens, model.device):
                        total += pull_back(self._halves, batch, self._subject.training)
                self._gradient.div_(targets)
                return float(total) / targets
            except (MemoryError, RuntimeError) as error:
                longest = max(len(text.ids[index]) for index in indices)
                if not is_out_of_memory(error) or self._batch_tokens < 2 * longest:
                    raise
                self._batch_tokens //= 2
                log.warning("memory ran out; refining %d tokens at a time from here on", self._batch_tokens)
                release_cached(model.device)

    def _look(self) -> None:
        """Score what is held back where the changes are, and keep them if they are the best."""
        self._subject.tuned.write(self._changes.detach())
        text, module = self._subject.text.validation, self._subject.bench.model.module
        kl = score_all(module, text, "", silent, self._subject.validation).mean("kl")
        if self._looks and not math.isfinite(kl):
            self._fall_back()
            return
        if self._looks and kl < min(before.kl for before in self._looks):
            self._best, self._kept_step = self._changes.detach().clone(), self._step
        self._looks.append(HeldBack(step=self._step, kl=kl))

    def _fall_back(self) -> None:
        """Go on from the best point at half the rate."""
        self._halvings += 1
        log.warning(
            "refining met a value that is not finite in step %d; %s",
            self._step,
            "the best point until then is kept" if self._over else "it goes on from the best point at half the rate",
        )
        with torch.no_grad():
            self._changes.copy_(self._best)
        self._optimizer = self._fresh_optimizer()

    def _fresh_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam([self._changes], lr=self._options.rate, betas=BETAS, eps=EPSILON)

    def _tell(self, elapsed: float, taken: int) -> None:
        start, now = self._looks[0], self._looks[-1]
        left = elapsed / taken * (len(self._steps) - self._step) / 60
        # The same words from look to look: each phase of the display begins anew.
        if now.step == self._step or taken == 1:
            self._phase = f"refining: KL {now.kl:.4f} on what is held back, {start.kl:.4f} before; {left:.0f} min left"
        self._progress(self._phase, self._step, len(self._steps))

    def _late(self, began: float, taken: int) -> bool:
        """Whether another step would end after the time that there is."""
        if self._left is None:
            return False
        return self._left <= 0 or (taken > 0 and (monotonic() - began) * (taken + 1) / taken > self._left)

    def _require_time(self, elapsed: float, taken: int) -> None:
        timeout = self._options.timeout
        # Where codes have moved, a step that takes longer is not all that there was time for.
        is_first = taken == self._step == 1
        if is_first and timeout is not None and elapsed > timeout and not self._options.code_steps:
            raise TooLittleTimeError(
                f"--refine-timeout {timeout:g} is less than one of {len(self._steps)} steps takes ({elapsed:.1f} "
                f"seconds); give {math.ceil(elapsed * len(self._steps))} for all of them, or leave it out"
            )

    def _save(self) -> None:
        state = self._optimizer.state[self._changes]
        tensors = {"changes": self._changes.detach(), "best": self._best}
        tensors |= {f"{ADAM}{name}": tensor for name, tensor in state.items()}
        saved = Saved(
            codes=self._subject.codes,
            step=self._step,
            kept_step=self._kept_step,
            halvings=self._halvings,
            looks=tuple(self._looks),
        )
        self._store.save(self._key, encode(saved), {name: tensor.cpu() for name, tensor in tensors.items()})

    def _resume(self) -> None:
        """Go on from what was saved; what is damaged, or was saved of other codes, is begun anew."""
        kept = read_kept(self._store, self._key, Saved, self._subject.codes, "refining begins anew")
        if kept is None:
            return
        saved, tensors = kept
        device = self._changes.device
        with torch.no_grad():
            self._changes.copy_(tensors["changes"])
        self._best = tensors["best"].to(device)
        moments = {name.removeprefix(ADAM): tensor for name, tensor in tensors.items() if name.startswith(ADAM)}
        if moments:
            # The count of steps stays on the CPU.
            self._optimizer.state[self._changes] = {
                name: tensor if tensor.dim() == 0 else tensor.to(device) for name, tensor in moments.items()
            }
        self._step, self._kept_step, self._halvings = saved.step, saved.kept_step, saved.halvings
        self._looks = list(saved.looks)
