"""What is printed for programs is documented: each field of each object, and nothing else."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from hpo.report.document import (
    PrintedEstimate,
    PrintedRecommendation,
    PrintedReference,
    PrintedResult,
    PrintedRow,
    PrintedSizeClass,
    PrintedStep,
    PrintedTrial,
)
from hpo.report.document_importances import PrintedImportances, PrintedShares
from hpo.space.dimension import Dimension
from hpo.space.space import Space
from hpo.study import confirmation, contract, status
from hpo.study import event_lines as lines
from hpo.workers.administration import Listed
from objectives.refinement_record import HeldBack
from quant.setting import Setting
from tests.documents import documented_fields

OBJECTS: dict[str, type] = {
    "study": PrintedResult,
    "reference": PrintedReference,
    "trial": PrintedTrial,
    "estimate": PrintedEstimate,
    "recommendation": PrintedRecommendation,
    "ranking of a size class": PrintedSizeClass,
    "row of a ranking": PrintedRow,
    "interval": confirmation.Interval,
    "step of the waterfall": PrintedStep,
    "contract": contract.Contract,
    "model": contract.ModelContract,
    "calibration text": contract.CalibrationContract,
    "scored text": contract.TextContract,
    "space": Space,
    "dimension": Dimension,
    "confirmation": confirmation.Confirmation,
    "member of the front": confirmation.ConfirmedMember,
    "refined": confirmation.RefinedConfirmation,
    "look of refining": HeldBack,
    "row of the confirmation": confirmation.ConfirmedScore,
    "comparison": confirmation.ConfirmedComparison,
    "importances": PrintedImportances,
    "shares": PrintedShares,
    "status": status.Summary,
    "running trial": status.RunningTrial,
    "listed study": Listed,
    "notice": lines.NoticeLine,
    "progress": lines.ProgressLine,
    "look at a trial": lines.LookedLine,
    "end of a trial": lines.FinishedLine,
    "workers at work": lines.WorkingLine,
    "worker": lines.WorkerAtWork,
}
# What commands print.
ROOTS = (PrintedResult, status.Summary, Listed, lines.ProgressLine, *get_args(lines.EventLine))


def documented() -> dict[str, list[str]]:
    """The fields of each table, by the name in its head."""
    return documented_fields("study-json.md")


def objects(kind: Any) -> Iterator[type]:
    """Every dataclass that one of this type may hold; a setting is documented elsewhere."""
    if is_dataclass(kind) and kind is not Setting:
        yield kind  # type: ignore[misc]
        for hint in get_type_hints(kind).values():
            yield from objects(hint)
    for part in get_args(kind):
        yield from objects(part)


def test_every_object_has_a_table_and_every_table_an_object() -> None:
    """Whatever a study, a report or an event may contain."""
    assert list(documented()) == list(OBJECTS)
    assert {kind for root in ROOTS for kind in objects(root)} == set(OBJECTS.values())


@pytest.mark.parametrize("name", OBJECTS)
def test_the_fields_of_an_object_are_documented_and_nothing_else(name: str) -> None:
    """In their order."""
    assert documented()[name] == [field.name for field in fields(OBJECTS[name])]
