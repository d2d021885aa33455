"""Create a study or join it: contract first, then references, then the queue of presets.

Responsible for the one way in which a study comes to be, in steps that can each be repeated: whoever dies between two
of them leaves a study that the next process completes. May assume that equal plans give equal contracts.
"""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage

from hpo.search.proposal import presets
from hpo.space.space import Space
from hpo.study.attributes import CONTRACT, QUEUED, REFERENCES
from hpo.study.contract import (
    CalibrationContract,
    Contract,
    ModelContract,
    TextContract,
    require_same,
    stored_contract,
)
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import StudyRecord, read_study
from hpo.study.scores import Scores
from hpo.workers.measuring import measure_references, require_same_machine_result
from hpo.workers.queue import Queue
from objectives.calibration.calibration import Calibration
from objectives.errors import InputError
from objectives.model.loading import Model
from objectives.model.roles import Block, unscaled_inputs
from objectives.progress import Progress
from objectives.text.sequences import Sequences, TextPlan
from objectives.trial import Bench
from storage.results import ResultStore
from storage.typed_json import encode


def make_contract(
    model: Model,
    blocks: Sequence[Block],
    space: Space,
    calibration: Calibration,
    texts: Sequence[tuple[TextPlan, Sequences]],
    seed: int,
    objective: Objective = PERPLEXITY,
) -> Contract:
    """Make the contract of a study.

    Args:
        model: What is quantized.
        blocks: Its layer roles.
        space: What is searched and what is fixed.
        calibration: Where statistics come from.
        texts: Plan and tokens of the tuning text, and of the confirmation texts that there are.
        seed: Of the text's order and of the proposals.
        objective: What a trial's value is.
    """
    tuning, *held_out = (_text(plan, sequences) for plan, sequences in texts)
    confirmation, second, *_ = (*held_out, None, None)
    return Contract(
        model=ModelContract(
            name=model.name,
            commit=model.commit,
            fingerprint=model.fingerprint,
            dtype=str(model.dtype).removeprefix("torch."),
            stored_as=str(model.stored_dtype).removeprefix("torch."),
            input_scales=_input_scales(space, blocks),
        ),
        calibration=CalibrationContract(**_identity(calibration.text), route_all=calibration.route_all),
        objective=objective.name,
        tuning=tuning,
        confirmation=confirmation,
        second_confirmation=second,
        space=space,
        seed=seed,
    )


def _identity(sequences: Sequences) -> dict[str, Any]:
    """What any text is known by."""
    return {"source": sequences.source, "sequences": len(sequences), "fingerprint": sequences.fingerprint()}


def _text(plan: TextPlan, sequences: Sequences) -> TextContract:
    return TextContract(
        **_identity(sequences),
        protocol=plan.protocol,
        seq_len=plan.length,
        bos=plan.bos,
        prefix=sequences.prefix if plan.protocol == "packed" else (),
    )


def _input_scales(space: Space, blocks: Sequence[Block]) -> str:
    if space.base.scales == "linear":
        return "one for every Linear, applied at run time"
    return unscaled_inputs(blocks) or "all fold into what produces the inputs"


def open_study(storage: BaseStorage, name: str, contract: Contract) -> optuna.Study:
    """Open the study of that name under that contract; it is created where there is none.

    Raises:
        InputError: If it exists under another contract or in another format, or is no study of ours.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=contract.directions)
        study.set_user_attr(CONTRACT, encode(contract))
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
        if study.trials and CONTRACT not in study.user_attrs:
            raise InputError(f"study {name!r} was not made by praqtune; choose another --study") from None
        if CONTRACT not in study.user_attrs:
            study.set_user_attr(CONTRACT, encode(contract))
    require_same(stored_contract(study.user_attrs[CONTRACT], name), contract, name)
    return study


def prepare(
    study: optuna.Study, queue: Queue, bench: Bench, store: ResultStore, tuning: Sequences, progress: Progress
) -> StudyRecord:
    """Make sure that references are measured and presets queued; compare this machine with the study's.

    Raises:
        InputError: If this machine scores full precision differently.
        RunError: If a reference cannot be measured.
    """
    references = read_study(study).references
    if references:
        require_same_machine_result(bench, Scores(store).of(references[0]), tuning, progress)
    else:
        measured = measure_references(bench, store, queue.space, tuning, progress)
        study.set_user_attr(REFERENCES, encode(measured))
    with queue.exclusive():
        if not study.user_attrs.get(QUEUED):
            _queue_presets(queue, read_study(study), queue.space)
            study.set_user_attr(QUEUED, True)
    return read_study(study)


def _queue_presets(queue: Queue, record: StudyRecord, space: Space) -> None:
    queued = {trial.setting for trial in record.trials}
    for origin, setting in presets(space):
        if setting not in queued:
            queue.add(setting, origin)
