"""A space is fitted to the model, the text and the runtime before anything is measured."""

from pathlib import Path

from hpo.optimize import fit
from hpo.plan import StudyPlan
from hpo.space.space import INGREDIENTS, make_space
from hpo.study.events import Event, Notice
from objectives.budget import Budget
from objectives.evaluation import BenchPlan, LaidOut
from objectives.export.deployment import Deployment
from objectives.model.loading import ModelPlan
from objectives.text.sequences import TextPlan
from quant.setting import Setting
from tests.objectives import tiny

TEXT = TextPlan(source="random", part="calibration", count=8, length=24)


def test_a_budget_leaves_out_the_grid_of_which_a_runtime_does_not_load_every_plan(tmp_path: Path) -> None:
    """Transformers reads one scheme with zero points: symmetric codes are left, and the notice says why."""
    events: list[Event] = []
    plan = StudyPlan(
        name="packed",
        bench=BenchPlan(model=ModelPlan(), calibration=TEXT, data=(TEXT,)),
        space=make_space(Setting(method="gw-awq"), {**INGREDIENTS, "n_calib": 8}),
        sizes=(Budget(bits_per_weight=5.5),),
        deployment=Deployment(runtime="vllm"),
    )
    laid_out = LaidOut(bench=tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path), data=[], agreement=None)
    space = fit(plan, laid_out, events.append)
    assert space.fixed["symmetric"] is True
    assert space.values("bit_budget") == [5.5]
    [notice] = [event.text for event in events if isinstance(event, Notice)]
    assert notice.startswith("symmetric false left out: transformers does not read compressed-tensors of 5 schemes")
