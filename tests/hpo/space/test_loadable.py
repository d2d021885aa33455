"""What of a space a runtime loads is searched, and nothing else."""

from pathlib import Path

import pytest

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
    """The rest is left out, with the reason; so are zero points, which vLLM does not load from GPTQ."""
    space, notices = loadable(make_space(Setting(), INGREDIENTS), Deployment(runtime=runtime))
    assert space.sizes("group_size") == sizes
    assert set(space.values("symmetric")) == ({True} if runtime == "gptq" else {True, False})
    lost = {
        "vllm": [],
        "gptq": [
            "group_size 256 left out: vLLM for gptq has no kernel for groups of 256",
            "symmetric false left out: vLLM for gptq has no kernel for zero points",
        ],
    }
    assert notices == lost.get(runtime, [f"group_size 256 left out: {runtime} has no kernel for groups of 256"])


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
