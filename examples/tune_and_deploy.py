"""Tune the bundled model in a small study, and write what it recommends as packed INT4.

Shows the whole way from Python: a plan, a study, a model directory that transformers and vLLM load. What is recommended
is a reference where held-out text confirms no trial; `quantize(..., trial="best")` writes the best trial all the same.
`python examples/tune_and_deploy.py DIRECTORY` makes DIRECTORY in half a minute; run again with another one, it goes on
with the same study, and so measures no trial again.
"""

import sys
from dataclasses import replace

from hpo.notebook import load
from hpo.optimize import optimize
from hpo.plan import StudyPlan
from hpo.space.space import make_space
from hpo.study.events import Event, Finished
from hpo.workers.worker import Budget
from objectives.evaluation import BenchPlan
from objectives.model.loading import ModelPlan
from objectives.progress import silent
from objectives.text.sequences import TextPlan
from quant.setting import Setting
from storage.paths import Paths
from storage.studies.opening import chosen_url, open_storage

TUNING = TextPlan(source="bundled:docstrings", part="tuning", count=8, length=64)
PLAN = StudyPlan(
    name="example",
    bench=BenchPlan(
        # For a model of your own: ModelPlan(name="org/name", device="cuda"), and other text.
        model=ModelPlan(),
        calibration=replace(TUNING, part="calibration", count=16),
        # The second text confirms the winner: no trial was chosen on it.
        data=(TUNING, replace(TUNING, part="confirmation")),
    ),
    space=make_space(Setting(), {"n_calib": "16", "n_grid": "5", "group_size": "64"}),
)


def tell(event: Event) -> None:
    if isinstance(event, Finished):
        print(f"{event.trial.name}: {event.trial.state} {event.trial.perplexity}")


if __name__ == "__main__":
    paths = Paths.default()
    optimize(PLAN, open_storage(chosen_url(None, paths)), paths, Budget(trials=6), tell, silent)
    written = load("example").quantize(sys.argv[1], format="compressed-tensors")
    print(*written.notes, f"{written.directory}: {written.manifest.proof}", sep="\n")
