"""Peak memory of calibration above the loaded model, at a small and a large number of samples.

Each size runs in a process of its own with an empty cache; the figure is the high-water mark of resident memory minus
what was resident once the model and its text were loaded.

    python benchmarks/calibration_memory.py --model DIR --calib-text wikitext2.test.raw --sizes 16 256
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.design_table import blocks_of
from objectives.calibration.calibration import Calibration
from objectives.model.finding import find_blocks
from objectives.model.loading import ModelPlan, load_model
from objectives.model.memory import keep_freed_memory, peak_bytes, reset_peak
from objectives.progress import silent
from storage.cache import TensorCache
from storage.paths import Paths


def measure(options: argparse.Namespace) -> None:
    """Calibrate on one number of samples and print bytes above the loaded model, and seconds."""
    keep_freed_memory()
    model = load_model(ModelPlan(name=options.model))
    blocks = find_blocks(model.module)
    sequences = blocks_of(options.calib_text, model.tokenizer, "calibration")[: options.one]
    with tempfile.TemporaryDirectory() as home:
        calibration = Calibration(model, blocks, sequences, TensorCache(Paths(Path(home))))
        loaded = psutil.Process().memory_info().rss
        reset_peak(model.device)
        clock = perf_counter()
        calibration.ensure([options.one], silent)
        print(peak_bytes(model.device) - loaded, perf_counter() - clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib-text", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options)
        return
    peaks = []
    for size in options.sizes:
        command = [sys.executable, *sys.argv, "--one", str(size)]
        above, seconds = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        peaks.append(above)
        print(f"{size} samples: peak {above / 1e9:.3f} GB above the loaded model, {seconds:.1f} s", flush=True)
    print(f"largest over smallest: {max(peaks) / min(peaks):.3f}")


if __name__ == "__main__":
    main()
