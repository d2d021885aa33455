"""What processes of tests in this folder run: importable functions."""

from pathlib import Path

import optuna

from hpo.queue import Queue
from hpo.space import make_space
from quant.methods import Setting
from storage.studies import open_storage


def claim_all(url: str, target: Path) -> None:
    """Claim trials until none waits; write their numbers."""
    storage = open_storage(url)
    study = optuna.load_study(storage=storage, study_name="s")
    queue = Queue(study=study, storage=storage, space=make_space(Setting(), {}))
    numbers = []
    while (trial := queue.claim()) is not None:
        numbers.append(str(trial.number))
    target.write_text("\n".join(numbers))
