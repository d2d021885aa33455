"""What processes of tests have from the start: the bundled text, whose parsing takes each of them two seconds, few
resamples of importances, which take longer than a small study, little patience with each other, and no lines of
progress, of which a busy machine has more."""

import hpo.terminal
import hpo.verdict.bootstrap
import hpo.workers.measuring
import hpo.workers.worker
import storage.lease
import storage.results
from objectives.bundled.text import HELD_OUT_SHARE, held_out

hpo.terminal.SILENT_SECONDS = 3600.0
hpo.verdict.bootstrap.RESAMPLES = 10
hpo.workers.worker.POLL_SECONDS = hpo.workers.measuring.POLL_SECONDS = 0.1
storage.lease.POLL_SECONDS = storage.results.POLL_SECONDS = 0.05
for family in HELD_OUT_SHARE:
    held_out(family)
