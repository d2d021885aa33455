"""One meaning of best: whatever names a study's best names what held-out text leaves, references included."""

from pathlib import Path

import pytest

from hpo.dashboard.notes import study_facts, study_note
from hpo.deploy.choosing import choose
from hpo.deploy.model_card import model_card
from hpo.notebook import LoadedStudy
from hpo.report.document import printed_study
from hpo.space.space import make_space
from hpo.study.record import TrialRecord
from hpo.verdict.snapshot import Study
from objectives.errors import InputError
from objectives.export.manifest import CalibrationOrigin, Manifest, ProvenScore
from objectives.model.provenance import ModelOrigin
from quant.plan import Plan
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.paths import Paths
from storage.results import ResultStore
from tests.hpo.made_studies import Maker, confirmation_of, study_of

SPACE = make_space(Setting(group_size=64), {"group_size": "64"})
MANIFEST = Manifest(
    weights="compressed-tensors",
    method="rtn",
    parameters={},
    bits_per_weight=4.25,
    model_bytes=1000,
    size=ModelSize(weights=8, codes=4.0, scales=0.25, rest=0.0, outside=16.0),
    model=ModelOrigin(name="org/name", commit="abc", dtype="bfloat16", stored_as="bfloat16", fingerprint="1" * 32),
    part=None,
    calibration=CalibrationOrigin(source="c4", samples=8, fingerprint="2" * 32),
    versions={},
    layers=(),
    stored_bits_per_weight=4.25,
    proof=ProvenScore(source="c4", sequences=8, measured=33.0, unfolded=33.0, packed=33.0, reader="transformers"),
)
# How far the best trial is from gw-awq on tuning text and on held-out text, and what follows.
CASES = {
    "trial confirmed": (-0.05, -1.0, "trial 0", "confirmed", "on tuning text: a win, confirmed on held-out text."),
    "trial not confirmed": (-0.05, -0.05, "gw-awq", "not confirmed", "on tuning text: not confirmed on held-out text."),
    "trial worse": (-0.05, 1.0, "gw-awq", "worse", "on tuning text: worse than gw-awq on held-out text."),
    "trial not tested": (-0.05, None, "trial 0", "not tested", "on tuning text: not tested on held-out text."),
    "reference wins": (0.05, 1.0, "gw-awq", "worse", "on tuning text; worse than gw-awq on held-out text, too."),
}


def made(folder: Path, tuning: float, held_out: float | None) -> Study:
    """Trial 0 at `tuning` nats from gw-awq, and at `held_out` percent on held-out text; surely beyond 0.1 %."""

    def truth(setting: Setting) -> float:
        return 3.6 + (tuning if setting.method == "gwh-praq-v2" else 0.1 * (setting.method != "gw-awq"))

    maker = Maker(ResultStore(folder), SPACE, truth=truth)
    trials = [maker.complete(0, SPACE.project(Setting(group_size=64)))]
    confirmed = None if held_out is None else confirmation_of("trial 0", {"gw-awq": held_out}, group_size=64)
    return study_of(maker, trials, confirmation=confirmed).snapshot


@pytest.mark.parametrize("case", CASES)
def test_whatever_names_a_best_names_the_same(case: str, tmp_path: Path) -> None:
    """Headline, what is written, JSON, the dashboard's note, the notebook and the model card."""
    tuning, held_out, name, confirmed, ending = CASES[case]
    study = made(tmp_path, tuning, held_out)
    found = study.recommendation
    assert found is not None
    assert (found.measured.name, found.confirmed) == (name, confirmed)
    assert found.verdict.endswith(ending)
    assert ("win" in found.verdict) == (confirmed == "confirmed")
    measured, notes = choose(study)
    assert measured is found.measured
    assert len(notes) == 1
    assert found.reason in notes[0]
    assert LoadedStudy(study=study, paths=Paths(tmp_path), device="cpu").recommendation == found
    printed = printed_study(study)
    assert printed.recommendation is not None
    assert (printed.recommendation.name, printed.ranking[0].recommended) == (name, name)
    assert printed.ranking[0].verdict == found.verdict
    note = study_note(study, "sqlite:///s.db", {}, []).replace("\\", "")
    assert note.startswith(f"## {found.verdict}\n\n{found.sentence()}")
    assert study_facts(study)["verdict"] == found.verdict
    assert measured.setting is not None
    card = model_card(MANIFEST, Plan.uniform(measured.setting), study, measured)
    assert f"{found.verdict}\n\n{found.sentence()}" in card
    assert f"| **{name} (" in card


def test_the_trial_of_least_perplexity_can_be_had_all_the_same(tmp_path: Path) -> None:
    """By that word, or its number."""
    study = made(tmp_path, -0.05, 1.0)
    for which in ("best", "0"):
        measured, notes = choose(study, which)
        assert isinstance(measured, TrialRecord)
        assert (measured.number, notes) == (0, [])
    assert choose(study)[1][0].endswith("; --trial best writes trial 0, the trial of least perplexity")


def test_a_confirmation_of_another_trial_says_nothing(tmp_path: Path) -> None:
    """A later trial leads: what was confirmed before is not it."""
    study = made(tmp_path, -0.05, None)
    other = confirmation_of("trial 9", {"gw-awq": 1.0}, group_size=64)
    ranking = study.rankings[0]
    found = Study(
        record=type(study.record)(**{**vars(study.record), "confirmation": other}),
        rankings=[ranking],
        scores=study.scores,
    ).recommendation
    assert found is not None
    assert (found.measured.name, found.confirmed) == ("trial 0", "not tested")


def test_where_values_are_missing_nothing_is_written_by_guess(tmp_path: Path) -> None:
    """The remedy is one line."""
    study = made(tmp_path, -0.05, None)
    unranked = Study(record=study.record, rankings=[], scores=study.scores)
    with pytest.raises(InputError, match="what is recommended is not known here"):
        choose(unranked)
