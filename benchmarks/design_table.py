"""Reproduce the table of known facts: what each method and setting costs in mean NLL, next to a prototype's figures.

Protocol: documents of the evaluation file in file order, joined by two newlines, cut into blocks of 512 tokens, the
last 48 of them scored; calibration on the first 64 blocks of the calibration file. Differences to full precision are
paired; standard errors count blocks of one document as one cluster. The expected figures are a prototype's on
SmolLM2-135M-Instruct (mean NLL above full precision, standard error). The prototype kept its scales in float32;
here they are rounded to the 16-bit type they are stored in, which is what ships.

    python benchmarks/design_table.py --model DIR --eval-text c4.jsonl.gz --calib-text wikitext2.test.raw
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from objectives.calibration.calibration import Calibration
from objectives.model.finding import find_blocks
from objectives.model.loading import ModelPlan, load_model
from objectives.model.memory import keep_freed_memory
from objectives.paired import paired_difference
from objectives.text.sequences import Sequences, TextPlan, tokenize
from objectives.text.sources import read_documents
from objectives.trial import Bench, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.cache import TensorCache
from storage.paths import Paths

SCORED, CALIBRATED, LENGTH = 48, 64, 512
RTN_ERROR, AWQ_ERROR, V2_ERROR = 0.013, 0.007, 0.010
V2 = {
    64: {(0, 1.5): 0.266, (0.3, 2.5): 0.258, (0.5, 2): 0.256, (0.7, 1.5): 0.340, (1, 1.5): 0.378, (0.4, 3): 0.252}
    | {(0.3, 0.2): 0.301},
    32: {(0, 1.5): 0.169, (0.3, 2.5): 0.192, (0.4, 3): 0.196, (0.5, 2): 0.217, (0.7, 1.5): 0.257, (1, 1.5): 0.238},
}
FIXED = {
    64: {"rtn": 0.372, "gw-awq": 0.207, "gwh-praq-v1": 0.206},
    32: {"rtn": 0.265, "gw-awq": 0.145, "gwh-praq-v1": 0.159},
}
ASYMMETRIC = {64: {"rtn": 0.237, "gw-awq": 0.134}, 32: {"rtn": 0.183, "gw-awq": 0.095}}
FOLDABLE = {(64, True): 0.249, (64, False): 0.133}


def expectations() -> list[tuple[Setting, float, float]]:
    """Every setting of the table with the prototype's figure and standard error."""
    rows: list[tuple[Setting, float, float]] = []

    def add(expected: float, error: float, **fields: object) -> None:
        rows.append((Setting(**{"n_calib": CALIBRATED, "scales": "linear", **fields}), expected, error))  # type: ignore[arg-type]

    for size in (64, 32):
        for method, expected in FIXED[size].items():
            add(expected, RTN_ERROR if method == "rtn" else AWQ_ERROR, method=method, group_size=size)
        for (beta, tau), expected in V2[size].items():
            add(expected, V2_ERROR, beta=beta, tau=tau, group_size=size)
        for method, expected in ASYMMETRIC[size].items():
            error = RTN_ERROR if method == "rtn" else AWQ_ERROR
            add(expected, error, method=method, group_size=size, symmetric=False)
    for (size, symmetric), expected in FOLDABLE.items():
        add(expected, 0.008, method="gw-awq", group_size=size, symmetric=symmetric, scales="foldable")
    return rows


def blocks_of(file: str, tokenizer: object, part: str) -> Sequences:
    """All blocks of a file, in file order."""
    plan = TextPlan(source=file, part=part, count=10**9, length=LENGTH)  # type: ignore[arg-type]
    return tokenize(read_documents(file), tokenizer, plan)


def protocol_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of whatever is measured by this protocol."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--calib-text", required=True)
    return parser


def laid_out(options: argparse.Namespace) -> tuple[Bench, Sequences]:
    """The model with its calibration, and the blocks that are scored."""
    keep_freed_memory()
    model = load_model(ModelPlan(name=options.model))
    blocks = find_blocks(model.module)
    scored = blocks_of(options.eval_text, model.tokenizer, "tuning")[-SCORED:]
    calibrated = blocks_of(options.calib_text, model.tokenizer, "calibration")[:CALIBRATED]
    calibration = Calibration(model, blocks, calibrated, TensorCache(Paths.default()))
    return Bench(model=model, blocks=blocks, calibration=calibration), scored


def main() -> None:
    parser = protocol_parser(__doc__)
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench, scored = laid_out(options)
    full = run_trial(bench, None, scored)
    assert full.score is not None
    print(f"full precision ({bench.model.dtype}): perplexity {full.score.perplexity:.3f} (prototype 33.13)\n")
    print(
        "| group | grid | scales | setting | NLL above full (s.e.) | prototype | apart / s.e. | quantize s | score s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for setting, expected, error in expectations():
        if setting.group_size not in options.group_sizes:
            continue
        result = run_trial(bench, Plan.uniform(setting), scored)
        assert result.score is not None
        difference = paired_difference(result.score, full.score)
        apart = (difference.value - expected) / max(difference.standard_error, error)
        kind = "symmetric" if setting.symmetric else "asymmetric"
        label = setting.label().removesuffix(" n_grid=20")
        print(
            f"| {setting.group_size} | {kind} | {setting.scales} | {label} | {difference.value:.3f} "
            f"({difference.standard_error:.3f}) | {expected:.3f} | {apart:+.1f} | {result.seconds['quantize']:.1f} "
            f"| {result.seconds['score']:.1f} |",
            flush=True,
        )
        alphas = {layer.name: layer.alpha for layer in result.layers}
        rows.append({"setting": setting.as_dict(), "difference": difference.value, "alphas": alphas})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
