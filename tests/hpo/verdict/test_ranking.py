"""The decision guide: what is recommended, what counts as a win, and what is said first."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpo.report.document import printed_size_class
from hpo.space.space import make_space
from hpo.study.contract import require_same
from hpo.study.record import Measured, StudyRecord, TrialRecord
from hpo.study.scores import Scores
from hpo.verdict.ranking import SizeClassRanking, frontier, frontier_text, headline, is_meaningful, rank
from hpo.verdict.recommendation import recommendation
from objectives.errors import InputError
from objectives.paired import paired_difference
from objectives.results import save_result
from objectives.scoring import Score
from objectives.trial import TrialResult
from quant.plan import Plan
from quant.setting import Setting
from quant.sizes import ModelSize
from storage.results import ResultStore
from tests.hpo.made_studies import CONTRACT, reference, score, trial

COUNT = 48
BASE = 4 + 0.3 * torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def shifted(percent: float, noise: float = 0.0) -> Score:
    """A score that is so many percent of perplexity above `BASE`; noise moves sequences, not their mean."""
    return score(BASE + percent / 100 + noise * (NOISE - NOISE.mean()))


class Study:
    """A study that is put together from scores."""

    def __init__(self, directory: Path) -> None:
        self.store = ResultStore(directory)
        self.references: list[Measured] = []
        self.trials: list[TrialRecord] = []

    def add(
        self, setting: Setting, scored: Score, searched: bool, origin: str = "gp", bits: float = 4.25, name: str = ""
    ) -> None:
        number = len(self.references) + len(self.trials)
        result = TrialResult(
            plan=Plan.uniform(setting),
            outcome="complete",
            score=scored,
            size=ModelSize(weights=8, codes=bits, scales=0, rest=0, outside=0),
            layers=(),
            seconds={},
            peak_bytes=0,
        )
        save_result(self.store, f"result-{number}", result)
        if searched:
            name = origin.removeprefix("preset ") if origin.startswith("preset") else f"trial {number}"
            space = make_space(Setting(method=setting.method), {})
            made = trial(number, space, setting, scored.perplexity, origin=origin, name=name, bits_per_weight=bits)
            self.trials.append(made)
        else:
            measured = reference(setting)
            changes = {"name": name or measured.name, "result": f"result-{number}", "bits_per_weight": bits}
            self.references.append(replace(measured, **changes))

    def rankings(self) -> list[SizeClassRanking]:
        record = StudyRecord(name="s", contract=CONTRACT, references=tuple(self.references), trials=tuple(self.trials))
        return rank(record, Scores(self.store))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


AWQ, RTN = Setting(method="gw-awq"), Setting(method="rtn")


def test_a_reference_that_beats_every_setting_is_said_to(study: Study) -> None:
    """The study can find out that its method is worse than plain AWQ, and says so."""
    study.add(AWQ, shifted(0), searched=False)
    study.add(RTN, shifted(3), searched=False)
    study.add(Setting(beta=0.2), shifted(1, noise=0.001), searched=True)
    (ranking,) = study.rankings()
    assert ranking.comparison().startswith("Group size 128: gw-awq")
    assert "beats every gwh-praq-v2 setting that was tried" in ranking.comparison()
    assert "+1.01 % [" in ranking.comparison()
    assert ranking.recommended.measured.name == "gw-awq"


def test_a_clear_win_is_meaningful(study: Study) -> None:
    """Above 0.1 % and significant."""
    study.add(AWQ, shifted(1, noise=0.001), searched=False)
    study.add(Setting(beta=0.2), shifted(0), searched=True)
    (ranking,) = study.rankings()
    assert recommendation(ranking, None).verdict.endswith(" perplexity on tuning text: not tested on held-out text.")
    assert ranking.recommended.measured.name == "trial 1"


@pytest.mark.parametrize(("percent", "noise"), [(0.08, 0.0001), (0.5, 0.05)])
def test_a_win_that_is_small_or_within_noise_is_not_meaningful(study: Study, percent: float, noise: float) -> None:
    """Significant but below 0.1 %, or above it and not significant."""
    study.add(AWQ, shifted(percent, noise), searched=False)
    study.add(Setting(beta=0.2), shifted(0), searched=True)
    (ranking,) = study.rankings()
    assert "not meaningful (it takes 0.1 % and significance)" in recommendation(ranking, None).verdict


def test_the_simplest_setting_within_noise_and_a_twentieth_of_a_percent_is_recommended(study: Study) -> None:
    """References before presets before found settings, small calibration before large; but not beyond 0.05 %."""
    study.add(Setting(beta=0.11, n_calib=256), shifted(0), searched=True)
    study.add(Setting(beta=0.12, n_calib=64), shifted(0.02, noise=0.01), searched=True)
    (ranking,) = study.rankings()
    assert ranking.recommended.measured.name == "trial 1"
    study.add(Setting(beta=0.5), shifted(0.03, noise=0.01), searched=True, origin="preset balanced")
    assert study.rankings()[0].recommended.measured.name == "balanced"
    study.add(AWQ, shifted(0.04, noise=0.01), searched=False)
    assert study.rankings()[0].recommended.measured.name == "gw-awq"
    study.add(RTN, shifted(0.06, noise=0.05), searched=False)
    assert study.rankings()[0].recommended.measured.name == "gw-awq"


def test_what_is_surely_worse_is_not_recommended_however_simple(study: Study) -> None:
    """Within 0.05 % but beyond noise."""
    study.add(Setting(beta=0.11), shifted(0), searched=True)
    study.add(RTN, shifted(0.04, noise=0.0001), searched=False)
    assert study.rankings()[0].recommended.measured.name == "trial 0"


def test_only_equal_group_sizes_are_compared(study: Study) -> None:
    """A smaller group is not a better method, it is more memory; the page leads with the best trial's size."""
    study.add(AWQ, shifted(2), searched=False)
    study.add(Setting(beta=0.2), shifted(1), searched=True)
    study.add(Setting(method="gw-awq", group_size=32), shifted(0), searched=False)
    study.add(Setting(beta=0.2, group_size=32), shifted(0.5), searched=True)
    rankings = study.rankings()
    assert [ranking.size_class.group_size for ranking in rankings] == [32, 128]
    assert [len(ranking.rows) for ranking in rankings] == [2, 2]
    assert headline(rankings) is rankings[0]
    assert rankings[1].best.measured.name == "trial 1"


