"""Settings measured to the end on one or more texts, each at most once.

Responsible for references, confirmation and the steps to a recipe, which are not trials: nothing is pruned, what the
result store has is not measured again, and several processes share the work out. May assume that the bench was laid
out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import sleep

from hpo.space.size_class import size_class_of
from hpo.space.space import Space
from hpo.study.record import FULL_PRECISION, Measured, StudyRecord
from hpo.workers.planning import probe
from objectives.errors import InputError, RunError
from objectives.model.memory import peak_bytes, reset_peak
from objectives.progress import Progress
from objectives.quantization import model_size
from objectives.results import keep_measured, load_result, measurement_key, score_of_weights
from objectives.scoring import Score, score_all
from objectives.stopwatch import Stopwatch
from objectives.suitability import suitable_group_sizes
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult, quantized
from quant.plan import Plan
from quant.recipes import recipe_steps
from quant.setting import Setting
from storage.lease import Lease
from storage.results import ResultStore

REFERENCE_METHODS = ("rtn", "gw-awq", "gwh-praq-v1")
UNIFORM_METHODS = ("rtn", "gw-awq")
ROW_REFERENCES, KEEPING_REFERENCE = ("rtn-channel", "awq"), "awq-mixed"
CHECKED_SEQUENCES = 16
MOST_DRIFT = 0.002
POLL_SECONDS = 1.0
Planned = Callable[[Setting], Plan]
"""How a setting becomes a plan: `Plan.uniform`, where none has a bit budget."""


def measure(
    bench: Bench, store: ResultStore, setting: Setting | None, texts: Sequence[Sequences], progress: Progress
) -> list[TrialResult]:
    """Measure one setting on every text; the model is quantized once, and not at all where all results are stored.

    Raises:
        InputError: If the setting does not suit the model or the text.
        RunError: If a value is not finite.
    """
    return measure_all(bench, store, [setting], texts, progress)[0]


def measure_plan(
    bench: Bench, store: ResultStore, plan: Plan, texts: Sequence[Sequences], progress: Progress
) -> list[TrialResult]:
    """Measure what may have several settings on every text.

    Raises:
        InputError: If the plan does not suit the model or the text.
        RunError: If a value is not finite.
    """
    return measure_all(bench, store, [plan.settings[0]], texts, progress, planned=lambda _: plan)[0]


def measure_all(
    bench: Bench,
    store: ResultStore,
    settings: Sequence[Setting | None],
    texts: Sequence[Sequences],
    progress: Progress,
    planned: Planned = Plan.uniform,
) -> list[list[TrialResult]]:
    """Measure every setting on every text; processes that ask for the same share the work out among them.

    Raises:
        InputError: If a setting does not suit the model or the text.
        RunError: If a value is not finite.
    """
    plans = {setting: None if setting is None else planned(setting) for setting in settings}
    keys = {setting: [measurement_key(bench, plan, text) for text in texts] for setting, plan in plans.items()}
    leases = {setting: store.lease(keys[setting][0]) for setting in keys}
    while missing := [setting for setting in keys if any(key not in store for key in keys[setting])]:
        measured_here = [
            _measured(bench, store, leases[setting], plans[setting], keys[setting], texts, progress)
            for setting in missing
        ]
        if not any(measured_here):
            progress("measuring in other processes", len(keys) - len(missing), len(keys))
            sleep(POLL_SECONDS)
    return [[load_result(store, key) for key in keys[setting]] for setting in settings]


def _measured(
    bench: Bench,
    store: ResultStore,
    lease: Lease,
    plan: Plan | None,
    keys: Sequence[str],
    texts: Sequence[Sequences],
    progress: Progress,
) -> bool:
    """Measure what nobody has and nobody is at; False where another process is."""
    with lease.if_free() as free:
        if free:
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in store}
            if missing:
                _measure_missing(bench, store, plan, missing, progress)
    return free


def _measure_missing(
    bench: Bench, store: ResultStore, plan: Plan | None, missing: dict[str, Sequences], progress: Progress
) -> None:
    name = plan.label() if plan else FULL_PRECISION
    reset_peak(bench.model.device)
    teachers = {key: bench.teacher(text, progress) for key, text in missing.items()}
    with quantized(bench, plan, progress) as made:
        for key, text in missing.items():
            watch = Stopwatch()
            with watch.phase("score"):
                twin = None if made.fingerprint is None else score_of_weights(store, bench, text, made.fingerprint)
                phase = f"scoring {name} on {text.source}"
                score = twin or score_all(bench.model.module, text, phase, progress, teachers[key])
            if not score.nll.isfinite().all():
                raise RunError(f"{name} gives NaN or Inf on {text.source}; try --dtype float32")
            result = TrialResult(
                plan=plan,
                outcome="complete",
                score=score,
                size=model_size(bench.model, bench.blocks, plan),
                layers=made.layers,
                seconds={**made.seconds, **watch.seconds},
                peak_bytes=peak_bytes(bench.model.device),
                fingerprint=made.fingerprint,
            )
            keep_measured(store, bench, text, key, result)


def measure_references(
    bench: Bench, store: ResultStore, space: Space, tuning: Sequences, progress: Progress
) -> list[Measured]:
    """Measure full precision, and what the study's method has to beat, on the tuning text."""
    return _measure_named(bench, store, [(FULL_PRECISION, None), *references(bench, space)], tuning, progress)


