"""Made-up trials, scores and studies for whatever reads them; nothing is measured.

`trial`, `pruned`, `reference` and `score` give single records; a `Maker` keeps real files of values per sequence, and
`mixed_study`, `kept_study` and `study_of` give whole studies of what it made.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.space.space import Space, make_space
from hpo.study.attributes import (
    BITS,
    BYTES,
    CONFIRMATION,
    ESTIMATE,
    FLIPS,
    ORIGIN,
    OUTCOME,
    OWNER,
    PERPLEXITY,
    REASON,
    REFERENCES,
    RESULT,
    SECONDS,
    SETTING,
    SIZE,
    WATERFALL,
)
from hpo.study.attributes import CONTRACT as CONTRACT_KEY
from hpo.study.attributes import KL as KL_KEY
from hpo.study.attributes import TOKENS as TOKENS_KEY
from hpo.study.confirmation import Confirmation, ConfirmedComparison, ConfirmedScore, Interval, RefinedConfirmation
from hpo.study.contract import CalibrationContract, Contract, ModelContract, TextContract
from hpo.study.estimate import Estimate
from hpo.study.objective import KL
from hpo.study.record import FULL_PRECISION, Measured, StudyRecord, TrialRecord
from hpo.study.scores import Scores
from hpo.verdict.ranking import SizeClassRanking, rank
from hpo.verdict.recommendation import settled
from hpo.verdict.snapshot import Study as Snapshot
from hpo.verdict.words import percent_interval
from objectives.model.layouts import Role
from objectives.paired import Difference
from objectives.quantized_blocks import LayerResult
from objectives.refinement_record import HeldBack
from objectives.results import pin, save_result
from objectives.scoring import Score, look_sizes
from objectives.text.sequences import Sequences
from objectives.trial import TrialResult
from quant.plan import Plan
from quant.setting import PRESETS, RECIPE, Setting
from quant.sizes import ModelSize
from storage.results import ResultStore
from storage.typed_json import encode

SEQUENCES, TOKENS, DEPTH = 32, 100, 6
LINEARS: Mapping[str, Role] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
# Every sequence is a document of its own.
TEXT = Sequences(
    source="C4",
    ids=tuple(torch.arange(TOKENS + 1) + number for number in range(SEQUENCES)),
    scored=tuple(torch.arange(TOKENS + 1) > 0 for _ in range(SEQUENCES)),
    clusters=tuple(range(SEQUENCES)),
)
CONTRACT = Contract(
    model=ModelContract(
        name="tiny/llama",
        commit=None,
        fingerprint="0" * 32,
        dtype="bfloat16",
        stored_as="bfloat16",
        input_scales="all fold into what produces the inputs",
    ),
    calibration=CalibrationContract(source="wikitext2", sequences=512, fingerprint="1" * 32),
    tuning=TextContract(
        source="C4", sequences=SEQUENCES, fingerprint=TEXT.fingerprint(), protocol="packed", seq_len=TOKENS + 1
    ),
    space=make_space(Setting(), {"group_size": "32,64"}),
    seed=0,
)
Truth = Callable[[Setting], float]


def trial(number: int, space: Space, setting: Setting, value: float | None, **changes: Any) -> TrialRecord:
    """A completed trial of that perplexity; `changes` make it something else."""
    fields: dict[str, Any] = {
        "name": f"trial {number}",
        "setting": setting,
        "perplexity": value,
        "result": f"result-{number}",
        "bits_per_weight": 4.25,
        "model_bytes": 1000,
        "seconds": {"quantize": 1.0, "score": 2.0},
        "number": number,
        "state": "COMPLETE",
        "params": space.params(setting),
        "origin": "gp",
        "outcome": "complete",
        "estimate": None,
        "reason": None,
        "running": {},
        "tokens": 100,
        "started": None,
        "finished": None,
    }
    return TrialRecord(**{**fields, **changes})


def pruned(number: int, space: Space, setting: Setting, estimate: float) -> TrialRecord:
    """A pruned trial that would probably have had that perplexity; its running value says nothing of it."""
    return trial(
        number,
        space,
        setting,
        None,
        state="PRUNED",
        outcome="stopped",
        running={8: 50.0},
        estimate=Estimate(mean_nll=math.log(estimate), standard_error=0.5 / estimate, degrees=50.0, against=0),
    )


def reference(setting: Setting) -> Measured:
    """A reference without values."""
    return Measured(
        name=setting.method,
        setting=setting,
        perplexity=None,
        result=None,
        bits_per_weight=4.25,
        model_bytes=1000,
        seconds={},
    )


def score(nats: Sequence[float] | torch.Tensor, tokens: int = 10, clusters: Sequence[int] | None = None) -> Score:
    """Mean nats per token of each sequence, all of `tokens` targets, each a document of its own unless told else."""
    values = torch.as_tensor(nats, dtype=torch.float64)
    documents = torch.arange(len(values)) if clusters is None else torch.tensor(clusters)
    return Score(nll=values * tokens, tokens=torch.full((len(values),), tokens), clusters=documents)


def truth(setting: Setting) -> float:
    """Mean NLL in nats of a made-up model: awq is 0.1 above full precision, V2 has its optimum at beta 0.3."""
    bits = {32: 0.0, 64: 0.03, 128: 0.08, 256: 0.15}[setting.group_size]
    if setting.method != "gwh-praq-v2":
        return 3.5 + bits + {"rtn": 0.25, "gw-awq": 0.1, "gwh-praq-v1": 0.11}[setting.method]
    return 3.5 + bits + 0.08 + 0.3 * (setting.beta - 0.3) ** 2 + 0.02 * abs(math.log(setting.tau / 2.5))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A record, where its values are, and its space."""

    record: StudyRecord
    store: ResultStore
    space: Space

    @property
    def rankings(self) -> list[SizeClassRanking]:
        """Its ranking, every sequence a document of its own."""
        return rank(self.record, Scores(self.store))

    @property
    def snapshot(self) -> Snapshot:
        """What reports are handed."""
        rankings = [settled(ranking, self.record.confirmation) for ranking in self.rankings]
        return Snapshot(record=self.record, rankings=rankings, scores=Scores(self.store))

    def stored(self, storage: BaseStorage) -> optuna.Study:
        """The same study in a storage of Optuna's, its text pinned: as workers would have left it."""
        pin(self.store, TEXT)
        record = self.record
        study = optuna.create_study(storage=storage, study_name=record.name, direction="minimize")
        study.set_user_attr(CONTRACT_KEY, encode(record.contract))
        study.set_user_attr(REFERENCES, encode(record.references))
        if record.confirmation is not None:
            study.set_user_attr(CONFIRMATION, encode(record.confirmation))
        if record.waterfall:
            study.set_user_attr(WATERFALL, encode(record.waterfall))
        study.add_trials([_frozen(trial, record.contract.space.distributions) for trial in record.trials])
        return study


