"""The named methods as data: where each takes its input scale from, and what it reads.

Responsible for what a method is (docs/methods.md) and which parameters it reads. Everything that acts on this data
lives in `scaling.salience` and `layers`.
"""

from dataclasses import dataclass
from typing import Literal

Salience = Literal["activation", "post-activation", "blend"]
Normalisation = Literal["mean", "soft"]
Importance = Literal["activation", "magnitude", "risk", "risk-per-spread"]
ErrorWeights = Literal["uniform", "importance", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Says what one named method is.

    Attributes:
        name: The name users type.
        summary: What it does, in one line.
        salience: Which input salience steers the scale; None leaves the inputs unscaled.
        normalisation: How that salience is normalised.
        importance: What makes an output matter, wherever the method weighs outputs; in attention always `E|z|`.
        error_weights: How the output errors are weighted in the loss.
        per_row: True for one scale per output row instead of groups.
        keeps_rows: True to leave the rows of the most important outputs in 16 bit.
        in_groups: The method that does the same with a scale per group; empty where there is none.
        parameters: The fields of `Setting` that this method reads beyond the grid and the calibration size.
    """

    name: str
    summary: str
    salience: Salience | None = None
    normalisation: Normalisation = "soft"
    importance: Importance = "activation"
    error_weights: ErrorWeights = "uniform"
    per_row: bool = False
    keeps_rows: bool = False
    in_groups: str = ""
    parameters: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[str]:
        """Return every field of `Setting` that this method's weights depend on, whatever the other fields are."""
        weighs_outputs = (
            self.keeps_rows or self.error_weights != "uniform" or self.salience in ("post-activation", "blend")
        )
        conditional = {
            "group_size": not self.per_row,
            "n_calib": self.keeps_rows or self.salience is not None,
            "scales": self.salience is not None,
            "placement": weighs_outputs and self.importance == "activation",
        }
        return frozenset({"method", "symmetric", "range_search", "rounding", *self.parameters}) | {
            name for name, read in conditional.items() if read
        }


RISK = ("beta_risk", "tau_risk", "noise_factor")
METHODS = {
    method.name: method
    for method in (
        Method(name="rtn", summary="nearest rounding in groups"),
        Method(name="rtn-channel", summary="nearest rounding, one scale per output row", per_row=True, in_groups="rtn"),
        Method(
            name="awq",
            summary="AWQ with one scale per output row",
            salience="activation",
            normalisation="mean",
            per_row=True,
            in_groups="gw-awq",
            parameters=("n_grid",),
        ),
        Method(
            name="praq-real",
            summary="PRAQ scales from the risk of MLP outputs, one scale per output row",
            salience="post-activation",
            importance="risk",
            per_row=True,
            parameters=("n_grid", *RISK),
        ),
        Method(
            name="gw-awq",
            summary="AWQ: scales from input magnitudes, every output error counts the same",
            salience="activation",
            normalisation="mean",
            parameters=("n_grid",),
        ),
        Method(
            name="gw-praq",
            summary="PRAQ: scales from post-activation importance on the MLP, every output error counts the same",
            salience="post-activation",
            parameters=("n_grid",),
        ),
        Method(
            name="gwh-praq-v1",
            summary="AWQ scales, MLP output errors weighted by post-activation importance",
            salience="activation",
            normalisation="mean",
            error_weights="importance",
            parameters=("n_grid",),
        ),
        Method(
            name="gwh-praq-v2",
            summary="blend of AWQ and PRAQ salience, output errors weighted by a softmax of importance",
            salience="blend",
            error_weights="softmax",
            parameters=("beta", "tau", "n_grid"),
        ),
        Method(
            name="awq-mixed",
            summary="rows of the largest outputs in 16 bit, nearest rounding for the rest",
            importance="magnitude",
            per_row=True,
            keeps_rows=True,
            parameters=("keep_ratio",),
        ),
        Method(
            name="praq-mixed",
            summary="rows of the outputs at most risk in 16 bit, nearest rounding for the rest",
            importance="risk",
            per_row=True,
            keeps_rows=True,
            parameters=("keep_ratio", *RISK),
        ),
        Method(
            name="praq-mixed-var",
            summary="praq-mixed, with less regard for outputs that vary much",
            importance="risk-per-spread",
            per_row=True,
            keeps_rows=True,
            parameters=("keep_ratio", *RISK, "variance_penalty"),
        ),
    )
}