def measure_steps(
    bench: Bench,
    store: ResultStore,
    record: StudyRecord,
    setting: Setting,
    tuning: Sequences,
    progress: Progress,
    planned: Planned = Plan.uniform,
) -> list[Measured]:
    """Measure the settings from nearest rounding to this one on the tuning text, those that the study has not.

    Raises:
        RunError: If a value is not finite.
    """
    measured = [row.setting for row in (*record.references, *record.complete) if row.setting is not None]
    # Their calibration sizes may differ where nothing reads them, and results are kept by them.
    by_effect = {other.canonical(): other for other in measured}
    named = [(name, by_effect.get(step.canonical(), step)) for name, step in recipe_steps(setting)]
    return _measure_named(bench, store, named, tuning, progress, planned)


def _measure_named(
    bench: Bench,
    store: ResultStore,
    named: Sequence[tuple[str, Setting | None]],
    tuning: Sequences,
    progress: Progress,
    planned: Planned = Plan.uniform,
) -> list[Measured]:
    results = measure_all(bench, store, [setting for _, setting in named], [tuning], progress, planned)
    return [
        _reference(name, setting, result, measurement_key(bench, result.plan, tuning))
        for (name, setting), (result,) in zip(named, results, strict=True)
    ]


def references(bench: Bench, space: Space) -> list[tuple[str, Setting]]:
    """List the reference settings by name: their methods' defaults, on the study's scheme and scale sharing.

    For a method in groups they are other methods at every group size and every grid of the space. For one with one
    scale per row they are the plain method of the same bits, at every share of kept rows, and beside it the methods in
    groups at the smallest group size that takes no more bits: what else the memory could be spent on. Their ingredients
    are off: nearest rounding, ranges that hold every weight.
    """
    if "bit_budget" in space.reads:
        return _uniform_references(bench, space)
    base, defaults = space.base, Setting()
    n_calib = min(space.sizes("n_calib"), key=lambda size: abs(size - defaults.n_calib))
    plain = replace(defaults, n_calib=n_calib, scales=base.scales, placement=base.placement, bits=base.bits)
    grids = [replace(plain, symmetric=bool(symmetric)) for symmetric in space.values("symmetric")]
    return [named for grid in grids for named in _references_on(grid, bench, space)]