class Maker:
    """Makes measurements of `truth` with noise, and keeps their values."""

    def __init__(self, store: ResultStore, space: Space, seed: int = 0, truth: Truth = truth) -> None:
        self.store, self.space, self._truth = store, space, truth
        self._random = np.random.default_rng(seed)
        self._scatter = np.random.default_rng((seed, 1))
        # What makes a sequence hard is common to all settings.
        self._sequences = self._random.normal(0, 0.4, SEQUENCES)

    def draw(self) -> Setting:
        """A setting somewhere in the space."""
        return self.space.at(self._random.random(len(self.space.dimensions)).tolist())

    def reference(self, setting: Setting | None) -> Measured:
        """A reference, its values kept."""
        score = self._score(setting)
        key = (
            f"reference-{setting.method}-{setting.group_size}-{setting.keep_ratio:.0%}".rstrip("%")
            if setting
            else "full"
        )
        self._keep(key, setting, score)
        return Measured(
            name=setting.method if setting else FULL_PRECISION,
            setting=setting,
            perplexity=score.perplexity,
            result=key,
            bits_per_weight=_bits(setting),
            model_bytes=_bytes(setting),
            size=_size(setting),
            seconds={"quantize": 2.0, "score": 3.0},
            kl=score.mean_kl,
            flips=score.percent_flips,
        )

    def complete(self, number: int, setting: Setting, origin: str = "sampler") -> TrialRecord:
        """A trial that was measured to the end, its values kept."""
        score = self._score(setting)
        self._keep(f"trial-{number}", setting, score)
        waiting = self.waiting(number, setting, origin)
        return replace(
            waiting,
            state="COMPLETE",
            perplexity=score.perplexity,
            result=f"trial-{number}",
            bits_per_weight=_bits(setting),
            model_bytes=_bytes(setting),
            size=_size(setting),
            seconds={"calibrate": 0.5, "quantize": 2.0, "score": 3.0},
            kl=score.mean_kl,
            flips=score.percent_flips,
            outcome="complete",
            running=_running(score, SEQUENCES),
            tokens=SEQUENCES * TOKENS,
            started="2025-01-01T00:00:00",
            finished="2025-01-01T00:01:00",
        )

    def pruned(self, number: int, setting: Setting, read: int = 8) -> TrialRecord:
        """A trial that was given up after `read` sequences."""
        score = self._score(setting)
        return replace(
            self.waiting(number, setting),
            state="PRUNED",
            seconds={"quantize": 2.0, "score": 0.75},
            outcome="stopped",
            estimate=Estimate(mean_nll=score.mean_nll, standard_error=0.0168, degrees=7.0, against=0),
            running=_running(score, read),
            tokens=read * TOKENS,
            started="2025-01-01T00:00:00",
            finished="2025-01-01T00:00:30",
        )

    def failed(self, number: int, setting: Setting) -> TrialRecord:
        """A trial that failed."""
        reason = "12.5 GB <needed>, 8 GB available"
        return replace(self.waiting(number, setting), state="FAIL", outcome="out-of-memory", reason=reason)

    def waiting(self, number: int, setting: Setting, origin: str = "sampler") -> TrialRecord:
        """A trial that has not begun."""
        return trial(
            number,
            self.space,
            setting,
            None,
            name=origin.removeprefix("preset ") if origin.startswith("preset") else f"trial {number}",
            origin=origin,
            state="WAITING",
            outcome=None,
            result=None,
            bits_per_weight=None,
            model_bytes=None,
            seconds={},
            tokens=0,
        )

    def _score(self, setting: Setting | None) -> Score:
        mean = 3.5 if setting is None else self._truth(setting)
        nll = TOKENS * (mean + self._sequences + self._random.normal(0, 0.02, SEQUENCES))
        tokens = torch.full((SEQUENCES,), TOKENS)
        # Damage shows in divergence with less scatter than in the likelihood of labels.
        damage = 0.0 if setting is None else max(0.01, mean - 3.5) * TOKENS
        kl = torch.from_numpy(damage * self._scatter.uniform(0.8, 1.2, SEQUENCES))
        clusters = torch.tensor(TEXT.clusters)
        return Score(nll=torch.from_numpy(nll), tokens=tokens, clusters=clusters, kl=kl, flips=(kl / 2).round())

    def _keep(self, key: str, setting: Setting | None, score: Score) -> None:
        result = TrialResult(
            plan=Plan.uniform(setting.recipe) if setting else None,
            outcome="complete",
            score=score,
            size=_size(setting),
            layers=self._layers() if setting else (),
            seconds={},
            peak_bytes=0,
        )
        save_result(self.store, key, result)

    def _layers(self) -> tuple[LayerResult, ...]:
        return tuple(
            LayerResult(
                name=f"model.layers.{depth}.{linear}",
                depth=depth,
                role=role,
                alpha=float(self._random.integers(0, 21) / 20),
                nearest_loss=1.0,
                loss=(loss := float(self._random.uniform(0.4, 1.0))),
                final_loss=loss,
            )
            for depth in range(DEPTH)
            for linear, role in LINEARS.items()
        )


