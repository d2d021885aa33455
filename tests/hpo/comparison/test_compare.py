"""Comparisons: ranks with ties, correction, gaps, choices at equal bits, and that nothing is measured twice."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import hpo.comparison.compare
import hpo.workers.measuring
from hpo.comparison.compare import compare
from hpo.comparison.entries import Entry, Kind
from hpo.comparison.export import printed_comparison, rows_csv
from hpo.comparison.page import write_page
from hpo.comparison.plan import ComparePlan, method_settings, model_directories
from hpo.comparison.plots import drawn, pictures
from hpo.comparison.statistics import ranks
from hpo.comparison.verdict import Comparison, judge
from hpo.space.space import make_space
from hpo.study.record import FULL_PRECISION, Measured, StudyRecord
from objectives.errors import InputError, RunError
from objectives.evaluation import BenchPlan, LaidOut
from objectives.model.loading import ModelPlan
from objectives.paired import paired_difference
from objectives.progress import silent
from objectives.text.sequences import TextPlan
from objectives.trial import Bench
from quant.errors import QuantizationError
from quant.methods import METHODS
from quant.setting import Setting
from storage.paths import Paths
from storage.strict_json import json_text
from storage.typed_json import encode
from tests.hpo.made_studies import CONTRACT, reference, score, trial
from tests.objectives import tiny

SPACE = make_space(Setting(), {})
COUNT = 40
DATASETS = ("near", "far")


def encoded(comparison: Comparison) -> Any:
    """What programs are told of a comparison."""
    return encode(printed_comparison(comparison))


def noise(seed: int) -> torch.Tensor:
    """Standard normal without a mean, so that a row's increase is exactly what a test says."""
    drawn = torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn - drawn.mean()


def entry(
    name: str,
    *increases: float,
    spread: float = 0.01,
    bits: float = 4.125,
    kind: Kind = "method",
    packed: bool = True,
) -> Entry:
    """A row so many nats above full precision on each data set; its sequences differ by `spread`."""
    base = [3 + 0.3 * noise(100 + place) for place in range(len(increases))]
    seed = sum(map(ord, name))
    scores = tuple(
        score(at + increase + spread * noise(seed + place))
        for place, (at, increase) in enumerate(zip(base, increases, strict=True))
    )
    return Entry(
        kind=kind,
        measured=Measured(
            name=name,
            setting=Setting(method=name) if name in METHODS else None,
            perplexity=scores[0].perplexity,
            result=None,
            bits_per_weight=bits,
            model_bytes=round(bits * 1e6),
            seconds={"quantize": 2.0, "score": 1.0},
        ),
        scores=scores,
        score_seconds=(0.5,) * len(scores),
        packed=packed,
    )


def judged(*entries: Entry, notes: Sequence[str] = ()) -> Comparison:
    """A comparison of these rows with a full precision that has no noise of its own."""
    count = len(entries[0].scores)
    full = entry(FULL_PRECISION, *[0.0] * count, spread=0, bits=16, kind="full precision", packed=False)
    return judge({"model": {"name": "tiny"}}, DATASETS[:count], [full, *entries], notes)


# Ranks


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        ([], [1, 1, 1, 1]),
        (["ab", "ac", "ad", "bc", "bd", "cd"], [1, 2, 3, 4]),
        (["ac", "ad", "bc", "bd"], [1, 1, 3, 3]),
        (["ad"], [1, 1, 1, 4]),
        # b and c are alike, but c differs from the leader a; d is like c, its new leader.
        (["ac", "ad"], [1, 1, 3, 3]),
        # Every row is like its neighbours: asking neighbours would put all of them on rank 1.
        (["ac", "ad", "bd"], [1, 1, 3, 3]),
    ],
)
def test_rows_share_the_rank_of_the_leader_that_they_do_not_differ_from(apart: list[str], expected: list[int]) -> None:
    """Ties are ties, and the next rank is a place."""
    assert list(ranks("abcd", lambda first, second: first + second in apart).values()) == expected


def test_ranks_follow_significance_after_correction() -> None:
    """A row far behind has a rank of its own; one within noise of the best shares it; full precision has none."""
    found = judged(entry("rtn", 0.2), entry("gw-awq", 0.1), entry("gwh-praq-v1", 0.1002))
    assert found.ranks["near"] == {"gw-awq": 1, "gwh-praq-v1": 1, "rtn": 3}