def _uniform_references(bench: Bench, space: Space) -> list[tuple[str, Setting]]:
    """List what plans have to beat: on every grid and at every group size the largest budget holds, all Linears alike.

    Nearest rounding, plain AWQ, and the recipe by which the study's sites are measured.
    """
    most = max(space.numbers("bit_budget"))
    grids = [probe(space, bool(symmetric)) for symmetric in space.values("symmetric")]
    named = [
        (name, replace(recipe, group_size=size))
        for grid in grids
        for size in suitable_group_sizes(bench.blocks)
        for name, recipe in (*((method, _plain(grid, method)) for method in UNIFORM_METHODS), ("uniform recipe", grid))
    ]
    return [
        (f"{name} {size_class_of(setting).short}", setting)
        for name, setting in named
        if model_size(bench.model, bench.blocks, Plan.uniform(setting)).bits_per_weight <= most
    ]


def _plain(recipe: Setting, method: str) -> Setting:
    """The method by its defaults, on a recipe's grid, scale sharing and calibration."""
    kept = ("n_calib", "scales", "placement", "bits", "symmetric")
    return Setting(method=method, **{name: getattr(recipe, name) for name in kept})


def _references_on(plain: Setting, bench: Bench, space: Space) -> list[tuple[str, Setting]]:
    """List the references of one grid; `plain` has what is common to all."""
    base = space.base
    if not base.definition.per_row:
        sizes = space.sizes("group_size")
        settings = [replace(plain, method=method, group_size=size) for size in sizes for method in REFERENCE_METHODS]
        return [(setting.method, setting) for setting in settings]
    if base.definition.keeps_rows:
        ratios = space.numbers("keep_ratio")
        own = [replace(plain, method=KEEPING_REFERENCE, keep_ratio=ratio) for ratio in ratios]
    else:
        own = [replace(plain, method=method) for method in ROW_REFERENCES]
    beside = dict.fromkeys(other for setting in own for other in _at_most_as_large(bench, plain, setting))
    named = ((f"{setting.method} {size_class_of(setting).short}", setting) for setting in beside)
    return [*((setting.method, setting) for setting in own), *named]


def _at_most_as_large(bench: Bench, plain: Setting, limit: Setting) -> Iterator[Setting]:
    """Yield the reference methods in groups, at the smallest group size that takes no more bits than `limit`."""

    def bits(setting: Setting) -> float:
        return model_size(bench.model, bench.blocks, Plan.uniform(setting)).bits_per_weight

    for method in REFERENCE_METHODS:
        sized = [replace(plain, method=method, group_size=size) for size in suitable_group_sizes(bench.blocks)]
        affordable = [setting for setting in sized if bits(setting) <= bits(limit)]
        yield from affordable[:1]


def require_same_machine_result(bench: Bench, stored: Score, tuning: Sequences, progress: Progress) -> None:
    """Refuse to join a study where this machine scores the full-precision model differently.

    Raises:
        InputError: With both means.
    """
    count = min(CHECKED_SEQUENCES, len(tuning))
    measured = score_all(bench.model.module, tuning[:count], "comparing with the study's full precision", progress)
    expected = stored.first(count)
    drift = measured.mean_nll - expected.mean_nll
    if not abs(drift) <= MOST_DRIFT:
        raise InputError(
            f"full precision scores {measured.mean_nll:.4f} nats per token here and {expected.mean_nll:.4f} in the "
            f"study on the same {count} sequences (at most {MOST_DRIFT} apart is allowed); use the same device kind "
            "and versions"
        )


def _reference(name: str, setting: Setting | None, result: TrialResult, key: str) -> Measured:
    assert result.score is not None
    return Measured(
        name=name,
        setting=setting,
        perplexity=result.score.perplexity,
        result=key,
        bits_per_weight=result.size.bits_per_weight,
        model_bytes=result.size.model_bytes,
        size=result.size,
        seconds=dict(result.seconds),
        kl=result.score.mean_kl,
        flips=result.score.percent_flips,
        fingerprint=result.fingerprint,
    )
