"""THE table of parameters: every field of a setting with its legal values, default, range, words and unit.

Responsible for each of these standing in one place. Checks, search space, command line, figures, model card and README
read it. A row is a field of `Parameters`, so its type and its default are what Python sees, too.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Scale = Literal["linear", "log", "log2"]
Placement = Literal["original", "structural"]
Scales = Literal["linear", "foldable"]
RangeSearch = Literal["none", "diagonal", "block"]
AlphaProxy = Literal["nearest", "range"]
Prefix = Literal["full", "quantized"]

LARGEST_COUNT = 2**20
"""Of whole numbers such as sizes: nobody means more."""
LARGEST = 1e6
"""Of numbers without a natural bound."""
SMALLEST = 1e-3
"""Of numbers that must be above 0."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What is searched unless a study says otherwise.

    Attributes:
        low: Smallest value, included.
        high: Largest value, included.
        scale: How values are spread between them; `log2` holds powers of two only.
        step: Between neighbouring values, from `low` on; None where all values are possible.
    """

    low: float
    high: float
    scale: Scale = "linear"
    step: float | None = None


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Which names or truths a study tries when it searches ingredients.

    Attributes:
        values: Those that earned their place (docs/recipes.md); others that are legal can be asked for.
    """

    values: tuple[str | bool, ...]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One row of the table.

    Attributes:
        name: The field of a setting.
        type: Of its values.
        default: Where nothing is said.
        label: What it is called along an axis and in tables.
        help: What it does, in one line.
        symbol: What it is called where there is little room.
        unit: What its values count or measure; empty for pure numbers and for names.
        legal: Least and greatest value, both allowed; None where values are names or truths.
        choices: The allowed names, or the allowed ones of a few numbers; empty where a range or its type says it.
        search: What is searched; None for what no study varies.
        opposite: Of what is true by default: the name and the help of the flag that makes it false.
        option: The name of its flag, where that is not its own.
    """

    name: str
    type: type
    default: object
    label: str
    help: str
    symbol: str = ""
    unit: str = ""
    legal: tuple[float, float] | None = None
    choices: tuple[str | int, ...] = ()
    search: Range | Choices | None = None
    opposite: tuple[str, str] | None = None
    option: str = ""

    @property
    def flag(self) -> str:
        """How it is given on the command line."""
        return flag_of(self.option or self.name)

    def problem(self, value: Any) -> str | None:
        """Say in one line why `value` is not allowed; None where it is."""
        if self.choices and value not in self.choices:
            return f"{self.name} {value!r} is none of {', '.join(map(str, self.choices))}"
        if self.choices or self.legal is None:
            return None
        low, high = self.legal
        if self.type is int and not (isinstance(value, int) and not isinstance(value, bool)):
            return f"{self.name} {value} is not a whole number"
        # Written so that NaN is refused, too.
        if not low <= value <= high:
            return f"{self.name} {value} is outside {bound_text(low)}..{bound_text(high)}"
        return None


def flag_of(name: str) -> str:
    """Spell a name as a flag of the command line: `--group-size`; `for_` is `--for`, which Python keeps for itself."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def bound_text(value: float) -> str:
    """A bound as it can be typed."""
    short = f"{value:g}"
    return short if float(short) == value else str(value)


def value_text(value: object) -> str:
    """A parameter's value as it can be typed; truths are `true` and `false`."""
    if isinstance(value, bool):
        return str(value).lower()
    return bound_text(value) if isinstance(value, int | float) else str(value)