def mixed_study(store: ResultStore, trials: int = 40, sizes: str = "32,64", seed: int = 0) -> Study:
    """A study with references, presets, and trials of every state; about a third is pruned."""
    space = make_space(Setting(group_size=64), {"group_size": sizes})
    maker = Maker(store, space, seed)
    made: list[TrialRecord] = []
    original = {name: setting for name, setting in PRESETS.items() if name != RECIPE}
    for name, setting in original.items():
        made.append(maker.complete(len(made), space.project(setting), f"preset {name}"))
    while len(made) < trials - 3:
        setting = maker.draw()
        poor = truth(setting) > 3.68
        made.append(
            maker.pruned(len(made), setting, 8 << len(made) % 2) if poor else maker.complete(len(made), setting)
        )
    made.append(maker.failed(len(made), maker.draw()))
    made.append(replace(maker.waiting(len(made), maker.draw()), state="RUNNING", started="2025-01-01T00:00:00"))
    made.append(maker.waiting(len(made), maker.draw(), "start-up"))
    return study_of(maker, made)


def confirmed_study(store: Path) -> Study:
    """Forty trials of every state, winner confirmed, refined and taken apart: what a report has figures of, it has."""
    study = mixed_study(ResultStore(store))
    record = replace(study.record, confirmation=confirmation(), refined=refined_confirmation())
    return taken_apart(replace(study, record=record))


