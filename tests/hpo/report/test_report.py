"""The report of a study says the verdict first, has all the numbers, and leaves nothing out unsaid."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

import hpo.report.write
from hpo.report import figures, plots
from hpo.report.axes import varied_axes
from hpo.report.caption import Caption, FigureKey
from hpo.report.captions import captions
from hpo.report.charts import ChartData, chart_data
from hpo.report.export import study_json
from hpo.report.plan_data import PlanData
from hpo.report.write import write_report
from hpo.space.space import make_space
from hpo.study.record import StudyRecord
from hpo.study.scores import Scores
from hpo.verdict.importance import importances
from hpo.verdict.snapshot import Study as Snapshot
from hpo.verdict.snapshot import ranked
from hpo.verdict.words import percent_text
from objectives.paired import paired_difference
from quant.setting import Setting
from storage.results import ResultStore
from tests.conftest import PICTURES, blank
from tests.hpo.made_studies import (
    CONTRACT,
    SEQUENCES,
    TOKENS,
    Maker,
    Study,
    confirmation,
    confirmed_study,
    judged_by_kl,
    kept_study,
    mixed_study,
    refined_confirmation,
    study_of,
    taken_apart,
)

FIGURES = (
    "forest",
    "waterfall",
    "bits",
    "elsewhere",
    "refining",
    "damage",
    "importances",
    "beta-tau",
    "slices",
    "parallel",
    "history",
    "running",
)
FIGURES += ("remaining", "loss", "alpha", "memory")
# What can be drawn of references alone.
OF_REFERENCES = {"forest", "bits", "damage", "memory"}
FILES = {"index.html", "report.md", "result.json", "trials.csv"}
AXES = ("xaxis", "yaxis")
VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """What a page holds: visible text in order, figures as JSON, attributes of every element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._json = False
        self.feed(page)
        self.close()
        assert not self.open, f"{self.open} are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self._json = tag == "script" and dict(attrs).get("type") == "application/json"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._json:
            self.figures.append(json.loads(data, parse_constant=refuse))
            self._json = False
        elif "body" in self.open and "script" not in self.open and data.strip():
            self.text.append(" ".join(data.split()))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def written(study: Study, directory: Path, record: StudyRecord | None = None) -> Reader:
    """Write the report of a study, perhaps with another record, and read its page."""
    path = write_report(replace(study.snapshot, record=record or study.record), directory)
    assert path == directory / "index.html"
    return Reader(path.read_text(encoding="utf-8"))


def traces(page: Reader, name: str) -> list[dict[str, Any]]:
    return [trace for figure in page.figures for trace in figure["data"] if trace.get("name") == name]


def history(page: Reader) -> dict[str, Any]:
    """The figure of trials by their numbers."""
    [found] = [figure for figure in page.figures if figure["layout"]["xaxis"]["title"]["text"] == "trial"]
    return found


def draw_only(patch: pytest.MonkeyPatch, *keys: str) -> None:
    """Have reports draw these pictures alone: the others take seconds."""
    drawn = hpo.report.write._pictures

    def some(captions: Sequence[Caption], data: ChartData) -> dict[str, bytes | None]:
        return {**blank(captions, data), **drawn([caption for caption in captions if caption.key in keys], data)}

    patch.setattr(PICTURES, some)


