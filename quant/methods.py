"""The named methods as data, and the setting that says how one of them is applied.

Responsible for what a method is (DESIGN 3, table) and which parameters it reads. Everything that acts on this data
lives in `salience` and `layers`. Defaults of parameters are written here and nowhere else.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from quant.errors import QuantizationError
from quant.grid import Grid, scale_type

Salience = Literal["activation", "post-activation", "blend"]
Normalisation = Literal["mean", "soft"]
Importance = Literal["activation", "magnitude", "risk", "risk-per-spread"]
ErrorWeights = Literal["uniform", "importance", "softmax"]
Placement = Literal["original", "structural"]
Scales = Literal["linear", "foldable"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of DESIGN 3's table.

    Attributes:
        name: The name users type.
        summary: What it does, in one line.
        salience: Which input salience steers the scale; None leaves the inputs unscaled.
        normalisation: How that salience is normalised.
        importance: What makes an output matter, wherever the method weighs outputs; in attention always `E|z|`.
        error_weights: How the output errors are weighted in the loss.
        per_row: True for one scale per output row instead of groups.
        keeps_rows: True to leave the rows of the most important outputs in 16 bit.
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
    parameters: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[str]:
        """Every field of `Setting` that the quantized weights depend on."""
        weighs_outputs = (
            self.keeps_rows or self.error_weights != "uniform" or self.salience in ("post-activation", "blend")
        )
        conditional = {
            "group_size": not self.per_row,
            "n_calib": self.keeps_rows or self.salience is not None,
            "scales": self.salience is not None,
            "placement": weighs_outputs and self.importance == "activation",
        }
        return frozenset({"method", "symmetric", *self.parameters}) | {
            name for name, read in conditional.items() if read
        }


RISK = ("beta_risk", "tau_risk", "noise_factor")
METHODS = {
    method.name: method
    for method in (
        Method(name="rtn", summary="nearest rounding in groups"),
        Method(name="rtn-channel", summary="nearest rounding, one scale per output row", per_row=True),
        Method(
            name="awq",
            summary="AWQ with one scale per output row",
            salience="activation",
            normalisation="mean",
            per_row=True,
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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How to quantize a model: a method, its parameters and its grid.

    Attributes:
        method: A name in `METHODS`.
        beta: Blend of saliences, 0 is AWQ's and 1 is PRAQ's.
        tau: Temperature of the error weights; large values make them uniform.
        n_grid: Steps of the search over the exponent alpha; `n_grid + 1` values are tried.
        n_calib: Calibration samples whose statistics are used.
        group_size: Inputs that share a scale; nothing to methods with one scale per row.
        symmetric: Codes around zero, or codes with a zero point.
        scales: Every Linear its own input scale, or one that folds into what produces the input.
        placement: Where the activation enters the importances of MLP outputs.
        keep_ratio: Share of each Linear's rows that mixed methods keep in 16 bit, see `kept_rows`.
        beta_risk: Steepness of the risk that an output is active.
        tau_risk: Bound on an output from which on it counts as active.
        noise_factor: Weight in that bound of the noise that rounding adds.
        variance_penalty: Power of an output's standard deviation that its risk is divided by.

    Raises:
        QuantizationError: With one line naming every value outside its range.
    """

    method: str = "gwh-praq-v2"
    beta: float = 0.5
    tau: float = 2.0
    n_grid: int = 20
    n_calib: int = 128
    group_size: int = 128
    symmetric: bool = True
    scales: Scales = "foldable"
    placement: Placement = "original"
    keep_ratio: float = 0.2
    beta_risk: float = 3.0
    tau_risk: float = -3.0
    noise_factor: float = 0.2
    variance_penalty: float = 0.5

    def __post_init__(self) -> None:
        checks = (
            (self.method in METHODS, f"method {self.method!r} is unknown; choose one of {', '.join(METHODS)}"),
            (0 <= self.beta <= 1, f"beta {self.beta} is outside 0..1"),
            (self.tau > 0, f"tau {self.tau} is not above 0"),
            *(
                (isinstance(count, int) and count >= 1, f"{name} {count} is not a whole number of at least 1")
                for name, count in (("n_grid", self.n_grid), ("n_calib", self.n_calib), ("group size", self.group_size))
            ),
            (self.scales in ("linear", "foldable"), f"scales {self.scales!r} is neither linear nor foldable"),
            (
                self.placement in ("original", "structural"),
                f"placement {self.placement!r} is neither original nor structural",
            ),
            (0 <= self.keep_ratio <= 1, f"keep_ratio {self.keep_ratio} is outside 0..1"),
            *(
                (math.isfinite(value), f"{name} {value} is not a finite number")
                for name, value in (("beta_risk", self.beta_risk), ("tau_risk", self.tau_risk))
            ),
            *(
                (0 <= value < math.inf, f"{name} {value} is not a finite number of at least 0")
                for name, value in (("noise_factor", self.noise_factor), ("variance_penalty", self.variance_penalty))
            ),
        )
        problems = [message for passed, message in checks if not passed]
        if problems:
            raise QuantizationError("; ".join(problems))

    @property
    def definition(self) -> Method:
        """The method this setting applies."""
        return METHODS[self.method]

    @property
    def scales_at_run_time(self) -> bool:
        """Whether inputs have to be divided by a scale where the model runs: one of its own for every Linear."""
        return self.scales == "linear" and self.definition.salience is not None

    def grid(self, dtype: torch.dtype) -> Grid:
        """The grid for weights of a model that is stored in `dtype`."""
        return Grid(
            group_size=None if self.definition.per_row else self.group_size,
            symmetric=self.symmetric,
            scale_dtype=scale_type(dtype),
        )

    def kept_rows(self, outputs: int) -> int:
        """How many of a Linear's `outputs` rows stay in 16 bit: the nearest whole number, halves rounded up."""
        return math.floor(self.keep_ratio * outputs + 0.5) if self.definition.keeps_rows else 0

    def canonical(self) -> "Setting":
        """The same setting with every field that its method does not read at its default: equal work, equal value."""
        unread = {field.name: field.default for field in fields(self) if field.name not in self.definition.reads}
        return replace(self, **unread)  # type: ignore[arg-type]

    def label(self) -> str:
        """The method with the parameters it reads, for tables: `gwh-praq-v2 beta=0.5 tau=2 n_grid=20`."""
        read = [f"{name}={getattr(self, name):g}" for name in self.definition.parameters]
        return " ".join([self.method, *read])

    def as_dict(self) -> dict[str, object]:
        """Every field by name, JSON-able."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


PRESETS = {
    "balanced": Setting(beta=0.5, tau=2.0),
    "awq-leaning": Setting(beta=0.3, tau=2.5),
    "praq-leaning": Setting(beta=0.7, tau=1.5),
    "conservative": Setting(beta=0.4, tau=3.0),
}