def row(default: Any, label: str, help: str, **more: Any) -> Any:
    """A field of `Parameters` that carries its row of the table."""
    return field(default=default, metadata={"label": label, "help": help, **more})


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Everything that says how a model is quantized; `PARAMETERS` has the rows by name."""

    method: str = row("gwh-praq-v2", "method", "where input scales come from and how errors are weighted")
    beta: float = row(
        *(0.5, "β, blend of saliences", "which inputs count as important: 0 by AWQ, 1 by PRAQ, or a blend of both"),
        symbol="β",
        legal=(0.0, 1.0),
        search=Range(low=0.0, high=1.0),
    )
    tau: float = row(
        *(2.0, "τ, temperature of the error weights", "temperature of the error weights; large values make them equal"),
        symbol="τ",
        legal=(SMALLEST, math.inf),
        search=Range(low=0.1, high=5.0, scale="log"),
    )
    n_grid: int = row(
        *(20, "steps of the α grid", "steps of the search for alpha, the exponent of input scales"),
        symbol="α steps",
        unit="steps",
        legal=(1, LARGEST_COUNT),
        search=Range(low=5, high=40),
    )
    n_calib: int = row(
        *(128, "calibration samples", "calibration sequences whose statistics are used"),
        symbol="samples",
        unit="sequences",
        legal=(1, LARGEST_COUNT),
        search=Range(low=16, high=512, scale="log2"),
    )
    bits: int = row(
        4,
        "bits",
        "bits of a weight; 16 leaves weights as they are",
        symbol="bits",
        unit="bits",
        choices=(*range(2, 9), 16),
    )
    group_size: int = row(
        *(128, "group size", "inputs of a Linear that share a scale"),
        symbol="group",
        unit="inputs",
        legal=(1, LARGEST_COUNT),
        search=Range(low=32, high=256, scale="log2"),
    )
    symmetric: bool = row(
        *(True, "symmetric", "symmetric codes, around zero"),
        symbol="sym.",
        opposite=("asymmetric", "asymmetric codes, with a zero point for each group"),
        search=Choices(values=(True, False)),
    )
    full_range: bool = row(
        False,
        "full range",
        "the largest weight of a group takes the symmetric code -8 whatever its sign, by a negative scale where it is "
        "positive",
        symbol="full",
        opposite=("no-full-range", "the largest weight of a group takes the symmetric code 7 or -7"),
        search=Choices(values=(True,)),
    )
    range_search: RangeSearch = row(
        "none",
        "range search",
        "how a group's range is chosen: none holds every weight; diagonal and block minimise the output error",
        symbol="ranges",
        choices=get_args(RangeSearch),
        search=Choices(values=("none", "diagonal", "block")),
    )
    alpha_proxy: AlphaProxy = row(
        "nearest",
        "proxy of the α search",
        "how the search for alpha rounds: nearest (in ranges that hold every weight) or range (in searched ranges)",
        symbol="α proxy",
        choices=get_args(AlphaProxy),
        search=Choices(values=("nearest", "range")),
    )
    rounding: str = row(
        *("nearest", "rounding", "how weights are rounded to codes: nearest or gptq"),
        search=Choices(values=("nearest", "gptq")),
    )
    damping: float = row(
        *(0.05, "λ, damping of GPTQ", "GPTQ adds this share of its mean to the diagonal of the Gram matrix"),
        symbol="λ",
        legal=(1e-6, LARGEST),
        search=Range(low=0.005, high=0.5, scale="log"),
    )
    prefix: Prefix = row(
        *(
            "full",
            "prefix of GPTQ",
            "GPTQ's inputs: full (of the original model) or quantized (behind quantized blocks)",
        ),
        choices=get_args(Prefix),
        search=Choices(values=("full",)),
    )
    scales: Scales = row(
        "foldable",
        "input scales",
        "input scales: foldable (shared, folded into the layer before) or linear (one per Linear, applied at run time)",
        choices=get_args(Scales),
    )
    placement: Placement = row(
        "original",
        "placement of the activation",
        "activation in MLP importances: original (on all outputs) or structural (only where the block has it)",
        choices=get_args(Placement),
    )
    # A row in 16 bit costs 12 bits per weight more than one in 4: 5 % of the rows make 4.6 bits, just above groups of
    # 32, and 30 % make 7.6; beyond a third, 8-bit weights are smaller. In steps, as group sizes are: only trials of
    # equal bits can be compared, so there must be several of each.
    keep_ratio: float = row(
        *(0.2, "share of rows in 16 bit", "share of rows that the mixed methods keep in 16 bit"),
        symbol="kept",
        unit="of the rows",
        legal=(0.0, 1.0),
        search=Range(low=0.05, high=0.3, step=0.05),
    )
    # sigmoid(beta_risk (upper - tau_risk)): from nearly flat to a hard threshold, a decade around the default 3.
    beta_risk: float = row(
        *(3.0, "β of the risk, its steepness", "steepness of the estimate of whether an MLP output is active"),
        symbol="β risk",
        legal=(-LARGEST, LARGEST),
        search=Range(low=0.3, high=30.0, scale="log"),
    )
    # Below -6, SiLU and GELU are off (above -0.015); above 0, outputs that are certainly active count as safe.
    tau_risk: float = row(
        *(-3.0, "τ of the risk, where outputs count as active", "value from which on an MLP output counts as active"),
        symbol="τ risk",
        legal=(-LARGEST, LARGEST),
        search=Range(low=-6.0, high=0.0),
    )
    # In products of a mean weight and a mean input: rounding to 4 bits errs by about 0.15 of one for each of I inputs,
    # and independent errors add up to 0.15 sqrt(I) of them, 4 at 576 inputs and 10 at 4096.
    noise_factor: float = row(
        *(0.2, "weight of the rounding noise", "weight of rounding noise in the estimate whether an output is active"),
        symbol="noise",
        legal=(0.0, LARGEST),
        search=Range(low=0.0, high=10.0),
    )
    # From praq-mixed itself (0) to the risk in units of the output's deviation (1).
    variance_penalty: float = row(
        0.5,
        "power of the deviation in the risk",
        "power of an MLP output's standard deviation that divides its risk of being active (praq-mixed-var)",
        symbol="penalty",
        legal=(0.0, 100.0),
        search=Range(low=0.0, high=1.0),
    )
    # Between the smallest plans of groups of 128 and where published gains end; a study gives its own.
    bit_budget: float = row(
        0.0,
        "bit budget",
        "bits per weight that a plan may take, each Linear those that count there; 0 stores all alike",
        symbol="budget",
        unit="bits",
        option="budget",
        legal=(0.0, 16.0),
        search=Range(low=4.2, high=5.0, step=0.1),
    )


PARAMETERS: dict[str, Parameter] = {
    parameter.name: Parameter(
        name=parameter.name, type=type(parameter.default), default=parameter.default, **parameter.metadata
    )
    for parameter in fields(Parameters)
}
"""The rows by name, in the order of tables and figures."""
SEARCHED: tuple[str, ...] = tuple(name for name, parameter in PARAMETERS.items() if parameter.search is not None)
"""What a study can vary."""