def pictures(directory: Path) -> set[str]:
    """The figures that there are as PNG and as SVG."""
    drawn = {path.stem for path in directory.glob("*.png")}
    assert drawn == {path.stem for path in directory.glob("*.svg")}
    return drawn


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """What `mixed_report` reports."""
    return confirmed_study(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return mixed_study(ResultStore(tmp_path_factory.mktemp("small-store")), 12)


@pytest.fixture(scope="module")
def folder(mixed_report: Path) -> Path:
    return mixed_report


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return Reader((folder / "index.html").read_text(encoding="utf-8"))


def test_each_figure_has_a_caption_and_is_drawn_for_screen_and_paper(small: Study) -> None:
    """A figure that is added to one of them is added to all, and stands on the page where the list has it."""
    keys = get_args(FigureKey)
    assert set(figures.DRAWN) == set(plots.DRAWN) == set(keys)
    data = replace(
        chart_data(ranked(small.record, Scores(small.store))), plans=PlanData(name="trial 1", volume=((1, 0.5),))
    )
    assert tuple(caption.key for caption in captions(data)) == keys


def test_a_report_is_one_folder_with_everything(folder: Path) -> None:
    """Page, Markdown, data and every figure as a picture with something on it; no temporary file stays."""
    drawn = {f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == FILES | drawn
    for name in FIGURES:
        picture = matplotlib.image.imread(folder / f"{name}.png")
        assert picture[..., :3].std() > 0.05, name
        assert "<svg" in (folder / f"{name}.svg").read_text(encoding="utf-8")[:500]


def test_the_verdict_comes_first(mixed: Study, folder: Path, page: Reader) -> None:
    """Of the leading group size, before anything else is read: in the page and in the Markdown."""
    chosen = mixed.snapshot.recommendation
    assert chosen is not None
    assert page.text[0] == chosen.verdict
    assert page.text[2] == chosen.sentence()
    assert page.text[page.text.index("Is it real") + 1] == (
        f"{confirmation().sentence} Held-out text was read for group size 32 alone: the other sizes are not tested."
    )
    first = (folder / "report.md").read_text(encoding="utf-8").splitlines()[0]
    assert first.replace("\\", "") == f"# {chosen.verdict}"


def test_every_state_is_counted(mixed: Study, page: Reader) -> None:
    """Running and waiting trials belong to the study as well."""
    counts = [trial.state for trial in mixed.record.trials].count
    assert page.text[1] == (
        f"Study study: 40 trials: {counts('COMPLETE')} complete, {counts('PRUNED')} pruned, "
        "1 failed, 1 running, 1 waiting."
    )


def test_the_page_works_without_a_network(folder: Path, page: Reader) -> None:
    """The library is in it, once; nothing is loaded from elsewhere."""
    assert (folder / "index.html").read_text(encoding="utf-8").count(get_plotlyjs()) == 1
    loaded = [
        value
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href") and not (tag == "a" and str(value).startswith("#"))
    ]
    assert len(loaded) == len(FIGURES)
    assert all(str(value).startswith("data:image/png;base64,iVBOR") for value in loaded)
    assert (folder / "index.html").stat().st_size < 8_000_000


def test_every_figure_can_be_read_without_seeing_it(page: Reader) -> None:
    """Plots carry a label and pictures a text, and each says what is shown."""
    labels = [attributes["aria-label"] for _, attributes in page.elements if attributes.get("class") == "plot"]
    pictures = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert len(labels) == len(page.figures)
    assert len(pictures) == len(FIGURES)
    assert all(label and len(label) > 30 for label in (*labels, *pictures))


def test_the_ranking_shows_all_references_at_every_group_size(mixed: Study, page: Reader) -> None:
    """Each table has the three references, full precision, and percent with an interval."""
    for ranking in mixed.rankings:
        start = page.text.index(ranking.title)
        rows = page.text[start : page.text.index("full precision", start) + 1]
        assert {"rtn", "gw-awq", "gwh-praq-v1", "full precision"} <= set(rows)
        assert f"{ranking.recommended.measured.name} (recommended)" in rows
        assert f"{ranking.rows[1].score.perplexity:.3f}" in rows
        assert f"{ranking.rows[1].measured.bits_per_weight:.3f}" in rows
        assert sum(cell.endswith("]") and " % [" in cell for cell in rows) >= 3


def test_kept_rows_are_reported_by_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One level for each share, with the groups that take no more memory; figures tell shares apart; no group size."""
    draw_only(monkeypatch, "forest", "bits")
    study = kept_study(ResultStore(tmp_path / "store"))
    few, many = study.rankings
    page = written(study, tmp_path / "report")
    assert page.text[0] == study.snapshot.recommended(many).verdict
    assert many.comparison().startswith("One scale per row, 20 % of rows in 16 bit: ")
    assert "gw-awq g32" in few.comparison()
    for ranking in (few, many):
        start = page.text.index(ranking.title)
        cells = page.text[start : page.text.index("full precision", start)]
        assert {"awq-mixed", "gw-awq g32"} <= {cell.removesuffix(" (recommended)") for cell in cells}
    names = [f"one scale per row, {share} % of rows in 16 bit" for share in (5, 20)]
    shares = {title: [trial for trial in study.record.complete if str(trial.size_class) == title] for title in names}
    for name, trials in shares.items():
        assert {len(trace["x"]) for trace in traces(page, name)} == {len(trials)}
    assert traces(page, "gw-awq g32")
    result = json.loads((tmp_path / "report" / "result.json").read_text())
    assert [(ranking["group_size"], ranking["keep_ratio"]) for ranking in result["ranking"]] == [
        (None, 0.05),
        (None, 0.2),
    ]
    assert "keep_ratio" in result["importances"]["overall"]["fanova"]
    assert "keep_ratio" not in result["importances"]["equal_group_size"]["fanova"]
    assert not [text for text in page.text if "group size 128" in text]


def test_what_is_drawn_is_what_was_measured(mixed: Study, page: Reader) -> None:
    """History: complete trials at their perplexity, pruned ones at their estimate, the failed one, the best so far."""
    [complete], [pruned] = traces(page, "complete")[:1], traces(page, "pruned, estimated")
    done = [trial for trial in mixed.record.trials if trial.state == "COMPLETE"]
    assert complete["x"] == [trial.number for trial in done]
    assert complete["y"] == [trial.perplexity for trial in done]
    given_up = [(trial.number, trial.estimate) for trial in mixed.record.pruned]
    assert pruned["x"] == [number for number, _ in given_up]
    edge = history(page)["layout"]["yaxis"]["range"][1]
    assert pruned["y"] == [min(estimate.value, edge) for _, estimate in given_up if estimate]
    assert min(pruned["y"]) < edge
    assert [trace["x"] for trace in traces(page, "failed")] == [[37]]
    assert traces(page, "best so far")[0]["y"] == np.minimum.accumulate(complete["y"]).tolist()


@pytest.mark.usefixtures("no_pictures")
def test_an_outlier_does_not_flatten_the_figures(tmp_path: Path) -> None:
    """A catastrophic setting stands at the upper edge; the axis ends where the others do."""
    space = make_space(Setting(), {"group_size": 64})
    maker = Maker(ResultStore(tmp_path / "store"), space)
    trials = [maker.complete(number, maker.draw()) for number in range(9)]
    broken = replace(trials[4], perplexity=1e6)
    study = study_of(maker, [*trials[:4], broken, *trials[5:]])
    page = written(study, tmp_path / "report")
    highest = max(trial.perplexity or 0.0 for trial in (*trials[:4], *trials[5:]))
    edge = history(page)["layout"]["yaxis"]["range"][1]
    assert highest < edge < 1.2 * highest
    complete = traces(page, "complete")[0]
    assert complete["y"][4] == edge
    assert "1000000.000" in complete["text"][4]


def test_layers_of_the_best_trial_are_laid_out_by_depth_and_role(page: Reader) -> None:
    """All grids have a row for every role and a column for every block; shares of the loss add up."""
    maps = [trace for figure in page.figures for trace in figure["data"] if trace["type"] == "heatmap"]
    assert [trace["y"] for trace in maps] == [["q", "k", "v", "o", "gate", "up", "down"]] * 3
    assert all(trace["x"] == list(range(6)) for trace in maps)
    remaining, avoided, alpha = maps
    assert sum(cell for row in remaining["customdata"] for cell in row) == pytest.approx(100)
    assert all(0 <= cell <= 60 for row in avoided["z"] for cell in row)
    assert all(0 <= cell <= 1 for row in alpha["z"] for cell in row)


def test_what_is_recommended_is_taken_apart(mixed: Study, folder: Path, page: Reader) -> None:
    """Bars reach from one mean NLL to the next above full precision; a table and `result.json` have the same steps."""
    nearest, last = mixed.snapshot.waterfall
    full = next(reference for reference in mixed.record.references if reference.setting is None)
    lost = [step.score.mean_nll - math.log(full.perplexity or 0) for step in (nearest, last)]
    [figure] = [one for one in page.figures if one["layout"]["xaxis"]["title"]["text"].startswith("nats per token")]
    [bars] = figure["data"]
    assert bars["base"] == pytest.approx([0, lost[0], 0])
    assert bars["x"] == pytest.approx([lost[0], lost[1] - lost[0], lost[1]])
    change = paired_difference(last.score, nearest.score)
    assert bars["error_x"]["array"] == pytest.approx([0, change.high - change.value, 0])
    start = page.text.index("From nearest rounding to what is recommended")
    assert percent_text(change) in page.text[start : start + 20]
    assert f"{100 * lost[1] / lost[0]:.0f} %" in page.text[start : start + 20]
    assert percent_text(change) in (folder / "report.md").read_text(encoding="utf-8").replace("\\", "")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [step["name"] for step in result["waterfall"]] == ["rtn", last.measured.name]
    assert result["waterfall"][1]["percent_change"]["value"] == pytest.approx(change.percent()[0])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("lost", [True, False])
def test_steps_to_what_is_no_longer_recommended_are_not_shown(lost: bool, tmp_path: Path) -> None:
    """A study that went on, and one whose values are not all there, say that nothing is measured."""
    study = taken_apart(mixed_study(ResultStore(tmp_path / "store"), 12))
    record = study.record
    if lost:
        steps = (replace(record.waterfall[0], result="lost"), record.waterfall[1])
    else:
        steps = (*record.waterfall, replace(record.waterfall[0], name="+gptq"))
    page = written(study, tmp_path / "report", replace(record, waterfall=steps))
    text = "Left out: nothing between nearest rounding and what is recommended is measured."
    assert text in page.text
    assert "waterfall" not in pictures(tmp_path / "report")


def test_what_mattered_has_intervals_and_a_warning(mixed: Study, page: Reader) -> None:
    """Bars with error bars, a table, how many trials they are over; what cannot be told apart is said, too."""
    found = importances(mixed.record.contract.space, mixed.record.trials)
    for shares, bars in zip(found.scopes, traces(page, "fANOVA"), strict=True):
        error_bars = bars["error_x"]
        for name, value, below, above in zip(
            bars["y"], bars["x"], error_bars["arrayminus"], error_bars["array"], strict=True
        ):
            share = shares.fanova[name]
            assert (value, value - below, value + above) == pytest.approx((share.value, share.low, share.high))
            assert shares.mean[name].percent(1) in page.text
        assert f"{shares.scope}, {shares.counted}" in page.text
    warning = found.deciding.warning
    assert warning is not None
    assert sum(warning in text for text in page.text) == 3


def test_the_cost_says_what_pruning_saved(mixed: Study, page: Reader) -> None:
    """The share of the tokens that all complete and pruned trials would have read."""
    complete, pruned = mixed.record.complete, mixed.record.pruned
    full = SEQUENCES * TOKENS
    read = len(complete) * full + sum(trial.tokens for trial in pruned)
    saved = 100 * (1 - read / ((len(complete) + len(pruned)) * full))
    assert 10 < saved < 60
    assert any(f"Pruning saved {saved:.1f} % of the tokens" in text for text in page.text)
    assert f"{read:,}" in page.text


def test_results_are_strict_json(mixed: Study, folder: Path) -> None:
    """`result.json` is what `show --json` prints and the importances."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)
    shares = result.pop("importances")
    assert result == json.loads(json.dumps(study_json(mixed.snapshot)))
    assert set(shares) == {"overall", "equal_group_size"}
    assert shares["overall"]["ped_anova"].keys() == {"beta", "tau", "n_grid", "n_calib", "group_size"}


def test_the_study_as_json_has_settings_and_estimates(mixed: Study) -> None:
    """Decoded settings of all trials, estimates of pruned ones, the best as one of the trials."""
    found: Any = study_json(mixed.snapshot)
    keys = ["study", "contract", "references", "trials", "best", "recommendation", "ranking", "confirmation"]
    assert list(found) == [*keys, "refined", "waterfall"]
    for trial, entry in zip(mixed.record.trials, found["trials"], strict=True):
        assert trial.setting is not None
        assert entry["params"] == trial.setting.as_dict()
        assert (entry["estimate"] is None) == (trial.estimate is None)
    best = mixed.record.best
    assert best is not None
    assert found["best"] == found["trials"][best.number]
    assert found["best"]["value"] == min(entry["value"] for entry in found["trials"] if entry["value"])
    assert found["references"][0]["setting"] is None


@pytest.mark.usefixtures("no_pictures")
def test_numbers_that_json_has_not_become_null(small: Study, tmp_path: Path) -> None:
    """An infinite estimate, and numpy's numbers in what confirmed, are written so that every reader takes them."""
    spoilt = next(trial for trial in small.record.pruned if trial.estimate)
    assert spoilt.estimate is not None
    broken = replace(spoilt, estimate=replace(spoilt.estimate, mean_nll=math.inf), seconds={"score": math.nan})
    trials = tuple(broken if trial is spoilt else trial for trial in small.record.trials)
    score = replace(confirmation().rows[0], tokens=np.int64(3), perplexity=np.float64("inf"))
    record = replace(small.record, trials=trials, confirmation=replace(confirmation(), rows=(score,)))
    written(small, tmp_path, record)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)
    entry = result["trials"][spoilt.number]
    assert (entry["estimate"]["perplexity"], entry["seconds"]) == (None, {"score": None})
    assert entry["estimate"]["standard_error"] == spoilt.estimate.standard_error
    row = result["confirmation"]["rows"][0]
    assert (row["tokens"], row["perplexity"]) == (3, None)


def test_trials_are_a_table(mixed: Study, folder: Path) -> None:
    """One row a trial, with the numbers of the record; what a trial has not is missing."""
    table = pd.read_csv(folder / "trials.csv")
    trials = mixed.record.trials
    assert table["number"].tolist() == list(range(40))
    assert table["state"].tolist() == [trial.state for trial in trials]
    settings = [trial.setting.as_dict() for trial in trials if trial.setting]
    for name in ("method", "beta", "tau", "n_grid", "n_calib", "group_size", "symmetric"):
        assert table[name].tolist() == [setting[name] for setting in settings], name
    assert table["n_calib"].dtype.kind == "i"
    perplexities = [math.nan if trial.perplexity is None else trial.perplexity for trial in trials]
    np.testing.assert_allclose(table["perplexity"], perplexities, rtol=1e-12)
    assert table["estimate"].notna().sum() == len(mixed.record.pruned)
    assert table["seconds_quantize"].sum() == pytest.approx(sum(trial.seconds.get("quantize", 0) for trial in trials))
    assert table["tokens"].tolist() == [trial.tokens for trial in trials]
    assert table["reason"].dropna().tolist() == ["12.5 GB <needed>, 8 GB available"]


@pytest.mark.parametrize("pruned", [0, 3])
def test_a_study_without_a_complete_trial_has_a_report(pruned: int, tmp_path: Path) -> None:
    """References are shown, and every figure that has no data says so."""
    space = make_space(Setting(), {"group_size": "32,64"})
    maker = Maker(ResultStore(tmp_path / "store"), space)
    trials = [maker.pruned(number, maker.draw()) for number in range(pruned)]
    study = study_of(maker, [*trials, maker.failed(pruned, maker.draw()), maker.waiting(pruned + 1, maker.draw())])
    page = written(study, tmp_path / "report")
    assert page.text[0] == "No trial is complete, so there is no verdict yet."
    assert {"rtn", "gwh-praq-v1", "full precision"} <= set(page.text)
    drawn = pictures(tmp_path / "report")
    assert drawn == OF_REFERENCES | ({"history", "running"} if pruned else set())
    assert sum(text.startswith("Left out: ") for text in page.text) == len(FIGURES) - len(drawn)


def test_a_report_goes_by_the_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of divergence, axes, words, tables and data say nats per token; perplexity stands beside it."""
    monkeypatch.setattr(PICTURES, blank)
    study = judged_by_kl(mixed_study(ResultStore(tmp_path / "store"), 24))
    page = written(study, tmp_path / "report")
    axes = {figure["layout"].get(axis, {}).get("title", {}).get("text") for figure in page.figures for axis in AXES}
    assert {"KL, nats per token", "KL, nats per token; left is better"} <= axes
    assert not {"perplexity", "percent of perplexity; left is better"} & axes
    best = study.record.best
    assert best is not None
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert f"KL divergence {best.kl:.4f} nats per token (perplexity {best.perplexity:.3f})" in text.replace("\\", "")
    for title in ("KL divergence against bits", "Running KL divergence"):
        assert f"### {title}" in text
    assert "nats above full precision" in text
    result = json.loads((tmp_path / "report" / "result.json").read_text())
    assert result["contract"]["objective"] == "kl"
    assert result["best"]["value"] == result["best"]["kl"] == best.kl
    assert result["best"]["perplexity"] == best.perplexity
    row = result["ranking"][0]["rows"][1]
    ranked = study.rankings[0].rows[1]
    assert row["kl_above_best"]["value"] == pytest.approx(ranked.difference.value)
    assert row["p_value"] == pytest.approx(ranked.difference.p_value)
    given_up = next(trial["estimate"] for trial in result["trials"] if trial["state"] == "PRUNED")
    assert given_up["perplexity"] is None
    assert given_up["low"] <= given_up["kl"] <= given_up["high"]
    table = pd.read_csv(tmp_path / "report" / "trials.csv")
    assert table.loc[best.number, "kl"] == pytest.approx(best.kl)


def test_levels_of_very_different_length_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One group size with every trial, three with references alone."""
    draw_only(monkeypatch, "forest")
    space = make_space(Setting(), {"group_size": "32,64,128,256"})
    maker = Maker(ResultStore(tmp_path / "store"), space)
    trials = [maker.complete(number, replace(maker.draw(), group_size=64)) for number in range(16)]
    study = study_of(maker, trials)
    page = written(study, tmp_path / "report")
    assert pictures(tmp_path / "report") == {"forest"}
    forests = [
        figure
        for figure in page.figures
        if figure["layout"]["xaxis"]["title"]["text"] == "percent of perplexity; left is better"
    ]
    rows = [sum(len(trace["y"]) for trace in forest["data"]) for forest in forests]
    assert rows[0] > 12
    assert rows[1:] == [3, 3, 3]


def test_a_study_without_anything_has_a_report(tmp_path: Path) -> None:
    """A study that was only created."""
    record = StudyRecord(name="new", contract=CONTRACT, references=(), trials=())
    unranked = Snapshot(record=record, rankings=[], scores=Scores(ResultStore(tmp_path / "store")))
    path = write_report(unranked, tmp_path / "report")
    page = Reader(path.read_text(encoding="utf-8"))
    assert page.text[1] == "Study new: 0 trials."
    assert sum(text.startswith("Left out: ") for text in page.text) == len(FIGURES)
    assert json.loads((tmp_path / "report" / "result.json").read_text(encoding="utf-8"))["best"] is None
    assert pd.read_csv(tmp_path / "report" / "trials.csv").empty


def test_what_refining_did_is_told_drawn_and_tabulated(folder: Path, page: Reader) -> None:
    """The verdict and what was tuned at a glance, KL over steps with the step that was kept, other text in tables."""
    refined = refined_confirmation()
    told = page.text[page.text.index("What refining gained") + 1]
    assert told == f"{refined.sentence} Group scales were tuned on 2048 tokens of some text (3 steps)."
    [curve], [kept] = traces(page, "held back"), traces(page, "kept")
    assert (curve["x"], curve["y"]) == ([0, 1, 2, 3], [0.1, 0.09, 0.08, 0.085])
    assert (kept["x"], kept["y"]) == ([2], [0.08])
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    assert "**trial 7 refined, on held-out text**" in lines
    [comparison] = [line for line in lines if "trial 7 refined against trial 7 |" in line]
    assert "-0.0200" in comparison


@pytest.mark.slow
def test_a_fixed_parameter_is_not_drawn(tmp_path: Path) -> None:
    """With beta alone there is one slice and nothing that takes two; pictures of an earlier report are removed."""
    space = make_space(Setting(group_size=64), {"tau": 2, "n_grid": 20, "n_calib": 128, "group_size": 64})
    maker = Maker(ResultStore(tmp_path / "store"), space)
    study = study_of(maker, [maker.complete(number, maker.draw()) for number in range(12)])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "parallel.png").write_bytes(b"of an earlier report")
    page = written(study, tmp_path / "report")
    left_out = {"waterfall", "elsewhere", "refining", "importances", "beta-tau", "parallel"}
    assert pictures(tmp_path / "report") == set(FIGURES) - left_out
    assert "Left out: only beta varies." in page.text
    assert "Left out: β and τ do not both vary." in page.text