def kept(ratio: float, method: str = "praq-mixed", **others: float) -> Setting:
    return Setting(method=method, keep_ratio=ratio, **others)  # type: ignore[arg-type]


def test_only_equal_shares_of_kept_rows_are_compared(study: Study) -> None:
    """More rows in 16 bit are more memory: each share has its own best trial, and its plain method beside it."""
    for ratio, percent in ((0.05, 3.0), (0.1, 2.0), (0.2, 1.0)):
        bits = 4 + 12 * ratio
        study.add(kept(ratio, "awq-mixed"), shifted(percent + 0.5, noise=0.001), searched=False, bits=bits)
        study.add(kept(ratio, beta_risk=2), shifted(percent), searched=True, bits=bits)
        study.add(kept(ratio, beta_risk=1), shifted(percent + 0.2), searched=True, bits=bits)
    rankings = study.rankings()
    assert [ranking.size_class.keep_ratio for ranking in rankings] == [0.05, 0.1, 0.2]
    assert [len(ranking.rows) for ranking in rankings] == [3, 3, 3]
    references = [ranking.best_reference for ranking in rankings]
    assert [None if row is None else row.measured.name for row in references] == ["awq-mixed"] * 3
    assert rankings[0].comparison().startswith("One scale per row, 5 % of rows in 16 bit: trial 1 (")
    assert rankings[0].comparison().endswith(" perplexity on tuning text")
    assert headline(rankings) is rankings[2]
    assert [(size_class.group_size, size_class.keep_ratio) for size_class in map(printed_size_class, rankings)] == [
        (None, 0.05),
        (None, 0.1),
        (None, 0.2),
    ]


