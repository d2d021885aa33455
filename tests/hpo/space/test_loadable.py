"""What of a space a runtime loads is searched, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from hpo.space.loadable import loadable
from hpo.space.space import INGREDIENTS, make_space
from objectives.errors import InputError
from objectives.export.deployment import Deployment
from quant.setting import Setting
from tests.objectives import tiny


@pytest.mark.parametrize(
    ("runtime", "sizes"),
    [
        ("vllm", [32, 64, 128, 256]),
        ("gptq", [32, 64, 128]),
        ("awq", [32, 64, 128]),
        ("mlx", [32, 64, 128]),
    ],
)
def test_group_sizes_are_those_that_a_runtime_has_kernels_for(runtime: str, sizes: list[int]) -> None:
    """The rest is left out, with the reason; so are zero points where none are loaded, and codes that save none."""
    space, notices = loadable(make_space(Setting(), INGREDIENTS), Deployment(runtime=runtime))
    assert space.sizes("group_size") == sizes
    assert set(space.values("symmetric")) == {"gptq": {True}, "vllm": {True, False}}.get(runtime, {False})
    lost = {
        "vllm": [],
        "gptq": [
            "group_size 256 left out: gptq (GPTQ files in vLLM) has no kernel for groups of 256",
            "symmetric false left out: gptq (GPTQ files in vLLM) has no kernel for zero points",
        ],
    }
    no_smaller = f"{runtime} stores a zero point for every group, so that they are as large as asymmetric codes"
    both = [
        f"group_size 256 left out: {runtime} has no kernel for groups of 256",
        f"symmetric true left out: {no_smaller}",
    ]
    assert notices == lost.get(runtime, both)


@pytest.mark.parametrize("runtime", ["awq", "mlx"])
def test_symmetric_codes_are_searched_where_they_are_all_that_was_given(runtime: str) -> None:
    """Their format holds them, though no smaller."""
    space, notices = loadable(
        make_space(Setting(), {"symmetric": "true", "group_size": "64"}), Deployment(runtime=runtime)
    )
    assert space.values("symmetric") == [True]
    assert notices == []


def test_a_size_that_is_left_is_fixed() -> None:
    """GGUF has blocks of 32 alone."""
    pytest.importorskip("gguf")
    space, notices = loadable(make_space(Setting(), {}), Deployment(runtime="gguf"))
    assert space.fixed["group_size"] == 32
    assert notices == ["group_size 64, 128, 256 left out: gguf has no kernel for groups of 64"]


def test_what_only_the_model_tells_is_left_out_as_well(tmp_path: Path) -> None:
    """Of mixtures of experts transformers reads no zero points; over two devices, 32 inputs have no groups of 32."""
    bench = tiny.bench(tiny.model(tiny.MIXTURES["mixtral"]()), tmp_path)
    space = make_space(Setting(), {"group_size": "16,32", "symmetric": "true,false"})
    narrowed, notices = loadable(
        make_space(Setting(), {"group_size": "32", **INGREDIENTS}), Deployment(runtime="vllm"), bench
    )
    assert narrowed.fixed["symmetric"] is True
    assert notices == [
        "symmetric false left out: transformers does not read the zero points of experts in compressed-tensors"
    ]
    with pytest.raises(InputError, match="--for vllm: "):
        loadable(space, Deployment(runtime="vllm", devices=8), bench)


def test_under_a_budget_every_way_of_every_site_is_loaded(tmp_path: Path) -> None:
    """Zero points go where there are several schemes; group sizes stay, for each site takes its own."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    space = make_space(Setting(method="gw-awq"), INGREDIENTS)
    narrowed, notices = loadable(space, Deployment(runtime="vllm"), bench, allocated=True)
    assert narrowed.fixed["symmetric"] is True
    assert narrowed.sizes("group_size") == space.sizes("group_size")
    assert notices == [
        "symmetric false left out: transformers does not read compressed-tensors of 5 schemes where one has zero points"
    ]


@pytest.mark.parametrize(
    ("config", "devices", "said"),
    [
        # The 192 inputs of o are two groups of 64 and a half.
        (
            LlamaConfig(**{**tiny.GROUPED, "head_dim": 48}),
            2,
            "groups of 64 do not divide the 192 inputs of model.layers.0.self_attn.o_proj split over 2 devices; give "
            "another --tensor-parallel, or a smaller --group-size and no budget",
        ),
        (
            tiny.MIXTURES["mixtral"](),
            1,
            "transformers reads compressed-tensors of experts with one scheme for all Linears, and no experts in 16 "
            "bit; give all the same and no budget, or write it with --format dense",
        ),
    ],
)
def test_plans_that_no_runtime_loads_are_not_searched(config: Any, devices: int, said: str, tmp_path: Path) -> None:
    """What one size of groups suits, a budget that may give another does not."""
    bench = tiny.bench(tiny.model(config), tmp_path)
    space = make_space(Setting(method="gw-awq", symmetric=True), {"group_size": "32"})
    deployment = Deployment(runtime="vllm", devices=devices)
    loadable(space, deployment, bench)
    with pytest.raises(InputError) as caught:
        loadable(space, deployment, bench, allocated=True)
    assert str(caught.value) == f"--for vllm: {said}"


@pytest.mark.parametrize(
    ("setting", "given", "said"),
    [
        (Setting(scales="linear"), {}, "--for mlx: --scales linear divides the inputs of every Linear"),
        (Setting(method="awq-mixed"), {}, "--for mlx: awq-mixed keeps rows in 16 bit, which mlx cannot hold"),
        (Setting(method="awq"), {}, "--for mlx: awq has one scale per row, which mlx has no kernel for"),
        (Setting(bits=8), {}, "--for mlx: mlx has weights of 4 bits, not of 8"),
        (Setting(), {"group_size": "256"}, "--for mlx: mlx has no kernel for groups of 256; use --group-size 32 or 64"),
    ],
)
def test_contradictions_are_refused_in_one_line(setting: Setting, given: dict[str, object], said: str) -> None:
    """Before a model is loaded."""
    with pytest.raises(InputError) as caught:
        loadable(make_space(setting, given), Deployment(runtime="mlx"))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
