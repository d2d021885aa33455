"""What processes of tests have from the start: the bundled text, whose parsing takes each of them two seconds, and few
resamples of importances, which take longer than a small study."""

import hpo.verdict.bootstrap
from objectives.bundled.text import HELD_OUT_SHARE, held_out

hpo.verdict.bootstrap.RESAMPLES = 10
for family in HELD_OUT_SHARE:
    held_out(family)
