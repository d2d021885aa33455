"""Where a model is to run: which runtime loads it, and over how many devices it splits every Linear.

Responsible for saying of a plan whether that works, before anything is computed. What formats hold stands with the
formats; the kernels of runtimes that read several stand here. May assume validated plans. Tensor parallelism splits
the outputs of what heads and the MLP's first matrices compute, and the inputs of what reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from objectives.errors import InputError
from objectives.export.formats import ALIASES, RUNTIMES, Format, find_format
from objectives.export.limits import Limits, quantized_linears, require_plan, scheme_of
from objectives.model.layouts import Role
from objectives.model.roles import LinearRole
from objectives.trial import Bench
from quant.plan import Plan

FEWER: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"name": "vllm", "groups": (32, 64, 128, 256)},
    "gptq": {"name": "gptq (GPTQ files in vLLM)", "zero_points": False},
}
"""What a runtime loads less than its format holds: vLLM's kernels on GPUs, and GPTQ there (docs/deploy.md)."""
WORD_BITS = 32
SPLIT_INPUTS: frozenset[Role] = frozenset({"o", "down", "fc2"})
SPLIT_OUTPUTS: frozenset[Role] = frozenset({"gate", "up", "fc1"})


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A runtime and how it runs a model.

    Attributes:
        runtime: Its name in `RUNTIMES`.
        devices: How many it splits every Linear over.

    Raises:
        InputError: If there is no such runtime, or it does not split Linears so.
    """

    runtime: str
    devices: int = 1

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise InputError(f"--for {self.runtime} is unknown; choose one of {', '.join((*RUNTIMES, *ALIASES))}")
        require_devices([self.form], self.devices)

    @property
    def form(self) -> Format:
        """Return the format that it is written in."""
        return find_format(RUNTIMES[self.runtime])

    def require_loads(self, plan: Plan, bench: Bench | None = None) -> None:
        """Refuse a plan that the runtime does not load; without a bench, the plan alone is judged.

        Raises:
            InputError: With the reason and what to do instead.
        """
        self.require_kernels(plan)
        self.form.require_holds(plan, bench)
        if bench is not None:
            require_split(self.form, plan, bench, self.devices)

    def require_kernels(self, plan: Plan) -> None:
        """Refuse a plan that the runtime does not load although its format holds it.

        Raises:
            InputError: With the reason and what to do instead.
        """
        limits = self.form.limits
        if limits is not None and self.runtime in FEWER:
            require_plan(replace(limits, **FEWER[self.runtime]), plan)


def find_deployment(runtime: str | None, devices: int = 1) -> Deployment | None:
    """Return where a model is to run, by a name of `RUNTIMES` or of `ALIASES`; None where nothing is said.

    Raises:
        InputError: If only the number of devices is said, or what is said cannot be.
    """
    if runtime is not None:
        return Deployment(runtime=ALIASES.get(runtime, runtime), devices=devices)
    if devices != 1:
        raise InputError(f"--tensor-parallel {devices} needs the runtime that splits Linears; give --for vllm")
    return None


def require_devices(forms: Sequence[Format], devices: int) -> None:
    """Refuse a number of devices that Linears of these formats cannot be split over, whatever the model.

    Raises:
        InputError: With what is possible.
    """
    if devices < 1:
        raise InputError(f"--tensor-parallel {devices} is not at least 1")
    if devices > 1 and not any(form.limits is not None and form.limits.splits for form in forms):
        raise InputError(
            f"--tensor-parallel {devices} is for runtimes that split packed Linears: vllm, gptq or awq "
            "(--format compressed-tensors, gptq or awq); leave it out"
        )


def require_split(form: Format, plan: Plan, bench: Bench, devices: int) -> None:
    """Refuse a plan whose packed Linears cannot be split over the devices; one device, or another format, suits all.

    Raises:
        InputError: With the first that cannot be.
    """
    limits = form.limits
    if devices == 1 or limits is None or not limits.splits:
        return
    _require_heads(bench.model.module.config.get_text_config(), devices)
    for linear in quantized_linears(bench.blocks, plan):
        _require_linear(limits, linear, plan, devices)


def _require_heads(config: Any, devices: int) -> None:
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    # A runtime copies key/value heads where there are fewer than devices.
    if heads % devices or (shared % devices and devices % shared):
        raise InputError(
            f"{heads} attention heads with {shared} key/value heads cannot be split over {devices} devices; give "
            f"another --tensor-parallel"
        )


def _require_linear(limits: Limits, linear: LinearRole, plan: Plan, devices: int) -> None:
    scheme = scheme_of(plan.setting_for(linear.name))
    assert scheme is not None
    outputs, inputs = linear.shape
    # Zero points of neighbouring outputs share a word.
    word = limits.multiple if scheme.symmetric else WORD_BITS // scheme.bits
    size = scheme.group_size or limits.multiple
    if linear.role in SPLIT_INPUTS and inputs % (devices * size):
        raise InputError(
            f"groups of {size} do not divide the {inputs} inputs of {linear.name} split over {devices} devices; give "
            "another --tensor-parallel, or a smaller --group-size and no budget"
        )
    if linear.role in SPLIT_OUTPUTS and outputs % (devices * word):
        raise InputError(
            f"words of {word} codes do not divide the {outputs} outputs of {linear.name} split over {devices} devices; "
            "give another --tensor-parallel"
        )
