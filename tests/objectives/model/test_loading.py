"""Models are loaded whole or refused in one line, known by what they compute, and restored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.errors import InputError
from objectives.evaluation import BenchPlan, evaluate, lay_out
from objectives.model import loading as models
from objectives.model.loading import Model, ModelPlan, available_bytes, load_model
from objectives.model.weights import weights_restored
from objectives.progress import silent
from objectives.text.sequences import TextPlan
from quant.errors import QuantizationError
from quant.plan import Plan
from quant.setting import Setting
from storage.paths import Paths
from tests.objectives import tiny

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random model and the bundled tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "whole"
    tiny.module(LlamaConfig(**{**tiny.GROUPED, "vocab_size": 4096})).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIRECTORY / name, directory / name)
    return directory


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def refusal(name: str | Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(ModelPlan(name=str(name), **options))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


# What is loaded


def test_a_model_is_ready_for_scoring(whole: Path) -> None:
    """A loaded model is in evaluation mode, without gradients, on its device, with its tokenizer."""
    model = load_model(ModelPlan(name=str(whole), dtype="float32"))
    assert model.name == str(whole)
    assert model.commit is None
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert {parameter.device.type for parameter in model.module.parameters()} == {"cpu"}
    assert model.dtype == torch.float32
    assert model.tokenizer("text").input_ids
    stored = load_file(whole / WEIGHTS)
    assert all(
        torch.equal(tensor, stored[name]) for name, tensor in model.module.state_dict().items() if name in stored
    )


def test_the_bundled_model_is_the_default(bundled: Model) -> None:
    """Without a name one gets the model that ships with the project."""
    assert ModelPlan().name == bundled.name == "bundled"
    assert bundled.module.config.model_type == "llama"


# What is refused


def test_an_unknown_hub_name(hub: Any) -> None:
    """A name that is no directory is looked up on the hub, and its absence has a remedy."""
    hub.answers(404, "RepoNotFound")
    assert "model org/nothing does not exist or is private; check the name" in refusal("org/nothing")


def test_an_absent_directory(tmp_path: Path) -> None:
    """A path that does not exist is neither a model directory nor a hub name."""
    path = tmp_path / "absent" / "model"
    assert f"model {path} is neither a local path nor a hub name" in refusal(path)


def test_a_directory_without_config(copy: Path) -> None:
    """A directory that holds no model is refused as such, and the hub is not asked."""
    (copy / "config.json").unlink()
    assert refusal(copy) == f"model {copy} is a directory without config.json; give a model directory"


def test_a_directory_without_weights(copy: Path) -> None:
    """The missing file is named; weights of other kinds do not take its place."""
    (copy / WEIGHTS).unlink()
    assert f"model {copy} has no weights ({WEIGHTS}); get them" in refusal(copy)
    (copy / "model.gguf").write_bytes(b"GGUF")
    assert f"model {copy} has GGUF instead of safetensors; give the model that it was made from" in refusal(copy)
    torch.save({}, copy / "pytorch_model.bin")
    assert f"model {copy} has pickled weights (.bin, .pt), which are not read" in refusal(copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_codes_are_not_taken_for_weights(dtype: torch.dtype, copy: Path) -> None:
    """Where nothing says that a model is quantized, the types of its weights do."""
    weights = load_file(copy / WEIGHTS)
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    save_file({**weights, name: weights[name].to(dtype)}, copy / WEIGHTS, {"format": "pt"})
    assert f"is quantized, although its config.json does not say so ({name} is stored as" in refusal(copy)


def test_scales_that_nobody_reads_are_not_left_out(copy: Path) -> None:
    """Weights of a type that every model has may be codes all the same."""
    weights = load_file(copy / WEIGHTS)
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    save_file({**weights, f"{name}_scale": torch.ones(1)}, copy / WEIGHTS, {"format": "pt"})
    assert f"is quantized, although its config.json does not say so ({name}_scale)" in refusal(copy)


@pytest.mark.parametrize(
    "values", [{"num_attention_heads": 0}, {"quantization_config": "gptq"}, {"quantization_config": [4]}]
)
def test_values_that_no_configuration_can_have_are_one_line(values: dict[str, object], copy: Path) -> None:
    """Whatever the library's own code makes of them."""
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    assert refusal(copy).startswith(f"model {copy} cannot be used: ")