def test_methods_in_groups_stand_beside_kept_rows_of_no_fewer_bits(study: Study) -> None:
    """What the same memory buys otherwise is said with its bits; what takes more memory is no argument."""
    for size, percent in ((32, 0.0), (64, 2.5)):
        bits = 4 + 16 / size
        study.add(Setting(method="gw-awq", group_size=size), shifted(percent), False, bits=bits, name=f"gw-awq g{size}")
    study.add(kept(0.0), shifted(4), searched=True, bits=4.03)
    study.add(kept(0.03), shifted(3), searched=True, bits=4.36)
    study.add(kept(0.1), shifted(1), searched=True, bits=5.2)
    none, few, many = study.rankings()
    assert [row.measured.name for row in none.rows] == ["trial 2"]
    assert none.title == "One scale per row"
    assert [row.measured.name for row in few.rows] == ["gw-awq g64", "trial 3"]
    assert [row.measured.name for row in many.rows] == ["gw-awq g32", "trial 4"]
    assert "at 4.500 bits per weight) beats every praq-mixed setting that was tried" in many.comparison()
    assert "at 5.200 bits per weight), is at +1.01 %" in many.comparison()
    assert many.recommended.measured.name == "gw-awq g32"
    assert (
        recommendation(many, None)
        .sentence()
        .startswith(
            "Recommended instead of one scale per row, 10 % of rows in 16 bit: gw-awq g32 (gw-awq n_grid=20 n_calib="
        )
    )
    said = recommendation(none, None).sentence()
    assert said.startswith("Recommended at one scale per row: trial 2 (praq-mixed keep_ratio=0 ")


def test_more_bits_must_be_better(study: Study) -> None:
    """The frontier has every row that no other row of at most its bits beats, over all levels."""
    study.add(Setting(method="gw-awq", group_size=64), shifted(1), searched=False, bits=4.25)
    study.add(Setting(beta=0.2, group_size=64), shifted(2), searched=True, bits=4.25)
    study.add(Setting(method="gw-awq", group_size=32), shifted(1.5), searched=False, bits=4.5)
    study.add(Setting(beta=0.3, group_size=32), shifted(0.5), searched=True, bits=4.5)
    rankings = study.rankings()
    assert [row.measured.name for row in frontier(rankings)] == ["gw-awq", "trial 3"]
    text = frontier_text(rankings)
    assert "no more bits is better: gw-awq g64 (" in text
    assert " at 4.250), trial 3 g32 (" in text
    assert text.endswith(" at 4.500).")


def test_a_trial_that_equals_its_reference_is_not_said_to_lose(study: Study) -> None:
    """The defaults of a method are a reference and a trial: neither beats the other."""
    study.add(Setting(method="awq"), shifted(0), searched=False)
    study.add(Setting(method="awq"), shifted(0), searched=True, origin="preset defaults")
    (ranking,) = study.rankings()
    assert "beats" not in ranking.comparison()
    assert "not meaningful (it takes 0.1 % and significance)" in recommendation(ranking, None).verdict


def test_a_size_without_a_completed_trial_says_so(study: Study) -> None:
    """Nothing is compared with nothing, and such a size does not lead."""
    study.add(AWQ, shifted(0), searched=False)
    (ranking,) = study.rankings()
    assert "no trial was completed" in ranking.comparison()
    assert headline([ranking]) is None
    assert printed_size_class(ranking).recommended == "gw-awq"


def test_meaningful_takes_size_and_significance() -> None:
    """The rule itself, at its edges."""
    assert is_meaningful(paired_difference(shifted(-0.11), shifted(0)))
    assert not is_meaningful(paired_difference(shifted(-0.09), shifted(0)))
    assert not is_meaningful(paired_difference(shifted(0.2), shifted(0)))


def test_a_contract_that_differs_is_refused_with_every_difference() -> None:
    """Nested values are named by their path, long ones shortened, absent ones said to be."""
    stored = replace(CONTRACT, model=replace(CONTRACT.model, name="a"), space=make_space(Setting(method="gw-awq"), {}))
    require_same(stored, replace(stored), "s")
    model = replace(CONTRACT.model, name="b" * 200)
    other = replace(CONTRACT, model=model, space=make_space(Setting(), {"tau": 1, "n_grid": "5..9"}))
    with pytest.raises(InputError) as caught:
        require_same(stored, other, "s")
    message = str(caught.value)
    assert "study 's' was begun with another contract" in message
    assert "in the study a; space.beta is 0..1, in the study absent" in message
    assert "space.n_grid is 5..9, in the study 5..40; space.placement is original, in the study absent" in message
    assert "space.tau is 1.0, in the study absent" in message
    assert "seed" not in message
    assert len(message) < 600