def judged_by_kl(study: Study) -> Study:
    """The same measurements, as a study that minimises divergence from full precision has them."""

    def judged(trial: TrialRecord) -> TrialRecord:
        running = {step: value / 100 for step, value in trial.running.items()}
        estimate = trial.estimate
        if estimate is not None:
            assert estimate.mean_nll is not None
            estimate = replace(estimate, mean_nll=None, mean_kl=max(0.01, estimate.mean_nll - 3.5))
        return replace(trial, objective=KL, running=running, estimate=estimate)

    record = study.record
    contract = replace(record.contract, objective="kl")
    return replace(study, record=replace(record, contract=contract, trials=tuple(map(judged, record.trials))))


def taken_apart(study: Study) -> Study:
    """The same with the step from nearest rounding to what it recommends."""
    chosen = study.snapshot.recommendation
    assert chosen is not None
    assert chosen.measured.setting is not None
    [nearest] = [
        reference
        for reference in study.record.references
        if reference.name == "rtn" and reference.size_class == chosen.measured.size_class
    ]
    last = Measured(**{field.name: getattr(chosen.measured, field.name) for field in fields(Measured)})
    steps = (nearest, replace(last, name=chosen.measured.setting.method))
    return replace(study, record=replace(study.record, waterfall=steps))


def kept_study(store: ResultStore, trials: int = 24) -> Study:
    """A study of praq-mixed over two shares of kept rows: 4.6 bits, where groups are better, and 6.4."""
    space = make_space(Setting(method="praq-mixed"), {"keep_ratio": "0.05,0.2", "n_calib": 128})

    def truth(setting: Setting) -> float:
        if not setting.definition.keeps_rows:
            return 3.55
        extra = 0.05 if setting.method == "awq-mixed" else 0.05 * abs(math.log(setting.beta_risk / 3))
        return 3.62 - 0.5 * setting.keep_ratio + extra

    maker = Maker(store, space, truth=truth)
    made: list[TrialRecord] = [maker.complete(0, space.project(Setting(method="praq-mixed")), "preset defaults")]
    while len(made) < trials:
        make = maker.pruned if len(made) % 8 == 7 else maker.complete
        made.append(make(len(made), maker.draw()))
    own = [Setting(method="awq-mixed", keep_ratio=ratio) for ratio in (0.05, 0.2)]
    beside = maker.reference(Setting(method="gw-awq", group_size=32))
    references = (maker.reference(None), *map(maker.reference, own), replace(beside, name="gw-awq g32"))
    return study_of(maker, made, references=references)


def study_of(maker: Maker, trials: Sequence[TrialRecord], **changes: object) -> Study:
    """A study with the usual references at every group size of its space."""
    methods = ("rtn", "gw-awq", "gwh-praq-v1")
    sizes = maker.space.sizes("group_size")
    references = [maker.reference(Setting(method=name, group_size=size)) for size in sizes for name in methods]
    record = StudyRecord(
        name="study",
        contract=replace(CONTRACT, space=maker.space),
        references=(maker.reference(None), *references),
        trials=tuple(trials),
    )
    return Study(record=replace(record, **changes), store=maker.store, space=maker.space)  # type: ignore[arg-type]


def confirmation(dataset: str = "C4, held out") -> Confirmation:
    """What confirming the winner gives."""
    names = (FULL_PRECISION, "trial 7", "gw-awq")
    difference = Difference(value=-0.01, standard_error=0.002, low=-0.014, high=-0.006, p_value=0.001, clusters=32)
    comparison = ConfirmedComparison(
        dataset=dataset,
        name="trial 7",
        against="gw-awq",
        percent=percent_interval(difference),
        p_value=difference.p_value,
        holm=0.001,
    )
    return Confirmation(
        group_size=32,
        keep_ratio=None,
        winner="trial 7",
        recommended="trial 7",
        sentence=f"On held-out text trial 7 against gw-awq: -1.00 % on {dataset}: confirmed as better.",
        rows=tuple(
            ConfirmedScore(dataset=dataset, name=name, perplexity=33.0 + place, mean_nll=3.5, tokens=3200)
            for place, name in enumerate(names)
        ),
        comparisons=(comparison,),
    )


