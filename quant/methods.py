"""The named methods as data, and the setting that says how one of them is applied.

Responsible for what a method is (DESIGN 3, table) and which parameters it reads. Everything that acts on this data
lives in `salience` and `layers`. Defaults of parameters are written here and nowhere else.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from quant.errors import QuantizationError
from quant.grid import Grid, scale_type

Salience = Literal["activation", "post-activation", "blend"]
Normalisation = Literal["mean", "soft"]
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
        error_weights: How the output errors are weighted in the loss.
        per_row: True for one scale per output row instead of groups.
        parameters: The fields of `Setting` that this method reads beyond the grid and the calibration size.
    """

    name: str
    summary: str
    salience: Salience | None = None
    normalisation: Normalisation = "soft"
    error_weights: ErrorWeights = "uniform"
    per_row: bool = False
    parameters: tuple[str, ...] = ()


METHODS = {
    method.name: method
    for method in (
        Method(name="rtn", summary="nearest rounding in groups"),
        Method(
            name="gw-awq",
            summary="AWQ: scales from input magnitudes, every output error counts the same",
            salience="activation",
            normalisation="mean",
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
        group_size: Inputs that share a scale.
        symmetric: Codes around zero, or codes with a zero point.
        scales: Every Linear its own input scale, or one that folds into what produces the input.
        placement: Where the activation enters the importances of MLP outputs.

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
        )
        problems = [message for passed, message in checks if not passed]
        if problems:
            raise QuantizationError("; ".join(problems))

    @property
    def definition(self) -> Method:
        """The method this setting applies."""
        return METHODS[self.method]

    def grid(self, dtype: torch.dtype) -> Grid:
        """The grid for weights of a model of `dtype`."""
        return Grid(
            group_size=None if self.definition.per_row else self.group_size,
            symmetric=self.symmetric,
            scale_dtype=scale_type(dtype),
        )

    def canonical(self) -> "Setting":
        """The same setting with every field that its method does not read at its default: equal work, equal value."""
        read = {"method", "n_calib", "group_size", "symmetric", "scales", "placement", *self.definition.parameters}
        if self.definition.salience is None:
            read -= {"n_calib", "scales", "placement"}
        unread = {field.name: field.default for field in fields(self) if field.name not in read}
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
