"""A model is quantized for a runtime: what that does not load, or could not split over devices, is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from objectives.errors import InputError
from objectives.export.deployment import Deployment, find_deployment, require_devices, require_split
from objectives.export.formats import ALIASES, FORMATS, RUNTIMES, find_format
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Inputs of 64 and 128, gate and up with 128 outputs; 4 heads over 2 of keys and values."""
    return tiny.bench(tiny.complete("llama"), tmp_path_factory.mktemp("cache"))


def test_every_runtime_loads_a_format_that_has_limits() -> None:
    """Whatever can be named is written by something; GGUF with rounded embeddings is for that of GGUF."""
    assert set(RUNTIMES.values()) == set(FORMATS) - {"dense", "gguf-q8"}
    assert all(find_format(name).limits is not None for name in RUNTIMES.values())


def test_vllm_has_kernels_for_fewer_groups_than_its_format_holds() -> None:
    """Transformers reads any size that divides the inputs."""
    odd = Plan.uniform(replace(AWQ, group_size=48))
    find_format("compressed-tensors").require_holds(odd)
    with pytest.raises(
        InputError, match="vllm has no kernel for groups of 48; use --group-size 32 or 64 or 128 or 256"
    ):
        Deployment(runtime="vllm").require_loads(odd)
    Deployment(runtime="vllm").require_loads(Plan.uniform(replace(AWQ, group_size=256)))


def test_gptq_with_zero_points_is_written_and_not_searched_for() -> None:
    """GPTQModel reads it, vLLM refuses it."""
    asymmetric = Plan.uniform(replace(AWQ, symmetric=False))
    find_format("gptq").require_holds(asymmetric)
    with pytest.raises(InputError, match=r"gptq \(GPTQ files in vLLM\) has no kernel for zero points; use --symm"):
        Deployment(runtime="gptq").require_loads(asymmetric)
    Deployment(runtime="awq").require_loads(asymmetric)


@pytest.mark.parametrize(
    ("setting", "devices", "said"),
    [
        (AWQ, 4, "groups of 32 do not divide the 64 inputs of model.layers.0.self_attn.o_proj split over 4 devices"),
        (AWQ, 3, "4 attention heads with 2 key/value heads cannot be split over 3 devices"),
        (AWQ, 2, None),
        (replace(AWQ, method="awq", symmetric=False, bits=8), 4, None),
    ],
)
def test_groups_straddle_no_devices(setting: Setting, devices: int, said: str | None, bench: Bench) -> None:
    """Neither do heads; one scale for each row suits any number that divides the inputs."""
    deployment, plan = Deployment(runtime="vllm", devices=devices), Plan.uniform(setting)
    if said is None:
        require_split(deployment.form, plan, bench, devices)
        return
    with pytest.raises(InputError) as caught:
        require_split(deployment.form, plan, bench, devices)
    assert str(caught.value).startswith(said)
    require_split(deployment.form, plan, bench, 1)


def test_words_of_codes_straddle_no_devices(tmp_path: Path) -> None:
    """AWQ packs eight outputs into a word, and zero points are packed so in every format."""
    config = tiny.LAYOUTS["llama"]()
    config.intermediate_size, config.num_attention_heads, config.num_key_value_heads = 128 + 8, 4, 4
    made = tiny.bench(tiny.model(config), tmp_path)
    rows = replace(AWQ, method="awq")
    require_split(find_format("compressed-tensors"), Plan.uniform(rows), made, 2)
    for name, setting in (("gptq", rows), ("compressed-tensors", replace(rows, symmetric=False))):
        with pytest.raises(InputError, match=r"(words of 8 codes|groups of 8) do not divide the 136 (out|in)puts"):
            require_split(find_format(name), Plan.uniform(setting), made, 2)


def test_formats_of_one_device_are_not_judged(bench: Bench) -> None:
    """Of several formats, those that runtimes split are."""
    forms = [find_format(name) for name in ("mlx", "gptq")]
    require_devices(forms, 2)
    require_split(forms[0], Plan.uniform(AWQ), bench, 3)
    with pytest.raises(InputError, match="cannot be split over 3 devices"):
        require_split(forms[1], Plan.uniform(AWQ), bench, 3)


def test_devices_without_a_runtime_that_splits_are_refused() -> None:
    """In one line, with what to give."""
    assert find_deployment(None) is None
    assert find_deployment("vllm", 2) == Deployment(runtime="vllm", devices=2)
    with pytest.raises(InputError, match="--tensor-parallel 2 needs the runtime that splits Linears; give --for vllm"):
        find_deployment(None, 2)
    with pytest.raises(InputError, match="--tensor-parallel 2 is for runtimes that split packed Linears: vllm, gptq"):
        find_deployment("gguf", 2)
    with pytest.raises(InputError, match="--tensor-parallel 0 is not at least 1"):
        find_deployment("vllm", 0)
    with pytest.raises(InputError, match="--for exllama is unknown; choose one of vllm, gptq, awq, gguf, mlx, sglang"):
        find_deployment("exllama")


def test_runtimes_that_load_the_same_are_one() -> None:
    """What a study is stored with does not depend on how its runtime was called."""
    assert set(ALIASES.values()) <= RUNTIMES.keys()
    assert not ALIASES.keys() & RUNTIMES.keys()
    assert find_deployment("sglang", 2) == find_deployment("vllm", 2)
    assert {find_deployment(name) for name in ("llama.cpp", "ollama", "lmstudio")} == {Deployment(runtime="gguf")}
