"""The decision guide: what is recommended, what counts as a win, and what is said first."""

from pathlib import Path

import pytest
import torch

from hpo.contract import require_same
from hpo.ranking import Level, headline, is_meaningful, rank, ranking_json
from hpo.record import Measured, StudyRecord, TrialRecord
from hpo.space import make_space
from objectives.errors import InputError
from objectives.kept import keep_result
from objectives.paired import paired_difference
from objectives.quantization import ModelSize
from objectives.scoring import Score
from objectives.trial import TrialResult
from quant.methods import Setting
from storage.results import ResultStore
from tests.hpo.made import reference, score, trial

COUNT = 48
SPACE = make_space(Setting(), {})
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

    def add(self, setting: Setting, scored: Score, searched: bool, origin: str = "gp") -> None:
        number = len(self.references) + len(self.trials)
        result = TrialResult(
            setting=setting,
            outcome="complete",
            score=scored,
            size=ModelSize(bits_per_weight=4.25, model_bytes=1),
            layers=[],
            seconds={},
            peak_bytes=0,
        )
        keep_result(self.store, f"result-{number}", result)
        if searched:
            name = origin.removeprefix("preset ") if origin.startswith("preset") else f"trial {number}"
            made = trial(number, SPACE, setting, scored.perplexity, origin=origin, name=name)
            self.trials.append(made)
        else:
            one = reference(setting)
            self.references.append(Measured(**{**vars(one), "result": f"result-{number}"}))

    def levels(self) -> list[Level]:
        record = StudyRecord(name="s", contract={}, references=tuple(self.references), trials=tuple(self.trials))
        return rank(record, self.store, list(range(COUNT)))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


AWQ, RTN = Setting(method="gw-awq"), Setting(method="rtn")


def test_a_reference_that_beats_every_setting_is_said_to(study: Study) -> None:
    """The study can find out that its method is worse than plain AWQ, and says so."""
    study.add(AWQ, shifted(0), searched=False)
    study.add(RTN, shifted(3), searched=False)
    study.add(Setting(beta=0.2), shifted(1, noise=0.001), searched=True)
    (level,) = study.levels()
    assert level.verdict().startswith("Group size 128: gw-awq")
    assert "beats every gwh-praq-v2 setting that was tried" in level.verdict()
    assert "+1.01 % [" in level.verdict()
    assert level.recommended.measured.name == "gw-awq"


def test_a_clear_win_is_meaningful(study: Study) -> None:
    """Above 0.1 % and significant."""
    study.add(AWQ, shifted(1, noise=0.001), searched=False)
    study.add(Setting(beta=0.2), shifted(0), searched=True)
    (level,) = study.levels()
    assert level.verdict().endswith("a meaningful win.")
    assert level.recommended.measured.name == "trial 1"


@pytest.mark.parametrize(("percent", "noise"), [(0.08, 0.0001), (0.5, 0.05)])
def test_a_win_that_is_small_or_within_noise_is_not_meaningful(study: Study, percent: float, noise: float) -> None:
    """Significant but below 0.1 %, or above it and not significant."""
    study.add(AWQ, shifted(percent, noise), searched=False)
    study.add(Setting(beta=0.2), shifted(0), searched=True)
    (level,) = study.levels()
    assert "not a meaningful win" in level.verdict()


def test_the_simplest_setting_within_noise_and_a_twentieth_of_a_percent_is_recommended(study: Study) -> None:
    """References before presets before found settings, small calibration before large; but not beyond 0.05 %."""
    study.add(Setting(beta=0.11, n_calib=256), shifted(0), searched=True)
    study.add(Setting(beta=0.12, n_calib=64), shifted(0.02, noise=0.01), searched=True)
    (level,) = study.levels()
    assert level.recommended.measured.name == "trial 1"
    study.add(Setting(beta=0.5), shifted(0.03, noise=0.01), searched=True, origin="preset balanced")
    assert study.levels()[0].recommended.measured.name == "balanced"
    study.add(AWQ, shifted(0.04, noise=0.01), searched=False)
    assert study.levels()[0].recommended.measured.name == "gw-awq"
    study.add(RTN, shifted(0.06, noise=0.05), searched=False)
    assert study.levels()[0].recommended.measured.name == "gw-awq"


def test_what_is_surely_worse_is_not_recommended_however_simple(study: Study) -> None:
    """Within 0.05 % but beyond noise."""
    study.add(Setting(beta=0.11), shifted(0), searched=True)
    study.add(RTN, shifted(0.04, noise=0.0001), searched=False)
    assert study.levels()[0].recommended.measured.name == "trial 0"


def test_only_equal_group_sizes_are_compared(study: Study) -> None:
    """A smaller group is not a better method, it is more memory; the page leads with the best trial's size."""
    study.add(AWQ, shifted(2), searched=False)
    study.add(Setting(beta=0.2), shifted(1), searched=True)
    study.add(Setting(method="gw-awq", group_size=32), shifted(0), searched=False)
    study.add(Setting(beta=0.2, group_size=32), shifted(0.5), searched=True)
    levels = study.levels()
    assert [level.group_size for level in levels] == [32, 128]
    assert [len(level.rows) for level in levels] == [2, 2]
    assert headline(levels) is levels[0]
    assert levels[1].best.measured.name == "trial 1"


def test_a_size_without_a_completed_trial_says_so(study: Study) -> None:
    """Nothing is compared with nothing, and such a size does not lead."""
    study.add(AWQ, shifted(0), searched=False)
    (level,) = study.levels()
    assert "no trial was completed" in level.verdict()
    assert headline([level]) is None
    assert ranking_json([level])[0]["recommended"] == "gw-awq"


def test_meaningful_takes_size_and_significance() -> None:
    """The rule itself, at its edges."""
    clusters = list(range(COUNT))
    assert is_meaningful(paired_difference(shifted(-0.11), shifted(0), clusters))
    assert not is_meaningful(paired_difference(shifted(-0.09), shifted(0), clusters))
    assert not is_meaningful(paired_difference(shifted(0.2), shifted(0), clusters))


def test_a_contract_that_differs_is_refused_with_every_difference() -> None:
    """Nested values are named by their path, long ones shortened, absent ones said to be."""
    stored = {"seed": 0, "model": {"name": "a", "commit": None}, "space": {"beta": "0..1"}}
    require_same(stored, {"seed": 0, "model": {"name": "a", "commit": None}, "space": {"beta": "0..1"}}, "s")
    other = {"seed": 0, "model": {"name": "b" * 200, "commit": None}, "space": {"beta": "0..1", "tau": "1"}}
    with pytest.raises(InputError) as caught:
        require_same(stored, other, "s")
    message = str(caught.value)
    assert "study 's' was begun with another contract" in message
    assert "in the study a; space.tau is 1, in the study absent" in message
    assert "seed" not in message
    assert len(message) < 400
