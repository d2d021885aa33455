"""A quantized model that was written is the one that was measured, whole or not there at all."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from objectives.calibration.calibration import Calibration
from objectives.errors import InputError
from objectives.export.formats import Export
from objectives.export.writing import write_model
from objectives.model.finding import find_blocks
from objectives.model.loading import Model, ModelPlan, load_model
from objectives.model.provenance import RECORD
from objectives.progress import silent
from objectives.quantization import model_size
from objectives.quantized_blocks import LayerResult
from objectives.scoring import score_all
from objectives.text.sequences import TextPlan, prepare_text
from objectives.trial import Bench, quantized, run_trial
from quant.errors import QuantizationError
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.errors import StorageError
from storage.paths import Paths
from storage.typed_json import encode
from tests.objectives import tiny

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5, symmetric=False)
SETTINGS = {
    "foldable": AWQ,
    "linear": Setting(group_size=32, n_calib=8, n_grid=5, scales="linear", tau=0.2),
    "mixed": Setting(method="praq-mixed", n_calib=8, keep_ratio=0.3),
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tiny.bench(tiny.complete(), tmp_path / "home")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mine"


def write_quantized(bench: Bench, plan: Plan, directory: Path, progress: Any = silent) -> dict[str, Any]:
    """Writes, and returns the manifest as it is stored."""
    export = Export(bench=bench, plan=plan, directories={"dense": directory})
    stored: dict[str, Any] = encode(write_model(export, progress)["dense"])
    return stored


def quantized_state(bench: Bench, setting: Setting) -> tuple[dict[str, Tensor], tuple[LayerResult, ...]]:
    """The weights that a trial scores, and what it says of its layers."""
    with quantized(bench, Plan.uniform(setting)) as made:
        return tiny.state(bench.model.module), made.layers


def assert_written(bench: Bench, setting: Setting, target: Path) -> Any:
    """Writes, reloads, compares bit by bit and by perplexity; returns what was reloaded."""
    before, configuration = tiny.state(bench.model.module), bench.model.module.config.to_dict()
    expected, _ = quantized_state(bench, setting)
    write_quantized(bench, Plan.uniform(setting), target)
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert bench.model.module.config.to_dict() == configuration
    reloaded = AutoModelForCausalLM.from_pretrained(target)
    assert reloaded.dtype == bench.model.dtype
    assert tiny.same_bits(expected, tiny.state(reloaded))
    assert not tiny.same_bits(before, tiny.state(reloaded))
    text = tiny.sequences([20] * 10, seed=2)
    found = score_all(reloaded.eval(), text, "", silent).perplexity
    assert found == pytest.approx(run_trial(bench, Plan.uniform(setting), text).score.perplexity, rel=1e-6)
    return reloaded


# What is written


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [True, False])
def test_a_reloaded_model_is_the_one_that_was_measured(
    tmp_path: Path, target: Path, tied: bool, dtype: torch.dtype, name: str
) -> None:
    """Weights are equal to the last bit, the type and a tied head stay, and perplexity is that of the trial."""
    bench = tiny.bench(tiny.complete(dtype=dtype, tied=tied), tmp_path)
    reloaded = assert_written(bench, SETTINGS[name], target)
    assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) == tied
    stored = (target / "model.safetensors").stat().st_size
    assert stored < 1.1 * sum(weight.numel() * weight.itemsize for weight in reloaded.parameters())


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_every_layout_can_be_written(tmp_path: Path, target: Path, layout: str) -> None:
    """Fused projections, biases, soft-capped and tied heads all come back as they were."""
    assert_written(tiny.bench(tiny.complete(layout), tmp_path), AWQ, target)


def test_the_bundled_model_can_be_written(bundled: Model, tmp_path: Path, target: Path) -> None:
    """A trained model with its own tokenizer comes back as it was measured, by the same way that it was loaded."""
    plans = [TextPlan(source="bundled:docstrings", part=part, count=4, length=32) for part in ("calibration", "tuning")]
    calibration, text = prepare_text(plans, bundled.tokenizer)
    blocks = find_blocks(bundled.module)
    cache = TensorCache(Paths(tmp_path / "home"))
    bench = Bench(model=bundled, blocks=blocks, calibration=Calibration(bundled, blocks, calibration, cache))
    setting = replace(AWQ, n_calib=4, n_grid=2)
    write_quantized(bench, Plan.uniform(setting), target)
    model = load_model(ModelPlan(name=str(target), accept_quantized=True))
    assert model.fingerprint != bundled.fingerprint
    found = score_all(model.module, prepare_text(plans, model.tokenizer)[1], "", silent)
    expected = run_trial(bench, Plan.uniform(setting), text).score
    assert torch.equal(found.tokens, expected.tokens)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-6)


def test_tokenizer_and_generation_configuration_come_along(bench: Bench, target: Path) -> None:
    """The directory encodes text as the model's tokenizer does, and generates as the model does."""
    bench.model.module.generation_config = GenerationConfig(max_new_tokens=17, do_sample=True, temperature=0.7)
    write_quantized(bench, Plan.uniform(AWQ), target)
    text = "def praq(x):\n    return 'Größe' + x"
    assert AutoTokenizer.from_pretrained(target)(text).input_ids == bench.model.tokenizer(text).input_ids
    found = GenerationConfig.from_pretrained(target)
    assert (found.max_new_tokens, found.do_sample, found.temperature) == (17, True, 0.7)
    assert AutoModelForCausalLM.from_pretrained(target).generation_config.max_new_tokens == 17


