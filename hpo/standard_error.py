"""One line on standard error, which may be full, or closed by whoever read it.

Responsible for the work going on all the same: what is said there is never the result.
"""

import os
import sys


def say(line: str) -> None:
    """Write one line; where nobody takes it, nothing more is written from then on."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # What is still in the buffer would otherwise be tried again, and fail, with every line and at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