@pytest.mark.usefixtures("no_pictures")
def test_names_are_shown_as_they_are(small: Study, tmp_path: Path) -> None:
    """What looks like markup in a data set's or a study's name is text, in the page and in Markdown tables."""
    name = "</script><b>C4</b> & 'co' | \"x\""
    trials = tuple(replace(trial, name=name) for trial in small.record.trials)
    contract = replace(CONTRACT, calibration=replace(CONTRACT.calibration, source=name))
    record = replace(small.record, name=name, trials=trials, confirmation=confirmation(name), contract=contract)
    page = written(small, tmp_path, record)
    assert page.text.count(name) >= 2
    assert page.text[1].startswith(f"Study {name}: ")
    assert "b" not in {tag for tag, _ in page.elements}
    assert traces(page, "complete")[0]["text"][0].startswith(f"{name}: ")
    rows = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if "C4" in line]
    cells = [line.replace(r"\|", "").count("|") for line in rows if line.startswith("| ")]
    # Pipes of the contract, of failed trials, and of the confirmation's two tables.
    assert set(cells) == {3, 5, 6, 8}


def test_a_lost_result_costs_the_figures_of_layers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the file of the best trial its layers are left out, and the report says so."""
    draw_only(monkeypatch, "alpha", "history")
    study = mixed_study(ResultStore(tmp_path / "store"), 12)
    ranked, best = study.snapshot, study.record.best
    assert best is not None
    (tmp_path / "store" / f"{best.result}.safetensors").unlink()
    path = write_report(ranked, tmp_path / "report")
    page = Reader(path.read_text(encoding="utf-8"))
    assert page.text.count(f"Left out: the kept result of {best.name} is damaged or missing.") == 3
    assert not (tmp_path / "report" / "alpha.png").exists()
    assert (tmp_path / "report" / "history.png").exists()


def test_axes_keep_the_scale_of_the_search() -> None:
    """Sizes and temperatures are drawn on the scale they were drawn from; ticks lie inside the bounds."""
    axes = {axis.name: axis for axis in varied_axes(make_space(Setting(), {"tau": "1.1..1.9"}))}
    assert axes["group_size"].ticks == [32, 64, 128, 256]
    assert axes["n_calib"].fraction(64) == pytest.approx(2 / 5)
    assert axes["tau"].ticks == [1.1, 1.9]
    for axis in axes.values():
        assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
        assert axis.fraction(axis.at(0.3)) == pytest.approx(0.3)
