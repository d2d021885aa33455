"""Add a method of one's own to the table of methods, and measure it beside others.

A method is a row of data: where its input scale comes from, and how output errors are weighted. This one takes PRAQ's
importance of inputs, normalised as AWQ normalises its own. Run it by `python examples/own_method.py`; a few seconds.
In the product a method is the same row, in `quant/methods.py`.
"""

from objectives.evaluation import BenchPlan, evaluate, lay_out
from objectives.model.loading import ModelPlan
from objectives.progress import silent
from objectives.text.sequences import TextPlan
from quant.methods import METHODS, Method
from quant.plan import Plan
from quant.setting import Setting
from storage.paths import Paths

OWN = Method(
    name="praq-by-mean",
    summary="PRAQ's importance of inputs over its mean, every output error counts the same",
    salience="post-activation",
    normalisation="mean",
    parameters=("n_grid",),
)


def main() -> None:
    """Full precision and three methods on the same sequences, with paired differences."""
    METHODS[OWN.name] = OWN
    text = TextPlan(source="bundled:docstrings", part="tuning", count=8, length=64)
    calibration = TextPlan(source="bundled:docstrings", part="calibration", count=16, length=64)
    laid_out = lay_out(BenchPlan(model=ModelPlan(), calibration=calibration, data=(text,)), Paths.default(), silent)
    plans = [Plan.uniform(Setting(method=name, n_calib=16, n_grid=5)) for name in ("rtn", "gw-praq", OWN.name)]
    for row in evaluate(laid_out, plans, silent):
        above = "" if row.difference is None else f"  {row.difference.value:+.4f} nats per token"
        print(f"{row.method:20} perplexity {row.score.perplexity:.3f}  {row.bits_per_weight:.2f} bits{above}")


if __name__ == "__main__":
    main()