@pytest.mark.parametrize("damage", ["cut off", "empty", "other bytes"])
def test_damaged_weights(copy: Path, damage: str) -> None:
    """A download that was cut off is refused, not loaded as far as it goes."""
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes({"cut off": data[:-1000], "empty": b"", "other bytes": b"x" * 1000}[damage])
    assert f"{copy / WEIGHTS} is damaged or not all there" in refusal(copy)


def test_absent_weights_are_not_made_up(copy: Path) -> None:
    """A checkpoint without a layer is refused with its name: the library would fill it with random numbers."""
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(copy, lambda tensors: tensors.pop(name))
    assert f"model {copy} lacks 1 weights that its config.json describes" in refusal(copy)
    assert f"(first: {name})" in refusal(copy)


def test_weights_of_another_shape(copy: Path) -> None:
    """A checkpoint that belongs to another configuration is refused with the weight that does not fit."""
    edit_config(copy, intermediate_size=96)
    message = refusal(copy)
    assert "has them in another shape (first: model.layers.0.mlp.down_proj.weight)" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_broken_json(copy: Path, name: str) -> None:
    """A file that cannot be parsed is refused in one line."""
    (copy / name).write_text("{")
    assert f"model {copy} cannot be used: " in refusal(copy)


def test_a_directory_without_tokenizer(copy: Path) -> None:
    """Without a tokenizer there is no text to measure on."""
    for path in copy.glob("tokenizer*"):
        path.unlink()
    assert f"model {copy} has no tokenizer" in refusal(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "no-such-type"}, "no-such-type"),
        ({"model_type": "vit"}, "AutoModelForCausalLM"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
    ],
)
def test_an_impossible_configuration(copy: Path, changes: dict[str, object], said: str) -> None:
    """Model types that are unknown or no language model, and impossible values, are named."""
    edit_config(copy, **changes)
    message = refusal(copy)
    assert f"model {copy} cannot be used: " in message
    assert said in message


def test_code_that_comes_with_a_model_runs_by_flag_only(copy: Path, tmp_path: Path) -> None:
    """Without --trust-remote-code no line of a model's own code is run, and the error names the flag."""
    ran = tmp_path / "ran"
    (copy / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    assert refusal(copy) == f"model {copy} runs code of its own; add --trust-remote-code if you trust it"
    assert not ran.exists()


@pytest.mark.parametrize("name", ["int8", "bf16", "torch.float32", ""])
def test_an_unknown_dtype(name: str) -> None:
    """A type is refused when the plan is made, with those there are."""
    with pytest.raises(InputError, match="choose auto, float32, bfloat16, float16") as caught:
        ModelPlan(dtype=name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "gpu", "cuda:99"])
def test_an_unknown_device(whole: Path, name: str) -> None:
    """A device that torch does not know, or that is not there, is refused before anything is loaded."""
    message = refusal(whole, device=name)
    assert message.startswith(f"device {name!r} cannot be used (")
    assert message.endswith("; choose auto, cpu, cuda or cuda:N")


