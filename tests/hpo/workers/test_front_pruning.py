"""Whom a trial of a front is compared with, and what Optuna is told of it."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hpo.search.pruners.registry import Pruning
from hpo.space.space import make_space
from hpo.study.attributes import ORIGIN, RESULT, SETTING
from hpo.study.objective import PERPLEXITY
from hpo.study.record import read_study
from hpo.workers.ledger import Ledger
from hpo.workers.preparation import open_study
from hpo.workers.queue import Queue
from objectives.text.sequences import Sequences
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore
from storage.typed_json import encode
from tests.hpo.made_studies import CONTRACT, Maker

SPACE = make_space(Setting(method="gw-awq"), {"n_calib": 128}).under(4.2, 4.7)
NATS = {4.2: 3.0, 4.3: 3.3, 4.5: 3.2, 4.7: 2.9}
"""Of the trial at each budget: the one of 4.5 bits is dominated by the smallest."""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    storage, store = optuna.storages.InMemoryStorage(), ResultStore(Paths(tmp_path).results)
    study = open_study(storage, "front", replace(CONTRACT, space=SPACE))
    maker = Maker(store, SPACE, truth=lambda setting: NATS[setting.bit_budget])
    for number, budget in enumerate(NATS):
        setting = SPACE.project(Setting(method="gw-awq", bit_budget=budget))
        made = maker.complete(number, setting)
        assert made.perplexity is not None
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                values=[1000 * budget, made.perplexity],
                params=SPACE.params(setting),
                distributions=SPACE.distributions,
                user_attrs={SETTING: encode(setting), ORIGIN: "gp", RESULT: made.result},
            )
        )
    return Ledger(
        queue=Queue(study=study, storage=storage, space=SPACE),
        store=store,
        tuning=cast(Sequences, None),
        pruning=Pruning(),
        objective=PERPLEXITY,
        listen=lambda _: None,
    )


@pytest.mark.parametrize(("budget", "number"), [(4.2, 0), (4.3, 0), (4.5, 0), (4.6, 0), (4.7, 3)])
def test_a_trial_is_compared_with_the_best_of_no_larger_a_budget(ledger: Ledger, budget: float, number: int) -> None:
    """One that is better and larger says nothing of it; one that is better and smaller dominates it."""
    incumbent = ledger.incumbent(SPACE.project(Setting(method="gw-awq", bit_budget=budget)))
    assert incumbent is not None
    assert incumbent.number == number


def test_looks_are_subtracted_from_all_of_no_larger_a_budget(ledger: Ledger) -> None:
    """The mean of those that are completed has less scatter than the best of them; of the smallest there is one."""

    def above(budget: float) -> float | None:
        incumbent = ledger.incumbent(SPACE.project(Setting(method="gw-awq", bit_budget=budget)))
        assert incumbent is not None
        return None if incumbent.control is None else incumbent.control.mean_nll - incumbent.score.mean_nll

    assert above(4.2) is None
    assert above(4.3) == pytest.approx((NATS[4.3] - NATS[4.2]) / 2, abs=0.02)
    assert 0.05 < (above(4.5) or 0.0) < NATS[4.3] - NATS[4.2]


def test_a_front_is_read_by_its_second_value(ledger: Ledger) -> None:
    """Bytes are the first; the best trial is the one of least value."""
    record = read_study(ledger.queue.study)
    assert record.best is not None
    assert record.best.number == 3
    assert [trial.value for trial in record.complete] == sorted(trial.value or 0.0 for trial in record.complete)
    assert ledger.queue.study.directions == [optuna.study.StudyDirection.MINIMIZE] * 2