def test_a_difference_that_correction_takes_away_is_a_tie() -> None:
    """Significant alone, not significant among many pairs: one rank."""
    close = entry("gw-awq", 0.1), entry("gwh-praq-v1", 0.1064)
    others = [entry(name, 0.1032, spread=0.03) for name in ("rtn", "gw-praq", "awq", "praq-real")]
    found = judged(*close, *others)
    pair = next(pair for pair in found.pairs if {pair.first, pair.second} == {"gw-awq", "gwh-praq-v1"})
    assert pair.difference.p_value < 0.05 < pair.corrected
    assert found.ranks["near"]["gw-awq"] == found.ranks["near"]["gwh-praq-v1"] == 1


def test_ranks_at_equal_bits_ignore_rows_of_other_sizes() -> None:
    """A row that takes more memory does not push others down among their own, and unknown sizes have no such rank."""
    dense = entry("mine", 0.01, bits=16, kind="model", packed=False)
    found = judged(entry("rtn", 0.2), entry("awq-mixed", 0.05, bits=6.4), dense)
    assert found.ranks["near"] == {"mine": 1, "awq-mixed": 2, "rtn": 3}
    assert found.equal_ranks["near"] == {"rtn": 1, "awq-mixed": 1}


# Pairs


def test_holm_corrects_all_pairs_on_all_data_sets_together() -> None:
    """Every two rows once on every data set, and the least p-value times the number of all of them."""
    found = judged(entry("rtn", 0.2, 0.001), entry("gw-awq", 0.1, 0.002), entry("awq", 0.15, 0.1))
    names = [FULL_PRECISION, "rtn", "gw-awq", "awq"]
    assert [(pair.dataset, pair.first, pair.second) for pair in found.pairs] == [
        (text, *pair) for text in ("near", "far") for pair in combinations(names, 2)
    ]
    by_size = sorted(found.pairs, key=lambda pair: pair.difference.p_value)
    assert by_size[0].corrected == pytest.approx(12 * by_size[0].difference.p_value)
    assert by_size[-1].corrected == max(pair.corrected for pair in found.pairs)
    for pair in found.pairs:
        at = DATASETS.index(pair.dataset)
        first, second = (
            next(entry for entry in found.entries if entry.name == name) for name in (pair.first, pair.second)
        )
        assert pair.difference == paired_difference(first.scores[at], second.scores[at])


# Generalisation


