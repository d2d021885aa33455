"""Compare model directories that exist already: here two that are written first, by different methods.

What a comparison needs of a ready-made model is a directory that transformers loads and a tokenizer that reads the
text as the original's does; who quantized it does not matter. Run it by `python examples/compare_models.py`; it takes
a quarter of a minute.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from hpo.comparison.compare import compare
from hpo.comparison.plan import ComparePlan
from hpo.deploy.deploy import Chosen, deploy
from objectives.evaluation import BenchPlan
from objectives.model.loading import ModelPlan
from objectives.progress import silent
from objectives.text.sequences import TextPlan
from quant.plan import Plan
from quant.setting import Setting
from storage.paths import Paths

BENCH = BenchPlan(
    model=ModelPlan(),
    calibration=TextPlan(source="bundled:docstrings", part="calibration", count=16, length=64),
    data=(TextPlan(source="bundled:docstrings", part="tuning", count=8, length=64),),
)


def main() -> None:
    """Two directories of equal bits, and plain rounding beside them."""
    paths = Paths.default()
    with TemporaryDirectory() as place:
        models = {f"my-{method}": Path(place) / method for method in ("gw-praq", "gwh-praq-v2")}
        for directory in models.values():
            setting = Setting(method=directory.name, group_size=64, n_calib=16, n_grid=5)
            deploy(BENCH, Chosen(plan=Plan.uniform(setting)), {"dense": directory}, paths, silent)
        rounding = Setting(method="rtn", group_size=64, n_calib=16)
        comparison = compare(ComparePlan(bench=BENCH, settings=(rounding,), models=models), paths, silent)
    for entry in comparison.entries:
        print(f"{entry.measured.name:16} {entry.measured.perplexity:8.3f}  {entry.measured.bits_per_weight:.2f} bits")
    print(comparison.recommendation)


if __name__ == "__main__":
    main()
