"""Refine a quantized model: change what it stores so that it predicts what full precision predicts.

Responsible for the order of it - codes that may move, then scales, norms and biases -, for keeping only what text that
is held back finds nearer, and for going on where an earlier call was ended. The same weights, text, options and device
give the same values, ended or not. May assume that the model has its original weights when it is called; it has them
afterwards.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import xxhash
from torch import Tensor

from objectives.errors import InputError
from objectives.model.memory import is_out_of_memory
from objectives.progress import Progress
from objectives.refined import (
    OtherCodesError,
    Refined,
    hash_of_codes,
    moves_between,
    owners,
    tunable_vectors,
)
from objectives.refinement.block_codes import RoundedModel
from objectives.refinement.course import Course, Ended, Subject
from objectives.refinement.moves_entry import MovesEntry
from objectives.refinement.moving import moved_codes
from objectives.refinement.options import GoesOn, RefinementOptions, RefinementText, to_the_end, tokens_of
from objectives.refinement.tuned import Tuned
from objectives.refinement_record import CodeMoves, Refinement
from objectives.results import measurement_key
from objectives.trial import Bench, quantized
from quant.plan import Plan
from quant.scheme import IntWeight
from storage.results import ResultStore
from storage.typed_json import decode, encode

FORMAT = 3
SCALES, VECTORS, MOVES = "scales/", "vectors/", "moves/"


def require_refinable(plan: Plan) -> None:
    """Refuse what has no codes of its own.

    Raises:
        InputError: With the reason and what to do instead.
    """
    for setting in plan.settings:
        if setting.definition.keeps_rows:
            raise InputError(
                f"--refine tunes the scales of codes, and {setting.method} keeps rows in 16 bit; use a method in groups"
            )
        if setting.scales_at_run_time:
            raise InputError(
                "--refine tunes what is stored, and --scales linear divides inputs at run time; use --scales foldable"
            )


def refinement_key(bench: Bench, plan: Plan, text: RefinementText, options: RefinementOptions) -> str:
    """Return the key of a refinement: everything that determines its values.

    Raises:
        InputError: If there is not enough calibration text for the plan.
    """
    unused = {"timeout"} if options.code_steps else {"timeout", "code_drift", "code_batch_tokens"}
    how = {name: value for name, value in vars(options).items() if name not in unused}
    parts = (
        "refinement",
        FORMAT,
        measurement_key(replace(bench, refined=None), plan, text.training),
        text.validation.fingerprint(),
        bench.model.dtype,
        sorted(how.items()),
    )
    return f"refined-{xxhash.xxh3_128_hexdigest(' '.join(map(str, parts)).encode())}"


def refine(
    bench: Bench,
    plan: Plan,
    text: RefinementText,
    options: RefinementOptions,
    store: ResultStore,
    progress: Progress,
    goes_on: GoesOn = to_the_end,
) -> Refined:
    """Change what a plan stores, codes included; what was begun before is gone on with, what was finished is read.

    What was kept on the way stays in the store until `forget_begun`. What ends because `goes_on` says so, or for lack
    of time, is not `finished`; the same call goes on with it.

    Raises:
        InputError: If the plan has nothing to tune, there is too little calibration text or memory, or the model
            cannot be run block by block.
        TooLittleTimeError: If the time is less than one step takes.
        QuantizationError: If a weight is not finite.
        StorageError: If the store cannot be written.
    """
    require_refinable(plan)
    key = refinement_key(bench, plan, text, options)

    def waiting(_: str) -> None:
        progress("refining in another process", 0, 1)

    if key not in store:
        with store.lease(key).held(waiting):
            if key not in store:
                with _within_memory(bench):
                    unfinished = _refine(bench, plan, text, options, store, key, progress, goes_on)
                if unfinished is not None:
                    return unfinished
    return _read(store, key, plan)


def is_finished(refined: Refined, store: ResultStore) -> bool:
    """Return whether a refinement took all of its steps: only then is it kept."""
    return refined.key in store


def forget_begun(
    bench: Bench, plan: Plan, text: RefinementText, options: RefinementOptions, store: ResultStore
) -> None:
    """Remove what these options kept on the way; what was finished stays."""
    store.remove(_begun_key(refinement_key(bench, plan, text, options)))
    store.remove(_moves_key(bench, plan, text, options))


def _begun_key(key: str) -> str:
    return f"{key}-begun"


def _moves_key(bench: Bench, plan: Plan, text: RefinementText, options: RefinementOptions) -> str:
    """Return the key of the codes that moved, which do not depend on how scales are tuned after them."""
    codes = {name: value for name, value in vars(options).items() if name.startswith("code_")}
    return f"{refinement_key(bench, plan, text, RefinementOptions(seed=options.seed, **codes))}-codes"


@contextmanager
def forgotten_where_codes_differ(store: ResultStore) -> Iterator[None]:
    """Remove a refinement that turns out inside the block to be of other codes, so that it is made anew next time."""
    try:
        yield
    except OtherCodesError as error:
        store.remove(error.key)
        raise


@contextmanager
def _within_memory(bench: Bench) -> Iterator[None]:
    """Refuse a model whose gradients do not fit beside it, one sequence at a time."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"refining {bench.model.name} ran out of memory on {bench.model.device}; give shorter sequences "
            "(--seq-len), leave codes as they are (--refine-codes 0), or take a larger device"
        ) from error


