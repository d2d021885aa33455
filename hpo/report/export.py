"""A study as data for programs: one JSON-able object, and its trials as CSV.

Responsible for what `show --json`, `result.json` and `trials.csv` contain. Everything is plain: decoded settings, no
numbers that JSON has not.
"""

import io
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from hpo.report.document import printed_result, printed_study
from hpo.study.record import Measured, StudyRecord, TrialRecord
from hpo.verdict.snapshot import Study
from quant.setting import Setting
from storage.strict_json import plain
from storage.typed_json import encode

if TYPE_CHECKING:
    import pandas as pd

    from hpo.verdict.importance import Importances

PHASES = ("calibrate", "quantize", "score")


def study_json(study: Study) -> dict[str, object]:
    """Collect everything that is known of a study, as JSON has it; numbers that are not finite are null."""
    return _object(printed_study(study))


def result_json(study: Study, importances: "Importances") -> dict[str, object]:
    """Collect the same with its importances."""
    return _object(printed_result(study, importances))


def trials_csv(record: StudyRecord) -> str:
    """Write one row per trial, in order of their numbers; what a trial has not is left empty."""
    buffer = io.StringIO()
    _table(record).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def trials_frame(record: StudyRecord) -> "pd.DataFrame":
    """Return a DataFrame of the rows of `trials_csv`: whole numbers stay whole where some miss, times are times."""
    # Imported here: `show` needs `study_json` at once, and pandas takes half a second.
    import pandas as pd

    table = _table(record)
    for name in ("started", "finished"):
        table[name] = pd.to_datetime(table[name])
    for name in ("state", "origin", "method", "scales", "placement", "outcome"):
        table[name] = table[name].astype("category")
    return table


def phases(measured: Sequence[Measured]) -> list[str]:
    """List every phase that took time, in the order in which they happen."""
    names = dict.fromkeys(phase for member in measured for phase in member.seconds)
    return [*(phase for phase in PHASES if phase in names), *(phase for phase in names if phase not in PHASES)]


def _table(record: StudyRecord) -> "pd.DataFrame":
    import pandas as pd

    names = [field.name for field in fields(Setting)]
    columns = [
        *("number", "name", "state", "origin", *names),
        *(
            "perplexity",
            "kl",
            "flips",
            "predicted_kl",
            "estimate",
            "estimate_low",
            "estimate_high",
            "bits_per_weight",
            "model_bytes",
        ),
        *(f"seconds_{phase}" for phase in phases(record.trials)),
        *("tokens", "outcome", "reason", "started", "finished"),
    ]
    return pd.DataFrame(
        [_row(trial, record.predicted_kl.get(str(trial.number))) for trial in record.trials], columns=columns
    ).convert_dtypes()


def _row(trial: TrialRecord, predicted_kl: float | None) -> dict[str, object]:
    estimate = trial.estimate
    return {
        "number": trial.number,
        "name": trial.name,
        "state": trial.state,
        "origin": trial.origin,
        **(trial.setting.as_dict() if trial.setting else {}),
        "perplexity": trial.perplexity,
        "kl": trial.kl,
        "flips": trial.flips,
        "predicted_kl": predicted_kl,
        "estimate": estimate.value if estimate else None,
        "estimate_low": estimate.low if estimate else None,
        "estimate_high": estimate.high if estimate else None,
        "bits_per_weight": trial.bits_per_weight,
        "model_bytes": trial.model_bytes,
        **{f"seconds_{phase}": seconds for phase, seconds in trial.seconds.items()},
        "tokens": trial.tokens,
        "outcome": trial.outcome,
        "reason": trial.reason,
        "started": trial.started,
        "finished": trial.finished,
    }


def _object(value: object) -> dict[str, object]:
    return {name: plain(part) for name, part in encode(value).items()}
