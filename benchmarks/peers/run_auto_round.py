"""AutoRound on given tokens: weights in place, written dense.

Runs in AutoRound's own environment, without a network, and imports nothing of this project. `run.py` says what to do in
one JSON object, the first argument; seconds and versions are written beside the weights' folder.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

job = json.loads(sys.argv[1])
blocks = [torch.tensor([ids]) for ids in json.loads(Path(job["tokens"]).read_text())]
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"])
tokenizer = AutoTokenizer.from_pretrained(job["model"])
begin = time.perf_counter()
rounding = AutoRound(
    model,
    tokenizer,
    bits=4,
    group_size=job["group_size"],
    sym=job["symmetric"],
    iters=job["iters"],
    # With no iterations it would search ranges otherwise, and not round to nearest.
    disable_opt_rtn=job["iters"] == 0,
    nsamples=len(blocks),
    seqlen=blocks[0].shape[1],
    dataset=[{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in blocks],
    device_map="cpu",
    enable_torch_compile=False,
    disable_model_free=True,
)
rounding.quantize()
seconds = time.perf_counter() - begin
rounding.save_quantized(job["written"], format="fake")
tokenizer.save_pretrained(job["written"])
facts = {"seconds": seconds, "version": version("auto-round")}
Path(job["facts"]).write_text(json.dumps(facts))
