"""The command lines of a study: what repeats it, what joins it, what writes its best setting.

Responsible for flags that give the stored contract again. What that leaves open (sampler, pruner, what was allowed) is
stored beside it, and is as usual before it is.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hpo.study.choosing import RECOMMENDED, study_flags
from hpo.study.contract import Contract
from hpo.study.record import Measured, StudyRecord, TrialRecord
from objectives.export.formats import RUNTIMES
from quant.parameters import PARAMETERS, flag_of

PROGRAM, LINE = "python cli.py", 88


def repeat_command(record: StudyRecord, trials: int | None, storage: str | None = None) -> str:
    """Write the command that begins this study anew, or, with its storage, goes on with it or joins it.

    Args:
        record: The study.
        trials: How many the study is to have in all; None leaves it to the program.
        storage: Its address, as it may be shown; None leaves it to the user's environment.
    """
    flags = {**study_flags(record.contract), **_space_flags(record.contract), "trials": trials}
    if record.contract.objective != Contract.objective:
        flags["objective"] = record.contract.objective
    flags["route_all"] = flags["route_all"] or None
    arguments = {name: value for name, value in (flags | record.search.unusual()).items() if value is not None}
    return _folded([f"{PROGRAM} optimize", *_words(arguments), *_where(record, storage)])


def quantize_command(record: StudyRecord, chosen: Measured, directory: str, storage: str | None = None) -> str:
    """Write the command that makes a model directory of a trial of the study, or of the reference it recommends.

    What was refined and confirmed is refined by it, too.
    """
    selector = chosen.number if isinstance(chosen, TrialRecord) else RECOMMENDED
    runtime = record.search.for_
    form = None if runtime is None else RUNTIMES[runtime]
    devices = record.search.tensor_parallel if record.search.tensor_parallel > 1 else None
    refined = record.refined is not None and record.refined.refined == chosen.name
    flags: dict[str, Any] = {
        "study": record.name, "trial": selector, "format": form, "tensor_parallel": devices, "storage": storage
    }  # fmt: skip
    arguments = {name: value for name, value in flags.items() if value is not None}
    how = record.search.refining if refined else {}
    words = _words({**arguments, **record.search.allowed, **how})
    return _folded([f"{PROGRAM} quantize", *words, f"--output-dir {shlex.quote(directory)}"])


def _space_flags(contract: Contract) -> dict[str, Any]:
    space = contract.space
    # What both flags of a truth could fix is searched where none is given.
    truths = {name for name in space.reads if PARAMETERS[name].opposite is not None}
    typed = {dimension.name: dimension.typed for dimension in space.dimensions if dimension.name not in truths}
    flags = {**space.fixed, **typed}
    budget = flags.pop("bit_budget", None)
    if budget is not None:
        budgets = space.numbers("bit_budget")
        flags |= {"front": f"{budgets[0]:g}..{budgets[-1]:g}"} if space.is_front else {"budget": f"{budget:g}"}
    if "n_calib" in flags:
        flags["n_calib"] = _asked_for(space.sizes("n_calib"), contract.calibration.sequences)
    return flags


def _asked_for(sizes: Sequence[int], read: int) -> str:
    """Restore calibration sizes as they were asked for, where there was text for more than the largest in use."""
    numbers = list(sizes)
    while numbers[-1] < read:
        numbers.append(2 * numbers[-1])
    return ",".join(map(str, numbers))


def _words(flags: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in flags.items():
        opposite = PARAMETERS[name].opposite if name in PARAMETERS else None
        if value is True and opposite is None:
            words.append(flag_of(name))
        elif opposite is not None:
            words.append(flag_of(name if value else opposite[0]))
        else:
            # A value that begins with a minus would be taken for a flag.
            glue = "=" if str(value).startswith("-") else " "
            words.append(f"{flag_of(name)}{glue}{shlex.quote(str(value))}")
    return words


def _where(record: StudyRecord, storage: str | None) -> list[str]:
    return _words({"study": record.name, **({"storage": storage} if storage else {})})


def _folded(words: Sequence[str]) -> str:
    """Fold words into lines of at most `LINE` letters that a shell reads as one."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > LINE:
            lines.append(f"   {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)