def refined_confirmation(dataset: str = "C4, held out") -> RefinedConfirmation:
    """What refining the winner gives."""
    name, interval = "trial 7 refined", Interval(value=-0.02, low=-0.03, high=-0.01)
    comparison = ConfirmedComparison(
        dataset=dataset,
        name=name,
        against="trial 7",
        percent=Interval(value=-1.0, low=-1.5, high=-0.5),
        kl=interval,
        p_value=0.001,
        holm=0.002,
    )
    return RefinedConfirmation(
        refined="trial 7",
        tuned="group scales were tuned on 2048 tokens of some text (3 steps)",
        sentence=f"On held-out text {name} against trial 7: KL -0.0200 on {dataset}: confirmed as nearer.",
        rows=(ConfirmedScore(dataset=dataset, name=name, perplexity=32.0, mean_nll=3.4, tokens=3200, kl=0.08),),
        comparisons=(comparison,),
        kept_step=2,
        looks=tuple(HeldBack(step=step, kl=kl) for step, kl in enumerate((0.1, 0.09, 0.08, 0.085))),
    )


def confirmation_of(winner: str, percents: Mapping[str, float], group_size: int) -> Confirmation:
    """What held-out text gives for a winner that is that many percent from each of the others, known to 0.2 %."""
    texts = ("C4, held out",)
    comparisons = tuple(
        ConfirmedComparison(
            dataset=texts[0],
            name=winner,
            against=name,
            percent=Interval(value=percent, low=percent - 0.2, high=percent + 0.2),
            p_value=0.001 if abs(percent) > 0.2 else 0.6,
            holm=0.001 if abs(percent) > 0.2 else 0.6,
        )
        for name, percent in percents.items()
    )
    rows = tuple(
        ConfirmedScore(dataset=texts[0], name=name, perplexity=33.0, mean_nll=3.5, tokens=3200)
        for name in (FULL_PRECISION, winner, *percents)
    )
    return Confirmation(
        group_size=group_size,
        keep_ratio=None,
        winner=winner,
        recommended=winner,
        sentence=f"On held-out text {winner} was scored.",
        rows=rows,
        comparisons=comparisons,
    )


def _frozen(trial: TrialRecord, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    attributes = {
        SETTING: encode(trial.setting),
        ORIGIN: trial.origin,
        OUTCOME: trial.outcome,
        RESULT: trial.result,
        ESTIMATE: encode(trial.estimate),
        REASON: trial.reason,
        BITS: trial.bits_per_weight,
        BYTES: trial.model_bytes,
        SIZE: encode(trial.size),
        SECONDS: dict(trial.seconds),
        TOKENS_KEY: trial.tokens,
        OWNER: encode(trial.owner),
        PERPLEXITY: trial.perplexity,
        KL_KEY: trial.kl,
        FLIPS: trial.flips,
    }
    return create_trial(
        state=TrialState[trial.state],
        value=trial.value,
        params=dict(trial.params),
        distributions=dict(distributions),
        intermediate_values=dict(trial.running),
        user_attrs={name: value for name, value in attributes.items() if value is not None},
    )


def _running(score: Score, read: int) -> dict[int, float]:
    sums, tokens = score.nll.cumsum(0), score.tokens.cumsum(0)
    sizes = [size for size in look_sizes(SEQUENCES) if size <= read]
    return {size: math.exp(float(sums[size - 1] / tokens[size - 1])) for size in sizes}


def _bits(setting: Setting | None) -> float:
    if setting is None:
        return 16.0
    return 4 + 12 * setting.keep_ratio if setting.definition.keeps_rows else 4 + 16 / setting.group_size


def _bytes(setting: Setting | None) -> int:
    """A million weights in blocks, and a tenth as many elsewhere in 16 bit."""
    return round((1_000_000 * _bits(setting) + 1_600_000) / 8)


def _size(setting: Setting | None) -> ModelSize:
    """The same bytes by what they are spent on."""
    blocks, outside = 1_000_000 * _bits(setting) / 8, 200_000.0
    if setting is None:
        return ModelSize(weights=1_000_000, codes=0.0, scales=0.0, rest=blocks, outside=outside)
    kept = 2_000_000 * setting.keep_ratio if setting.definition.keeps_rows else 0.0
    codes = 500_000 - kept / 4
    return ModelSize(weights=1_000_000, codes=codes, scales=blocks - codes - kept, rest=kept, outside=outside)
