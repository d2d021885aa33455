"""How far a setting's NLL moves when nothing that should matter changes: a few calibration sequences fewer.

Protocol and blocks are those of the table of known facts. What is calibrated on differs by at most a tenth, so for a
setting whose response is smooth all rows agree; where they do not, two correct implementations need not agree either.

    python benchmarks/sensitivity.py --model DIR --eval-text c4.jsonl.gz --calib-text wikitext2.test.raw
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.design_table import laid_out, protocol_parser
from objectives.paired import paired_difference
from objectives.trial import run_trial
from quant.plan import Plan
from quant.setting import Setting

SIZES = (58, 60, 62, 64)


def main() -> None:
    parser = protocol_parser(__doc__)
    parser.add_argument("--group-size", type=int, default=64)
    options = parser.parse_args()
    bench, scored = laid_out(options)
    full = run_trial(bench, None, scored).score
    assert full is not None
    plain = Setting(group_size=options.group_size, scales="linear")
    for setting in (replace(plain, beta=0.0, tau=1.5), replace(plain, method="gw-awq")):
        differences = []
        for size in SIZES:
            score = run_trial(bench, Plan.uniform(replace(setting, n_calib=size)), scored).score
            assert score is not None
            difference = paired_difference(score, full)
            differences.append(difference.value)
            print(
                f"{setting.label()} n_calib={size}: {difference.value:.3f} ({difference.standard_error:.3f})",
                flush=True,
            )
        least, most, deviation = min(differences), max(differences), np.std(differences, ddof=1)
        print(f"{setting.label()}: from {least:.3f} to {most:.3f}, deviation {deviation:.3f}")


if __name__ == "__main__":
    main()