def test_a_gpu_is_taken_where_there_is_one(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device a model goes to the GPU; the one that torch only says is there cannot be used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert refusal(whole).startswith("device 'auto' cannot be used (")
    assert load_model(ModelPlan(name=str(whole), device="cpu")).device.type == "cpu"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_will_not_fit(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """What fits with a copy of itself is in memory, by its type; less is streamed, down to two of its blocks."""
    monkeypatch.setattr(models, "WORKING_BYTES", 0)
    size = 4 if dtype == "float32" else 2
    needed = 2 * size * sum(tensor.numel() for tensor in load_file(whole / WEIGHTS).values())
    plan = ModelPlan(name=str(whole), dtype=dtype, offload=str(tmp_path / "offload"))
    monkeypatch.setattr(models, "available_bytes", lambda device: needed)
    assert not load_model(plan).weights.streamed
    monkeypatch.setattr(models, "available_bytes", lambda device: needed - 1)
    assert load_model(plan).weights.streamed


def test_the_numbers_of_a_model_of_which_no_block_fits(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before its weights are read; working space is counted, and both numbers are readable ones."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(models, "available_bytes", lambda device: 300_000_000)
    message = refusal(whole)
    assert f"model {whole} needs at least 0.002 GB for weights on cpu in torch.float32" in message
    assert "0.000 GB are available beside 0.5 GB to work in; use another --device or a 16-bit --dtype" in message


# Where and in which type


@pytest.mark.parametrize(
    ("device", "fast", "own", "expected"),
    [
        ("cuda", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("cuda", torch.bfloat16, torch.float16, torch.float16),
        ("cuda", torch.bfloat16, torch.float32, torch.float32),
        ("cpu", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("cpu", torch.float32, torch.bfloat16, torch.float32),
        ("cpu", torch.bfloat16, torch.float16, torch.float32),
        ("cpu", torch.bfloat16, torch.float32, torch.float32),
        ("cpu", torch.bfloat16, torch.float64, torch.float32),
        ("cpu", torch.bfloat16, None, torch.float32),
        ("cuda", torch.bfloat16, None, torch.float32),
    ],
)
def test_the_automatic_dtype(
    monkeypatch: pytest.MonkeyPatch, device: str, fast: torch.dtype, own: torch.dtype | None, expected: torch.dtype
) -> None:
    """A GPU takes the model's own type, a processor takes it where it is fast in it, and float32 otherwise."""
    monkeypatch.setattr(models, "fast_dtype", lambda kind: fast)
    config = LlamaConfig(**tiny.GROUPED, dtype=own)
    assert models._dtype("auto", config, torch.device(device)) == expected
    for name, dtype in models.DTYPES.items():
        assert models._dtype(name, config, torch.device(device)) == dtype


@pytest.mark.parametrize(("fast", "expected"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)])
def test_weights_are_loaded_in_the_chosen_dtype(
    copy: Path, monkeypatch: pytest.MonkeyPatch, fast: torch.dtype, expected: torch.dtype
) -> None:
    """The choice reaches every weight."""
    monkeypatch.setattr(models, "fast_dtype", lambda kind: fast)
    edit_config(copy, dtype="bfloat16")
    module = load_model(ModelPlan(name=str(copy))).module
    assert {parameter.dtype for parameter in module.parameters()} == {expected}


def test_weights_are_put_on_the_chosen_device(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight is where it was asked to be; `meta` stands for an accelerator."""
    monkeypatch.setattr(models, "_fingerprint", lambda module, weights: "")
    monkeypatch.setattr(models, "available_bytes", lambda device: 10**12)
    model = load_model(ModelPlan(name=str(whole), device="meta", dtype="bfloat16"))
    assert {(parameter.device.type, parameter.dtype) for parameter in model.module.parameters()} == {
        ("meta", torch.bfloat16)
    }
    assert model.device.type == "meta"


def test_available_memory_is_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is asked for its free memory, and a processor for the machine's."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert available_bytes(torch.device("cuda", 1)) == 123
    assert available_bytes(torch.device("cpu")) > 10**6


# Which model it is


def fingerprint(directory: Path, **options: Any) -> str:
    return load_model(ModelPlan(name=str(directory), **{"dtype": "float32", **options})).fingerprint


def test_the_fingerprint_belongs_to_what_is_computed(whole: Path, copy: Path) -> None:
    """Two loads, and a copy under another name, are one model."""
    assert fingerprint(whole) == fingerprint(whole) == fingerprint(copy)


def test_the_fingerprint_ignores_who_wrote_the_files(whole: Path, copy: Path) -> None:
    """The version of transformers and the type noted in the configuration change nothing that is computed."""
    edit_config(copy, transformers_version="4.40.0", _name_or_path="org/name", dtype="float16")
    assert fingerprint(whole) == fingerprint(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: edit_weights(path, lambda tensors: tensors["model.norm.weight"][5:6].mul_(1.0001)),
        lambda path: edit_weights(path, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3, 4:5].neg_()),
        lambda path: edit_config(path, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}),
        lambda path: edit_config(path, rms_norm_eps=1e-5),
        lambda path: edit_config(path, hidden_act="gelu"),
    ],
    ids=["norm", "weight", "rope theta", "epsilon", "activation"],
)
def test_the_fingerprint_changes_with_what_is_computed(whole: Path, copy: Path, change: Callable[[Path], None]) -> None:
    """One weight, or one number of the configuration, makes it another model."""
    change(copy)
    assert fingerprint(whole) != fingerprint(copy)


def test_the_fingerprint_changes_with_the_dtype(whole: Path) -> None:
    """The same weights in another type compute something else."""
    assert len({fingerprint(whole, dtype=name) for name in models.DTYPES}) == 3


# Weights that come back


def test_weights_are_restored_after_an_error() -> None:
    """Whatever happened to them, in whatever way the block ended, the weights are bit for bit what they were."""
    module = tiny.module(tiny.LAYOUTS["phi3"](), dtype=torch.bfloat16)
    before = tiny.state(module)
    linears = [child for child in module.modules() if isinstance(child, nn.Linear)]

    def spoil() -> None:
        with weights_restored(linears), torch.inference_mode():
            for linear in linears:
                linear.weight.fill_(float("nan"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    assert tiny.same_bits(before, tiny.state(module))


def test_weights_are_restored_in_place() -> None:
    """The parameters stay the same objects, so that tied weights stay tied."""
    module = tiny.module(tiny.LAYOUTS["llama"]())
    head = module.lm_head.weight
    pointer = head.data_ptr()
    with weights_restored([module.lm_head]):
        module.lm_head.weight.mul_(2)
    assert module.lm_head.weight is head
    assert head.data_ptr() == pointer


# Weights that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["rtn", "gwh-praq-v2"])
def test_a_weight_that_is_not_finite_is_refused_with_its_layer(
    copy: Path, tmp_path: Path, value: float, method: str
) -> None:
    """Evaluating a setting on a model with one broken weight names the layer and leaves the model as it was."""
    name = "model.layers.1.self_attn.v_proj"

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[f"{name}.weight"][2, 3] = value

    edit_weights(copy, spoil)
    text = tmp_path / "some.txt"
    text.write_text("\n\n".join(f"This is document {number} of a text about numbers. " * 8 for number in range(40)))
    plan = BenchPlan(
        model=ModelPlan(name=str(copy), dtype="float32"),
        calibration=TextPlan(source=str(text), part="calibration", count=4, length=32),
        data=(TextPlan(source=str(text), part="tuning", count=4, length=32),),
    )
    laid_out = lay_out(plan, Paths(tmp_path / "cache"), silent)
    before = tiny.state(laid_out.bench.model.module)
    setting = Setting(method=method, group_size=32, n_calib=4, n_grid=3)
    with pytest.raises(QuantizationError) as caught:
        list(evaluate(laid_out, [Plan.uniform(setting)], silent))
    message = str(caught.value)
    assert "NaN or Inf in " in message
    assert name in message
    assert "model.layers.0" not in message
    assert "\n" not in message
    assert tiny.same_bits(before, tiny.state(laid_out.bench.model.module))