def test_the_gap_is_the_increase_elsewhere_minus_the_increase_on_the_first() -> None:
    """With Welch's interval, as an independent implementation has it."""
    found = judged(entry("rtn", 0.10, 0.13, spread=0.02), entry("gw-awq", 0.05, 0.05, spread=0))
    rtn, awq = found.gaps
    assert (rtn.name, rtn.dataset) == ("rtn", "far")
    assert rtn.value == pytest.approx(0.03)
    full, row = found.entries[:2]
    near, far = ((row.scores[at].nll - full.scores[at].nll).numpy() / 10 for at in (0, 1))
    interval = stats.ttest_ind(far, near, equal_var=False).confidence_interval(0.95)
    assert (rtn.low, rtn.high) == pytest.approx((interval.low, interval.high))
    assert (awq.value, awq.low, awq.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_one_data_set_has_no_gap() -> None:
    """There is nothing to generalise to, and no figure of it."""
    found = judged(entry("rtn", 0.1))
    assert not found.gaps
    assert "generalisation" not in drawn(found)


# Recommendation


def test_only_rows_of_equal_bits_are_weighed_against_each_other() -> None:
    """More memory buys less perplexity; the choice is made within every size, the size of most rows first."""
    found = judged(
        entry("rtn", 0.2),
        entry("gw-awq", 0.1),
        entry("awq-mixed", 0.01, bits=6.4),
        entry("mine", 0.0, bits=16, kind="model", packed=False),
    )
    assert [(choice.bits, choice.recommended) for choice in found.choices] == [(4.125, "gw-awq"), (6.4, "awq-mixed")]
    assert found.choices[0].rows == ("gw-awq", "rtn")
    assert "a meaningful win" in found.choices[0].sentence
    assert "not a meaningful win" not in found.choices[0].sentence
    assert "the only row of that size" in found.choices[1].sentence
    assert found.recommendation.startswith("At 4.125 bits per weight: gw-awq")
    assert "Only rows of equal bits per weight" in found.recommendation


def test_the_simplest_row_within_noise_is_recommended() -> None:
    """Nearest rounding, where searching buys nothing that could be seen."""
    found = judged(entry("gwh-praq-v2", 0.1), entry("rtn", 0.1003))
    assert found.choices[0].recommended == "rtn"
    assert "not a meaningful win" in found.choices[0].sentence


def test_a_choice_that_another_data_set_contradicts_says_so() -> None:
    """The first data set decides, and the sentence names what is better elsewhere."""
    found = judged(entry("rtn", 0.2, 0.1), entry("gw-awq", 0.1, 0.2))
    assert found.choices[0].recommended == "gw-awq"
    assert "on far rtn is better (-9.5" in found.choices[0].sentence


def test_nothing_quantized_means_nothing_recommended() -> None:
    """Ready-made models of unknown size alone."""
    found = judged(entry("mine", 0.1, bits=16, kind="model", packed=False))
    assert found.choices == ()
    assert found.recommendation.startswith("Nothing is recommended")
    assert pictures(found)


# JSON, CSV and the page


def test_rows_say_what_they_are_compared_with() -> None:
    """Differences to full precision and to the first method, sizes and speed, for every row and data set."""
    found = encoded(judged(entry("rtn", 0.2, 0.1), entry("gw-awq", 0.1, 0.2)))
    assert set(found) == {"about", "rows", "pairs", "gaps", "recommendation", "notes"}
    rows = {(row["method"], row["dataset"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 6
    full, rtn, awq = (rows[name, "near"] for name in (FULL_PRECISION, "rtn", "gw-awq"))
    assert full["delta"] is full["delta_to_first"] is full["rank"] is full["setting"] is None
    assert awq["delta"]["value"] == pytest.approx(0.1)
    assert awq["delta_percent"]["value"] == pytest.approx(100 * (awq["perplexity"] / full["perplexity"] - 1))
    assert awq["delta_to_first"]["value"] == pytest.approx(-0.1)
    assert rtn["delta_to_first"] == {"value": 0, "low": 0, "high": 0}
    assert (rtn["model_mb"], rtn["compression_ratio"]) == (4.125, pytest.approx(16 / 4.125))
    assert (rtn["quantize_seconds"], rtn["dense_tokens_per_second"]) == (2.0, COUNT * 10 / 0.5)
    assert rtn["setting"]["method"] == "rtn"


def test_the_json_is_strict_where_nothing_is_known_of_an_error() -> None:
    """One document has no interval; what is not finite becomes null."""
    found = judged(entry("rtn", 0.2))
    alone = [
        replace(entry, scores=(replace(entry.scores[0], clusters=torch.zeros(COUNT, dtype=torch.int64)),))
        for entry in found.entries
    ]
    single = judge({}, ["near"], alone, [])
    record = json.loads(json_text(encoded(single)))
    rtn = next(row for row in record["rows"] if row["method"] == "rtn")
    assert rtn["delta"] == {"value": pytest.approx(0.2), "low": None, "high": None}
    assert set(pictures(single)) == {"perplexity", "increase", "bits"}


def test_the_csv_has_a_row_per_method_and_data_set() -> None:
    """With differences in three columns each, empty where there are none."""
    found = judged(entry("rtn", 0.2, 0.1), entry("gw-awq", 0.1, 0.2))
    rows = list(csv.DictReader(io.StringIO(rows_csv(found))))
    assert [(row["method"], row["dataset"]) for row in rows][:2] == [(FULL_PRECISION, "near"), ("rtn", "near")]
    assert len(rows) == 6
    assert rows[0]["delta"] == rows[0]["rank"] == ""
    assert float(rows[1]["delta_low"]) < float(rows[1]["delta"]) == pytest.approx(0.2)
    assert rows[2]["rank"] == "1"


def test_the_page_needs_no_other_file_and_trusts_no_name(tmp_path: Path) -> None:
    """Pictures are inside it, names are text, and a row that is off the scale does not break a figure."""
    found = judged(entry("rtn", 0.2, 0.1), entry("awq", 9.0, 8.0), entry("<b>", 0.1, 0.2), notes=["a <note>"])
    page = write_page(found, tmp_path / "new" / "page").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "<b>" not in page
    assert "a &lt;note&gt;" in page
    for outside in ('src="http', "url(", "<script", "<link", 'href="http'):
        assert outside not in page
    for name in ("perplexity", "increase", "bits", "generalisation"):
        assert (tmp_path / "new" / "page" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# Measuring


PLAN = BenchPlan(
    model=ModelPlan(),
    calibration=TextPlan(source="a", part="calibration", count=8),
    data=(TextPlan(source="a", part="tuning", count=4),),
)


class Bundle:
    """A tiny model with two texts in the place of what a plan lays out; counts what is scored and quantized."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = Paths(directory)
        self.bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), directory)
        self.data = [tiny.sequences([24] * 6, seed=seed) for seed in (2, 3)]
        self.work: list[str] = []
        monkeypatch.setattr(hpo.comparison.compare, "lay_out", self.lay_out)
        for name in ("score_all", "quantized"):
            monkeypatch.setattr(hpo.workers.measuring, name, self.counted(name))

    def lay_out(self, *_: object) -> LaidOut:
        return LaidOut(bench=self.bench, data=self.data, agreement=None)

    def counted(self, name: str) -> Any:
        original = getattr(hpo.workers.measuring, name)

        def run(first: Any, second: Any, *others: Any) -> Any:
            self.work.append(name if name == "score_all" else f"quantized {second and second.only.method}")
            return original(first, second, *others)

        return run

    def compare(self, *methods: str, **changes: Any) -> Comparison:
        settings = tuple(Setting(method=name, group_size=32, n_calib=8, n_grid=3) for name in methods)
        plan = ComparePlan(bench=PLAN, settings=settings, **{"models": {}, **changes})
        return compare(plan, self.paths, silent)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    return Bundle(tmp_path, monkeypatch)


def test_nothing_is_measured_twice(bundle: Bundle) -> None:
    """Full precision and every method once on each text; a second comparison measures what is new in it."""
    first = bundle.compare("rtn", "gw-awq")
    assert bundle.work.count("score_all") == 6
    assert [step for step in bundle.work if step != "score_all"] == [
        "quantized None",
        "quantized rtn",
        "quantized gw-awq",
    ]
    bundle.work.clear()
    second = bundle.compare("rtn", "awq-mixed", "gw-awq")
    assert bundle.work == ["quantized awq-mixed", "score_all", "score_all"]
    mean_nll = {row["method"]: row["mean_nll"] for row in encoded(second)["rows"]}
    assert {row["method"]: row["mean_nll"] for row in encoded(first)["rows"]}.items() <= mean_nll.items()


def test_all_methods_are_rows_with_their_bits(bundle: Bundle) -> None:
    """Eleven of them, in the order of the table of methods, after full precision."""
    found = bundle.compare(*METHODS)
    assert [entry.name for entry in found.entries] == [FULL_PRECISION, *METHODS]
    assert found.choices[0].bits == 4.5
    assert len(found.choices[0].rows) == 5


def test_a_setting_that_does_not_suit_is_refused_before_anything_is_measured(bundle: Bundle) -> None:
    """Also when it comes last."""
    plan = ComparePlan(bench=PLAN, settings=(Setting(method="rtn", group_size=48, n_calib=8),), models={})
    with pytest.raises(InputError, match="group size 48"):
        compare(plan, bundle.paths, silent)
    assert bundle.work == []


def test_a_method_that_fails_is_left_out_with_its_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are compared all the same; full precision is needed."""
    original = hpo.comparison.compare.measure

    def failing(bench: Bench, store: Any, setting: Setting | None, *others: Any) -> Any:
        if setting is not None and setting.method == "awq":
            raise RunError("awq gives NaN or Inf")
        return original(bench, store, setting, *others)

    monkeypatch.setattr(hpo.comparison.compare, "measure", failing)
    found = bundle.compare("rtn", "awq")
    assert [entry.name for entry in found.entries] == [FULL_PRECISION, "rtn"]
    assert "awq is left out: awq gives NaN or Inf" in found.notes


def test_ready_made_models_that_cannot_be_compared_are_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those whose tokenizer reads other tokens; one that reads the same is a row.

    It diverges from the model that is compared, and is measured anew where that is another one.
    """
    other = tiny.model(tiny.LAYOUTS["llama"](), seed=5)
    same = tiny.bench(other, tmp_path)
    loaded: list[str] = []

    def load(plan: BenchPlan, paths: Paths, *_: object) -> Any:
        loaded.append(Path(plan.model.name).name)
        data = bundle.data if "same" in plan.model.name else [bundle.data[0], tiny.sequences([24] * 6, seed=9)]
        return same, data

    monkeypatch.setattr(hpo.comparison.compare, "load_bench", load)
    for name in ("same", "different"):
        (tmp_path / name).mkdir()
    models = {name: tmp_path / name for name in ("different", "same")}
    found = bundle.compare("rtn", models=models)
    assert [(entry.name, entry.kind, entry.packed) for entry in found.entries[2:]] == [("same", "model", False)]
    assert loaded == ["different", "same"]
    divergence = found.entries[2].scores[0].kl
    assert divergence is not None
    assert float(divergence.min()) > 0.01
    notes = " | ".join(found.notes)
    assert "different is left out: its tokenizer reads random-3 as other tokens" in notes
    assert "same: its bits and bytes are those of its dense weights" in notes


def test_a_studys_best_trial_is_a_row_with_what_flatters_it(bundle: Bundle) -> None:
    """Measured here under its own name, with a note on other weights and on text that it was chosen on."""
    setting = Setting(group_size=32, n_calib=4, n_grid=3)
    model, tuning = replace(CONTRACT.model, name="m"), replace(CONTRACT.tuning, source=bundle.data[0].source)
    contract = replace(CONTRACT, model=model, tuning=tuning)
    chosen = trial(3, SPACE, setting, 9.0)
    record = StudyRecord(name="s", contract=contract, references=(), trials=(chosen,))
    found = bundle.compare("rtn", study=record, chosen=chosen)
    row = found.entries[-1]
    assert (row.name, row.kind, row.measured.setting) == ("trial 3 of s", "trial", setting)
    assert row.measured.perplexity == pytest.approx(row.scores[0].perplexity)
    assert set(found.choices[0].rows) == {"rtn", "trial 3 of s"}
    assert any("was found on m" in note for note in found.notes)
    assert any("which flatters it there" in note for note in found.notes)


def test_a_reference_that_a_study_recommends_is_a_row_beside_the_same_method(bundle: Bundle) -> None:
    """It equals that method where the settings are the same, and was not chosen on the text, so nothing flatters it."""
    tuning = replace(CONTRACT.tuning, source=bundle.data[0].source)
    setting = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=3)
    chosen = reference(setting)
    record = StudyRecord(name="s", contract=replace(CONTRACT, tuning=tuning), references=(chosen,), trials=())
    found = bundle.compare("rtn", "gw-awq", study=record, chosen=chosen, notes=("why it is that one",))
    row, same = found.entries[-1], found.entries[-2]
    assert (row.name, row.kind, row.measured.setting) == ("gw-awq g32 of s", "method", setting)
    assert row.measured.perplexity == same.measured.perplexity
    assert set(found.choices[0].rows) == {"rtn", "gw-awq", "gw-awq g32 of s"}
    assert "why it is that one" in found.notes
    assert not any("flatters" in note for note in found.notes)


# What a person types


def test_methods_are_named_once_or_all() -> None:
    """Repetitions count once, given fields reach every method, unknown names are refused."""
    assert [setting.method for setting in method_settings("rtn, awq,rtn", {"n_calib": 8})] == ["rtn", "awq"]
    assert {setting.n_calib for setting in method_settings("all", {"n_calib": 8})} == {8}
    assert [setting.method for setting in method_settings("all", {})] == list(METHODS)
    with pytest.raises(QuantizationError, match="method 'gptq' is unknown; choose one of rtn"):
        method_settings("rtn,gptq", {})
    with pytest.raises(InputError, match="no method is named"):
        method_settings(",", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("./dir", "is not of the form NAME=DIR"),
        ("a=", "is not of the form NAME=DIR"),
        ("=./dir", "is not of the form NAME=DIR"),
        ("a=x,", "is not of the form NAME=DIR"),
        ("a=x,a=y", "names 'a' twice"),
    ],
)
def test_models_that_cannot_be_told_apart_are_refused(text: str, message: str) -> None:
    """What was received, and the form."""
    with pytest.raises(InputError, match=message):
        model_directories(text)


def test_models_have_names_that_no_method_has() -> None:
    """So that every row has a name of its own; a directory may contain an equals sign."""
    assert model_directories("a=x=1, b=y") == {"a": Path("x=1"), "b": Path("y")}
    with pytest.raises(InputError, match="rtn is the name of a method"):
        ComparePlan(bench=replace(PLAN), settings=(), models={"rtn": Path("x")})


def test_models_are_directories(tmp_path: Path) -> None:
    """All that are none are named before anything is measured."""
    (tmp_path / "file").touch()
    models = {"a": tmp_path, "b": tmp_path / "file", "c": tmp_path / "absent"}
    with pytest.raises(InputError, match=r"file, .*absent of --models is not a directory; give the directory of a"):
        ComparePlan(bench=replace(PLAN), settings=(), models=models)


def test_packages_that_read_a_model_are_missing_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQ and AWQ need some of their own; what a directory does not say of itself is found when it is loaded."""
    monkeypatch.setattr("objectives.export.runtime.installed", lambda package: package == "transformers")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="of --models with gptqmodel and optimum; install that, or leave it out"):
        model_directories(f"a={tmp_path}")
    for text in ("{}", "[]", "", '{"quantization_config": {"quant_method": "compressed-tensors"}}'):
        config.write_text(text)
        assert model_directories(f"a={tmp_path}") == {"a": tmp_path}