def test_a_published_generation_configuration_with_idle_flags_can_be_written(tmp_path: Path, target: Path) -> None:
    """Some published models name a temperature without sampling: loaded so, they are written so."""
    first = tiny.complete()
    first.module.save_pretrained(tmp_path / "published")
    first.tokenizer.save_pretrained(tmp_path / "published")
    path = tmp_path / "published" / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.6, "eos_token_id": 0}))
    model = load_model(ModelPlan(name=str(tmp_path / "published"), dtype="float32"))
    write_quantized(tiny.bench(model, tmp_path / "home"), Plan.uniform(AWQ), target)
    assert json.loads((target / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_written_model_can_be_the_model_of_a_bench(bench: Bench, tmp_path: Path, target: Path) -> None:
    """What was written loads as any model directory, and rounding it again to the same grid changes little."""
    setting = Setting(method="rtn", group_size=32, n_calib=8)
    write_quantized(bench, Plan.uniform(setting), target)
    model = load_model(ModelPlan(name=str(target), dtype="float32", accept_quantized=True))
    again, _ = quantized_state(tiny.bench(model, tmp_path / "again"), setting)
    for name, weight in model.module.state_dict().items():
        torch.testing.assert_close(again[name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_record(bench: Bench, target: Path, name: str) -> None:
    """`praqtune.json` says how the weights came about: the method and what it read, layer by layer, from what."""
    setting = SETTINGS[name]
    record = write_quantized(bench, Plan.uniform(setting), target)
    assert json.loads((target / RECORD).read_text()) == record
    _, layers = quantized_state(bench, setting)
    assert record["layers"] == [asdict(layer) for layer in layers]
    size = model_size(bench.model, bench.blocks, Plan.uniform(setting))
    assert (record["bits_per_weight"], record["model_bytes"]) == (size.bits_per_weight, size.model_bytes)
    assert Setting(method=record["method"], **record["parameters"]).canonical() == setting.canonical()
    assert record["parameters"].keys() == setting.reads - {"method"}
    assert record["model"]["fingerprint"] == bench.model.fingerprint
    assert record["model"]["dtype"] == "float32"
    text = tiny.sequences([24, 17, 24, 9, 31, 24, 2, 12], seed=1)
    assert record["calibration"] == {
        "source": "random-1",
        "samples": 8,
        "fingerprint": text.fingerprint(),
        "route_all": False,
    }
    assert record["versions"] == {package: version(package) for package in ("praqtune", "torch", "transformers")}


def test_the_record_knows_how_much_text_was_used(bench: Bench, target: Path) -> None:
    """The fingerprint is that of the calibration samples that were read, not of all there are."""
    record = write_quantized(bench, Plan.uniform(replace(AWQ, n_calib=4)), target)
    text = tiny.sequences([24, 17, 24, 9, 31, 24, 2, 12], seed=1)[:4]
    assert record["calibration"] == {
        "source": "random-1",
        "samples": 4,
        "fingerprint": text.fingerprint(),
        "route_all": False,
    }


def test_progress_is_told(bench: Bench, target: Path) -> None:
    """Calibrating, quantizing and writing each say how far they are, to the end."""
    reports: dict[str, tuple[int, int]] = {}
    write_quantized(bench, Plan.uniform(AWQ), target, lambda phase, done, total: reports.update({phase: (done, total)}))
    assert [phase.split()[0] for phase in reports] == ["calibrating", "quantizing", "writing"]
    assert all(done == total for done, total in reports.values())


# What is refused, and what fails


def test_a_target_that_holds_something_is_refused_before_any_work(bench: Bench, target: Path) -> None:
    """The refusal is one line with the remedy, nothing was calibrated, and what was there is still there."""
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("precious")
    with pytest.raises(StorageError) as caught:
        write_quantized(bench, Plan.uniform(AWQ), target, lambda *_: pytest.fail("no work may be done"))
    assert str(caught.value) == f"{target} exists already; choose another --output-dir or remove it first"
    assert os.listdir(target) == ["notes.txt"]
    assert os.listdir(target.parent) == ["mine"]


@pytest.mark.parametrize(
    ("setting", "error"), [(replace(AWQ, group_size=48), InputError), (replace(AWQ, n_calib=9), InputError)]
)
def test_an_unsuitable_setting_leaves_nothing(
    bench: Bench, target: Path, setting: Setting, error: type[Exception]
) -> None:
    """A setting that is refused leaves no directory, not even the parents."""
    with pytest.raises(error):
        write_quantized(bench, Plan.uniform(setting), target)
    assert not target.parent.exists()


def test_a_broken_weight_leaves_nothing(bench: Bench, target: Path) -> None:
    """A model that cannot be quantized is not written."""
    bench.model.module.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.up_proj"):
        write_quantized(bench, Plan.uniform(AWQ), target)
    assert not target.parent.exists()


def fail_at_weights(monkeypatch: pytest.MonkeyPatch, bench: Bench, error: BaseException) -> None:
    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", raising(error))


def fail_at_tokenizer(monkeypatch: pytest.MonkeyPatch, bench: Bench, error: BaseException) -> None:
    monkeypatch.setattr(bench.model.tokenizer, "save_pretrained", raising(error))


def fail_at_record(monkeypatch: pytest.MonkeyPatch, bench: Bench, error: BaseException) -> None:
    monkeypatch.setattr("objectives.export.manifest.write_file", raising(error))


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("fail", [fail_at_weights, fail_at_tokenizer, fail_at_record])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), StorageError),
        (SafetensorError("I/O error: No space left on device (os error 28)"), StorageError),
        (RuntimeError("a mistake"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disk full", "weights do not fit", "mistake", "interrupted"],
)
def test_a_write_that_fails_leaves_nothing(
    bench: Bench,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch, Bench, BaseException], None],
    error: BaseException,
    raised: type[BaseException],
) -> None:
    """Whichever file cannot be written, no file is left, the model is as it was, and writing again succeeds."""
    before, configuration = tiny.state(bench.model.module), bench.model.module.config.to_dict()
    with monkeypatch.context() as patch:
        fail(patch, bench, error)
        with pytest.raises(raised) as caught:
            write_quantized(bench, Plan.uniform(AWQ), target)
    if raised is StorageError:
        assert str(caught.value).endswith("; free space or choose another --output-dir")
        assert "\n" not in str(caught.value)
    assert os.listdir(target.parent) == []
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert bench.model.module.config.to_dict() == configuration
    write_quantized(bench, Plan.uniform(AWQ), target)
    assert os.listdir(target.parent) == ["mine"]
