"""Measure what divergence adds to scoring: seconds with and without a teacher in turn, memory, and bytes on the disk.

The floor is one more product of hidden states with the head: `2 F V` operations a token beside the model's own
`2 (parameters)`, which is 21 % of SmolLM2-135M's. Seconds are the processor's, so that other work on the machine
matters less, and the median of some turns. A teacher is computed once for a model and a text.

    python benchmarks/divergence_cost.py --model DIR --eval-data C4 --eval-samples 64 --seq-len 512
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from objectives.model.loading import ModelPlan, load_model
from objectives.model.memory import peak_bytes, reset_peak
from objectives.progress import silent
from objectives.scoring import score_all
from objectives.teacher import cached_teacher
from objectives.text.sequences import TextPlan, prepare_text
from storage.cache import TensorCache
from storage.paths import Paths

TURNS = 3


def main() -> None:
    """Print one line for each quantity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--eval-data", default="bundled:docstrings")
    parser.add_argument("--eval-samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=256)
    given = parser.parse_args()
    model = load_model(ModelPlan(name=given.model))
    plan = TextPlan(source=given.eval_data, part="tuning", count=given.eval_samples, length=given.seq_len)
    (text,) = prepare_text([plan], model.tokenizer)
    print(f"{model.name} in {model.dtype}, {len(text)} sequences of {given.seq_len}, {torch.get_num_threads()} threads")
    score_all(model.module, text[:8], "", silent)
    with TemporaryDirectory() as home:
        cache = TensorCache(Paths(Path(home)))
        started = process_time()
        teacher = cached_teacher(model, text, cache, silent)
        print(f"teacher: {process_time() - started:.1f} s once, {cache.entries()[0].size / 1e6:.1f} MB on the disk")
        turns = {"without": None, "with": teacher}
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        peaks: dict[str, float] = {}
        for _ in range(TURNS):
            for name, of_turn in turns.items():
                reset_peak(model.device)
                started = process_time()
                measured = score_all(model.module, text, "", silent, of_turn)
                seconds[name].append(process_time() - started)
                peaks[name] = max(peaks.get(name, 0.0), peak_bytes(model.device) / 1e6)
    without, beside = (median(seconds[name]) for name in turns)
    print(f"scoring: {without:.1f} s without, {beside:.1f} s with, ratio {beside / without:.2f}")
    print(f"peak memory: {peaks['without']:.0f} MB without, {peaks['with']:.0f} MB with")
    print(f"full precision against itself: KL {measured.mean_kl:.1e} nats, flips {measured.percent_flips:.2f} %")


if __name__ == "__main__":
    main()
