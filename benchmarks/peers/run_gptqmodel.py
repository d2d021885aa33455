"""GPTQModel's GPTQ on given tokens: its packed weights are read back and written dense.

Runs in GPTQModel's own environment, without a network, and imports nothing of this project. `run.py` says what to do in
one JSON object, the first argument; seconds and versions are written beside the weights' folder.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

job = json.loads(sys.argv[1])
blocks = json.loads(Path(job["tokens"]).read_text())
tokenizer = AutoTokenizer.from_pretrained(job["model"])
config = QuantizeConfig(bits=4, group_size=job["group_size"], sym=job["symmetric"], device="cpu")
model = GPTQModel.load(job["model"], config)
begin = time.perf_counter()
model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in blocks], tokenizer=tokenizer)
seconds = time.perf_counter() - begin
dense = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"])
with tempfile.TemporaryDirectory() as packed:
    model.save(packed)
    quantized = GPTQModel.load(packed, backend=BACKEND.TORCH, device="cpu").model
linears = {name: layer for name, layer in quantized.named_modules() if hasattr(layer, "dequantize_weight")}
if not linears:
    sys.exit("GPTQModel wrote no quantized Linear")
with torch.no_grad():
    for name, layer in linears.items():
        dense.get_parameter(f"{name}.weight").copy_(cast(Any, layer).dequantize_weight().T)
dense.save_pretrained(job["written"])
tokenizer.save_pretrained(job["written"])
facts = {"seconds": seconds, "version": version("gptqmodel")}
Path(job["facts"]).write_text(json.dumps(facts))
