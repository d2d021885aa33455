"""One trial of a study, picked by a person, and the command that its numbers came from.

Responsible for which trial is meant, for what has to be said of one that was not measured to the end, and for the
flags that lay out its model and text again. May assume a study of ours.
"""

from collections.abc import Mapping
from typing import Any

from hpo.study.contract import Contract
from hpo.study.record import StudyRecord, TrialRecord
from objectives.errors import InputError
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.parameters import flag_of

BEST, RECOMMENDED = "best", "recommended"
MODEL_FLAGS = ("model", "revision", "dtype")
TEXT_FLAGS = ("calib_data", "eval_data", "confirm_data", "eval_samples", "protocol", "bos", "seq_len", "seed")


def chosen_trial(record: StudyRecord, selector: str) -> tuple[TrialRecord, list[str]]:
    """The trial that `best`, of least value, or a number means, and what a person should know of it.

    Raises:
        InputError: If there is none, or it has no setting yet.
    """
    trial = record.best if selector == BEST else _numbered(record, selector)
    if trial is None:
        raise InputError(
            f"study {record.name!r} has no completed trial yet; go on with it, or choose one of its "
            f"{len(record.trials)} trials by number"
        )
    if trial.setting is None:
        raise InputError(f"trial {trial.number} of study {record.name!r} has no setting; choose another --trial")
    return trial, _notes(trial)


def study_flags(contract: Contract) -> dict[str, Any]:
    """The flags, by name, that lay out the model and the text of a study again; None or False where none is needed."""
    model, tuning, second = contract.model, contract.tuning, contract.second_confirmation
    return {
        "model": model.name,
        "revision": model.commit,
        "dtype": model.dtype,
        "calib_data": contract.calibration.source,
        "route_all": contract.calibration.route_all,
        "eval_data": tuning.source,
        "confirm_data": second.source if second else None,
        "eval_samples": tuning.sequences,
        "protocol": tuning.protocol,
        "bos": tuning.beginning,
        "seq_len": tuning.seq_len,
        "seed": contract.seed,
    }


def require_same_bench(record: StudyRecord, bench: Bench) -> None:
    """Refuse to apply a trial's setting to other weights, or to calibrate it on other text, than it was measured with.

    Raises:
        InputError: With the flags that give the study's.
    """
    contract = record.contract
    flags = study_flags(contract)
    checks = (
        ("model", contract.model.fingerprint, bench.model.fingerprint, MODEL_FLAGS),
        ("calibration text", contract.calibration.fingerprint, bench.calibration.text.fingerprint(), TEXT_FLAGS),
    )
    problems = [
        f"the {name} that was loaded is not the study's: give {_spelled(flags, names)}"
        for name, stored, loaded, names in checks
        if stored != loaded
    ]
    if contract.calibration.route_all != bench.calibration.route_all:
        every = contract.calibration.route_all
        problems.append(f"{'give' if every else 'leave out'} --route-all, as its statistics were made")
    if problems:
        raise InputError(
            f"study {record.name!r}: {'; '.join(problems)}; where these are given already, the files have changed since"
        )


def require_same_text(record: StudyRecord, tuning: Sequences) -> None:
    """Refuse to compare a packed model with what a trial scored on other text.

    Raises:
        InputError: With the flags that give the study's.
    """
    if record.contract.tuning.fingerprint != tuning.fingerprint():
        given = _spelled(study_flags(record.contract), TEXT_FLAGS)
        raise InputError(
            f"study {record.name!r}: the tuning text that was loaded is not the study's: give {given}; where these are "
            "given already, the files have changed since"
        )


def _numbered(record: StudyRecord, selector: str) -> TrialRecord:
    trial = next((trial for trial in record.trials if str(trial.number) == selector), None)
    if trial is None:
        numbers = f"0 to {record.trials[-1].number}" if record.trials else "none"
        raise InputError(
            f"study {record.name!r} has no trial {selector!r}; give {RECOMMENDED}, {BEST} or a number ({numbers})"
        )
    return trial


def _notes(trial: TrialRecord) -> list[str]:
    if trial.state == "COMPLETE":
        return []
    if trial.state == "PRUNED":
        guess = f" (estimated: {trial.objective.number(trial.estimate.value)})" if trial.estimate else ""
        label = trial.objective.label
        return [f"trial {trial.number} was pruned before all text was read; its {label} is not known{guess}"]
    if trial.state == "FAIL":
        return [f"trial {trial.number} failed ({trial.reason or trial.outcome}), so its setting may fail again"]
    return [
        f"trial {trial.number} is not measured yet ({trial.state.lower()}); its {trial.objective.label} is not known"
    ]


def _spelled(flags: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return " ".join(f"{flag_of(name)} {flags[name]}" for name in names if flags[name] is not None)
