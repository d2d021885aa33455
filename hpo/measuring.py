"""Settings measured to the end on one or more texts, each at most once.

Responsible for references and confirmation, which are not trials: nothing is pruned, and what the result store has is
not measured again. May assume that the bench was laid out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpo.footprint import footprint_of
from hpo.record import FULL_PRECISION, Measured
from hpo.space import Space
from objectives.errors import InputError, RunError
from objectives.kept import keep_result, measurement_key, recall_result
from objectives.memory import peak_bytes, reset_peak
from objectives.progress import Progress
from objectives.quantization import LayerResult, model_size, suitable_group_sizes
from objectives.scoring import Score, score_all
from objectives.sequences import Sequences
from objectives.trial import Bench, TrialResult, quantized, timed
from quant.methods import Setting
from storage.results import ResultStore

REFERENCE_METHODS = ("rtn", "gw-awq", "gwh-praq-v1")
ROW_REFERENCES, KEEPING_REFERENCE = ("rtn-channel", "awq"), "awq-mixed"
CHECKED_SEQUENCES = 16
MOST_DRIFT = 0.002


def measure(
    bench: Bench, store: ResultStore, setting: Setting | None, texts: Sequence[Sequences], progress: Progress
) -> list[TrialResult]:
    """The results of one setting on every text; the model is quantized once, and not at all where all is known.

    Raises:
        InputError: If the setting does not suit the model or the text.
        RunError: If a value is not finite.
    """
    keys = [measurement_key(bench, setting, text) for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in store}
    if missing:
        _measure_missing(bench, store, setting, missing, progress)
    return [recall_result(store, key) for key in keys]


def _measure_missing(
    bench: Bench, store: ResultStore, setting: Setting | None, missing: dict[str, Sequences], progress: Progress
) -> None:
    name = setting.label() if setting else FULL_PRECISION
    layers: list[LayerResult] = []
    seconds: dict[str, float] = {}
    reset_peak(bench.model.device)
    with quantized(bench, setting, layers, seconds, progress):
        for key, text in missing.items():
            own: dict[str, float] = {}
            with timed(own, "score"):
                score = score_all(bench.model.module, text, f"scoring {name} on {text.source}", progress)
            if not score.nll.isfinite().all():
                raise RunError(f"{name} gives NaN or Inf on {text.source}; try --dtype float32")
            result = TrialResult(
                setting=setting,
                outcome="complete",
                score=score,
                size=model_size(bench.model, bench.blocks, setting),
                layers=layers,
                seconds={**seconds, **own},
                peak_bytes=peak_bytes(bench.model.device),
            )
            keep_result(store, key, result)


def measure_references(
    bench: Bench, store: ResultStore, space: Space, tuning: Sequences, progress: Progress
) -> list[Measured]:
    """Full precision, and what the study's method has to beat, on the tuning text."""
    measured = [_reference(bench, store, FULL_PRECISION, None, tuning, progress)]
    for name, setting in references(bench, space):
        measured.append(_reference(bench, store, name, setting, tuning, progress))
    return measured


def references(bench: Bench, space: Space) -> list[tuple[str, Setting]]:
    """The reference settings by name: their methods' defaults, on the study's grid and scale sharing.

    For a method in groups they are other methods at every group size of the space. For one with one scale per row
    they are the plain method of the same bits, at every share of kept rows, and beside it the methods in groups at the
    smallest group size that takes no more bits: what else the memory could be spent on.
    """
    base, defaults = space.base, Setting()
    n_calib = min(space.sizes("n_calib"), key=lambda size: abs(size - defaults.n_calib))
    plain = replace(defaults, n_calib=n_calib, symmetric=base.symmetric, scales=base.scales, placement=base.placement)
    if not base.definition.per_row:
        sizes = space.sizes("group_size")
        settings = [replace(plain, method=method, group_size=size) for size in sizes for method in REFERENCE_METHODS]
        return [(setting.method, setting) for setting in settings]
    if base.definition.keeps_rows:
        ratios = space.values("keep_ratio")
        own = [replace(plain, method=KEEPING_REFERENCE, keep_ratio=ratio) for ratio in ratios]
    else:
        own = [replace(plain, method=method) for method in ROW_REFERENCES]
    beside = dict.fromkeys(other for one in own for other in _at_most_as_large(bench, plain, one))
    named = ((f"{one.method} {footprint_of(one).short}", one) for one in beside)
    return [*((setting.method, setting) for setting in own), *named]


def _at_most_as_large(bench: Bench, plain: Setting, limit: Setting) -> Iterator[Setting]:
    """The reference methods in groups, at the smallest suitable group size that takes no more bits than `limit`."""

    def bits(setting: Setting) -> float:
        return model_size(bench.model, bench.blocks, setting).bits_per_weight

    for method in REFERENCE_METHODS:
        sized = [replace(plain, method=method, group_size=size) for size in suitable_group_sizes(bench.blocks)]
        affordable = [setting for setting in sized if bits(setting) <= bits(limit)]
        yield from affordable[:1]


def require_same_machine_result(bench: Bench, known: Score, tuning: Sequences, progress: Progress) -> None:
    """Refuse to join a study where this machine scores the full-precision model differently.

    Raises:
        InputError: With both means.
    """
    count = min(CHECKED_SEQUENCES, len(tuning))
    own = score_all(bench.model.module, tuning[:count], "comparing with the study's full precision", progress)
    theirs = known.first(count)
    drift = own.mean_nll - theirs.mean_nll
    if not abs(drift) <= MOST_DRIFT:
        raise InputError(
            f"full precision scores {own.mean_nll:.4f} nats per token here and {theirs.mean_nll:.4f} in the study on "
            f"the same {count} sequences (at most {MOST_DRIFT} apart is allowed); use the same device kind and versions"
        )


def _reference(
    bench: Bench, store: ResultStore, name: str, setting: Setting | None, tuning: Sequences, progress: Progress
) -> Measured:
    result = measure(bench, store, setting, [tuning], progress)[0]
    assert result.score is not None
    return Measured(
        name=name,
        setting=setting,
        perplexity=result.score.perplexity,
        result=measurement_key(bench, setting, tuning),
        bits_per_weight=result.size.bits_per_weight,
        model_bytes=result.size.model_bytes,
        seconds=dict(result.seconds),
    )
