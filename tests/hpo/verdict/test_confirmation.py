"""Held-out text and a front: every member is confirmed, all are corrected together, and each costs one trial."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpo.deploy.choosing import front_member
from hpo.deploy.model_card import model_card
from hpo.report.document import printed_study
from hpo.space.space import make_space
from hpo.study.confirmation import Confirmation
from hpo.study.record import TrialRecord
from hpo.study.scores import Scores
from hpo.verdict.confirmation import confirm, front_members
from hpo.verdict.snapshot import Study
from objectives.budget import Budget
from objectives.paired import holm
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.results import ResultStore
from storage.typed_json import decode, encode
from tests.hpo.made_studies import TEXT, Maker, study_of
from tests.hpo.verdict.test_recommendation import MANIFEST

SPACE = make_space(Setting(method="gw-awq"), {"n_calib": 128}).under(4.2, 4.7)
NATS = {4.2: 3.55, 4.3: 3.5, 4.5: 3.52, 4.6: 3.45, 4.7: 3.3}
"""Of the trial at each budget; the one of 4.5 bits is dominated."""
REFERENCE = 3.6
# On held-out text the trial of 4.3 bits is no better than the reference.
HELD_OUT = {**NATS, 4.3: REFERENCE}


def nats(known: dict[float, float]) -> Any:
    return lambda setting: known.get(setting.bit_budget, REFERENCE)


@pytest.fixture
def front(tmp_path: Path) -> Study:
    maker = Maker(ResultStore(tmp_path), SPACE, truth=nats(NATS))
    settings = [SPACE.project(Setting(method="gw-awq", bit_budget=budget)) for budget in NATS]
    trials = [
        # A preset is tried at several budgets under one name.
        replace(
            maker.complete(number, setting, "preset defaults"),
            bits_per_weight=setting.bit_budget,
            size=ModelSize(weights=8, codes=4.0, scales=setting.bit_budget - 4, rest=0.0, outside=16.0),
        )
        for number, setting in enumerate(settings)
    ]
    awq = replace(maker.reference(Setting(method="gw-awq", group_size=128)), name="gw-awq g128")
    return study_of(maker, trials, references=(maker.reference(None), awq)).snapshot


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Setting | None]:
    """What is measured on held-out text, where `HELD_OUT` is true."""
    maker = Maker(ResultStore(tmp_path / "held-out"), SPACE, seed=1, truth=nats(HELD_OUT))
    asked: list[Setting | None] = []

    def measure_all(_: object, __: object, settings: Sequence[Setting | None], texts: Any, *___: object) -> Any:
        asked.extend(dict.fromkeys(settings))
        scores = Scores(maker.store)
        made = {
            setting: scores.of(maker.complete(number, setting) if setting else maker.reference(None))
            for number, setting in enumerate(dict.fromkeys(settings))
        }
        return [[SimpleNamespace(score=made[setting]) for _ in texts] for setting in settings]

    monkeypatch.setattr("hpo.verdict.confirmation.measure_all", measure_all)
    return asked


def confirmed(study: Study) -> Confirmation:
    assert study.lead is not None
    members = front_members(study.rankings, study.lead)
    bench, progress = cast(Bench, None), lambda *_: None
    return confirm(bench, study.store, study.lead, [TEXT, TEXT], progress, members=members)


def test_every_member_of_a_front_is_confirmed_and_nothing_that_is_dominated(
    front: Study, measured: list[Setting | None]
) -> None:
    """Each against its best reference; they cost one measurement each, and the reference is shared."""
    found = confirmed(front)
    assert (found.winner, found.bit_budget) == ("defaults", 4.7)
    assert [(member.name, member.bit_budget) for member in found.front] == [
        ("defaults", 4.2),
        ("defaults", 4.3),
        ("defaults", 4.6),
    ]
    assert {member.against for member in found.front} == {"gw-awq g128"}
    assert sorted(setting.bit_budget for setting in measured if setting) == [0, 4.2, 4.3, 4.6, 4.7]
    assert all(len(member.comparisons) == 2 and len(member.rows) == 4 for member in found.front)
    assert found.sentence.endswith(
        "Other members of the front that are confirmed as better than the best reference of no more bits: 2 of 3."
    )


@pytest.mark.usefixtures("measured")
def test_all_comparisons_of_a_front_are_corrected_together(front: Study) -> None:
    """Holm over the winner's and the members': whoever confirms ten has ten chances."""
    found = confirmed(front)
    rows = [*found.comparisons, *(row for member in found.front for row in member.comparisons)]
    assert len(rows) == 8
    assert [row.holm for row in rows] == pytest.approx(holm([row.p_value for row in rows]))
    assert max(row.holm for row in found.comparisons) > len(found.comparisons) * found.comparisons[0].p_value


@pytest.mark.usefixtures("measured")
def test_held_out_text_decides_at_every_budget(front: Study) -> None:
    """A member that it confirms is recommended; where it does not, the reference is."""
    assert {front.recommended(ranking).confirmed for ranking in front.rankings} == {"not tested"}
    found = decode(Confirmation, encode(confirmed(front)), "confirmation")
    study = replace(front, record=replace(front.record, confirmation=found))
    outcome = {
        ranking.size_class.bit_budget: (chosen.confirmed, isinstance(chosen.measured, TrialRecord))
        for ranking in study.rankings
        for chosen in [study.recommended(ranking)]
    }
    assert outcome == {
        4.2: ("confirmed", True),
        4.3: ("not confirmed", False),
        4.5: ("not tested", True),
        4.6: ("confirmed", True),
        4.7: ("confirmed", True),
    }
    assert printed_study(study).ranking[1].verdict.endswith(": not confirmed on held-out text.")


@pytest.mark.usefixtures("measured")
def test_a_member_that_is_written_says_what_held_out_text_showed_of_it(front: Study) -> None:
    """In the note, and with its comparisons on the card."""
    study = replace(front, record=replace(front.record, confirmation=confirmed(front)))
    for budget, words in ((4.3, "not confirmed on held-out text"), (4.6, "; confirmed on held-out text")):
        before = front_member(front, Budget(bits_per_weight=budget))[1]
        measured, [note] = front_member(study, Budget(bits_per_weight=budget))
        assert before == [note.rpartition("; ")[0] + "; not tested on held-out text"]
        assert note.endswith(words)
        assert measured.setting is not None
        card = model_card(MANIFEST, Plan.uniform(measured.setting.recipe), study, measured)
        assert f"| C4 | defaults {budget:g} bits against gw-awq g128 |" in card
