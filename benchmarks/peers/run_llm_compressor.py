"""llm-compressor's AWQ or GPTQ on given tokens: written dense, because its packed zero points need its own versions.

Runs in llm-compressor's own environment, without a network, and imports nothing of this project. `run.py` says what to
do in one JSON object, the first argument; seconds and versions are written beside the weights' folder.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

job = json.loads(sys.argv[1])
blocks = json.loads(Path(job["tokens"]).read_text())
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"])
weights = {"num_bits": 4, "type": "int", "symmetric": job["symmetric"], "strategy": "group"}
targets = {"targets": ["Linear"], "weights": {**weights, "group_size": job["group_size"]}}
scheme = {"config_groups": {"linears": targets}, "ignore": ["lm_head"]}
recipes = {
    "awq": lambda: [AWQModifier(), QuantizationModifier(**scheme)],
    "gptq": lambda: [GPTQModifier(**scheme)],
}
if not torch.accelerator.is_available():
    # AWQ pins memory for copies to an accelerator, which PyTorch refuses where there is none.
    IntermediatesCache.pin_memory = lambda *_: None
begin = time.perf_counter()
oneshot(
    model=model,
    dataset=Dataset.from_dict({"input_ids": blocks, "attention_mask": [[1] * len(ids) for ids in blocks]}),
    recipe=recipes[job["method"]](),
    max_seq_length=len(blocks[0]),
    num_calibration_samples=len(blocks),
)
seconds = time.perf_counter() - begin
values = model.state_dict()
linears = {name: layer for name, layer in model.named_modules() if hasattr(layer, "weight_scale")}
if not linears:
    sys.exit("llm-compressor quantized no Linear")
for name, layer in linears.items():
    grid = (layer.weight_scale, layer.weight_zero_point, layer.quantization_scheme.weights)
    values[f"{name}.weight"] = fake_quantize(layer.weight, *grid)
dense = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"])
dense.load_state_dict({name: values[name] for name in dense.state_dict()})
dense.save_pretrained(job["written"])
AutoTokenizer.from_pretrained(job["model"]).save_pretrained(job["written"])
facts = {"seconds": seconds, "version": version("llmcompressor")}
Path(job["facts"]).write_text(json.dumps(facts))