def _refine(
    bench: Bench,
    plan: Plan,
    text: RefinementText,
    options: RefinementOptions,
    store: ResultStore,
    key: str,
    progress: Progress,
    goes_on: GoesOn,
) -> Refined | None:
    """Refine and store; returns what there was by then where it ended before its last step, which is not stored."""
    model = bench.model
    training, validation = (bench.teacher(part, progress) for part in (text.training, text.validation))
    if training is None or validation is None:
        raise InputError(f"model {model.name} is quantized already: there is no full precision to refine it towards")
    vectors = [name for name, *_ in tunable_vectors(model.module)]
    with (
        model.weights.restored(owners(model.module, vectors)),
        quantized(replace(bench, refined=None), plan, progress, with_codes=True) as result,
    ):
        rounded = RoundedModel(bench=bench, plan=plan, result=result, options=options)
        entry = MovesEntry(store=store, key=_moves_key(bench, plan, text, options), codes=hash_of_codes(result.codes))
        moving = moved_codes(rounded, text, validation, entry, progress)
        codes, hashed = moving.codes, hash_of_codes(moving.codes)
        tuned = Tuned(model, bench.blocks, codes, plan, options.parts)
        subject = Subject(bench=bench, tuned=tuned, text=text, training=training, validation=validation, codes=hashed)
        left = None if options.timeout is None else options.timeout - moving.seconds
        course = Course(subject, options, store, _begun_key(key), progress, left, goes_on)
        ended = course.run() if moving.is_whole else Ended.at_once(tuned.changes, moving.kl)
        scales, changed = tuned.stored(ended.best)
        refined = Refined(
            plan=plan,
            key=key if ended.finished else f"{key}-{hashed}-{ended.steps}",
            codes=entry.codes,
            scales=scales,
            vectors=changed,
            refinement=_refinement(text, options, ended, moving.outcome),
            moves=_moves(result.codes, codes),
        )
    if not ended.finished:
        return refined
    _write(store, refined)
    return None


def _moves(before: Mapping[str, IntWeight], after: Mapping[str, IntWeight]) -> dict[str, Tensor]:
    moves = {name: moves_between(weight, after[name]) for name, weight in before.items()}
    return {name: places for name, places in moves.items() if len(places)}


def _refinement(text: RefinementText, options: RefinementOptions, ended: Ended, moves: CodeMoves | None) -> Refinement:
    planned = options.steps(text.training)
    return Refinement(
        source=text.training.source,
        fingerprint=text.training.fingerprint(),
        sequences=len(text.training),
        tokens=tokens_of(text.training, planned[: ended.steps]),
        steps=ended.steps,
        planned_steps=len(planned),
        passes=options.passes,
        batch_tokens=options.batch_tokens,
        seed=options.seed,
        rate=options.rate,
        parts=options.parts,
        halvings=ended.halvings,
        kept_step=ended.kept_step,
        validation_sequences=len(text.validation),
        looks=tuple(ended.looks),
        moves=moves,
    )


def _write(store: ResultStore, refined: Refined) -> None:
    tensors = {f"{SCALES}{name}": tensor for name, tensor in refined.scales.items()}
    tensors |= {f"{VECTORS}{name}": tensor for name, tensor in refined.vectors.items()}
    tensors |= {f"{MOVES}{name}": tensor for name, tensor in refined.moves.items()}
    store.save(refined.key, {"codes": refined.codes, "refinement": encode(refined.refinement)}, tensors)


def _read(store: ResultStore, key: str, plan: Plan) -> Refined:
    record, tensors = store.load(key)
    return Refined(
        plan=plan,
        key=key,
        codes=str(record["codes"]),
        scales={name.removeprefix(SCALES): tensor for name, tensor in tensors.items() if name.startswith(SCALES)},
        vectors={name.removeprefix(VECTORS): tensor for name, tensor in tensors.items() if name.startswith(VECTORS)},
        moves={name.removeprefix(MOVES): tensor for name, tensor in tensors.items() if name.startswith(MOVES)},
        refinement=decode(Refinement, record["refinement"], f"the refinement {key}"),
    )
