"""The entry point of the command line: parse, set up logging, run one command, map errors to exit codes.

Exit codes: 0 done, 1 failed while running, 2 wrong usage or input, 130 interrupted, 143 terminated. The
commands are in `hpo.commands`.
"""

import logging
import os
import sys
from collections.abc import Sequence

from hpo.commands.parser import PROGRAM, make_parser
from hpo.commands.signals import terminable
from hpo.commands.streams import require_output, take_any_character
from hpo.standard_error import say
from hpo.workers.interrupts import Terminated

DONE, FAILED, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
LONGEST_REASON = 160
# Their progress bars and advice are not ours to print.
CHATTY_LIBRARIES = ("huggingface_hub", "transformers", "datasets", "httpx2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    take_any_character()
    options = make_parser().parse_args(arguments)
    _set_up_logging(options.quiet)
    try:
        with terminable():
            require_output(options.json)
            options.run(options)
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        how = "terminated" if terminated else "interrupted"
        say(f"{PROGRAM}: {how}; what was finished is kept")
        return TERMINATED if terminated else INTERRUPTED
    except Exception as error:
        answer = _answer(error)
        if answer is None or options.debug:
            raise
        code, line = answer
        say(f"{PROGRAM}: {line}")
        return code
    return DONE


def _set_up_logging(quiet: bool) -> None:
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.ERROR if quiet else logging.WARNING)
    for library in CHATTY_LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _answer(error: Exception) -> tuple[int, str] | None:
    """Exit code and line: 2 for what the user can change in the command, 1 for what failed; None for our mistakes."""
    from objectives.errors import InputError, RunError
    from quant.errors import QuantizationError
    from storage.errors import AddressError, StorageError

    if isinstance(error, InputError | QuantizationError | AddressError):
        return WRONG_INPUT, str(error)
    if isinstance(error, RunError | StorageError):
        return FAILED, str(error)
    # Not above, because it imports PyTorch.
    from objectives.model.memory import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    reason = " ".join(str(error).split())[:LONGEST_REASON]
    return FAILED, (
        f"memory ran out ({reason}); what was finished is kept. --device-memory GB "
        "reads blocks whenever they are used; or give shorter sequences (--seq-len), or take a larger device"
    )


if __name__ == "__main__":
    sys.exit(main())
