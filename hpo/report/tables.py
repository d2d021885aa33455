"""The tables of a report, as text in rows: ranking, confirmation, importances, cost, contract.

Responsible for what they say; the page and the Markdown file lay out the same tables. May assume a ranked study.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.report.export import phases
from hpo.space.size_class import SizeClass
from hpo.study.record import FULL_PRECISION, Measured, StudyRecord, TrialRecord
from hpo.verdict.importance import Importances
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.snapshot import Study
from hpo.verdict.words import NOTHING, interval_text, number, percent_text, setting_text, short_source

SHOWN_TRIALS = 12


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text.

    Attributes:
        title: What it is about.
        columns: Names; those from the `words`-th on hold numbers.
        rows: As many cells as there are columns.
        words: How many of the first columns are text.
        more: Rows that a reader need not see at once.
        note: A sentence below or instead of it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    more: tuple[tuple[str, ...], ...] = ()
    note: str = ""


def ranking_tables(study: Study) -> list[Table]:
    """One for each level of bits: all references and presets, and the best trials."""
    return [_ranking(study.record, level) for level in study.ranking]


def confirmation_tables(record: StudyRecord) -> list[Table]:
    """What was measured on other text, and how the winner compares there; empty where nothing was confirmed."""
    found = record.confirmation
    if found is None:
        return []
    measured = Table(
        title=f"Perplexity on held-out text, {_confirmed_at(found)}",
        columns=("text", "name", "perplexity", "mean NLL", "tokens"),
        rows=tuple(
            (
                short_source(row["dataset"]),
                row["name"],
                number(row["perplexity"]),
                number(row["mean_nll"], 4),
                f"{row['tokens']:,}",
            )
            for row in found["rows"]
        ),
        words=2,
    )
    compared = Table(
        title="Comparisons",
        columns=("text", "compared", "perplexity, percent [95 %]", "p", "p after Holm"),
        rows=tuple(
            (
                short_source(row["dataset"]),
                f"{row['name']} against {row['against']}",
                interval_text(**row["percent"]),
                number(row["p_value"], 4),
                number(row["holm"], 4),
            )
            for row in found["comparisons"]
        ),
        words=2,
        note="Negative is better; Holm's correction is for all of these comparisons together.",
    )
    return [measured, *([compared] if compared.rows else [])]


def _confirmed_at(confirmation: Mapping[str, Any]) -> SizeClass:
    return SizeClass(group_size=confirmation["group_size"], keep_ratio=confirmation.get("keep_ratio") or 0.0)


def importance_tables(importances: Importances) -> list[Table]:
    """Shares per hyperparameter with their intervals, where there are any."""
    return [
        Table(
            title=f"Importances, {shares.scope}",
            columns=("hyperparameter", "PED-ANOVA [90 %]", "fANOVA [90 %]", "mean [90 %]"),
            rows=tuple(
                (name, *(share.percent(1) for share in (shares.ped_anova[name], shares.fanova[name], mean)))
                for name, mean in shares.mean.items()
            ),
            note=" ".join(filter(None, (f"Over {shares.counted}.", shares.warning))),
        )
        for shares in importances.scopes
        if shares.reason is None
    ]


def cost_table(study: Study) -> Table:
    """Tokens and seconds that references and trials took, and what pruning saved."""
    record = study.record
    named = phases([*record.references, *record.trials])
    groups: list[tuple[str, Sequence[Measured]]] = [("references", record.references)]
    for state, name in (("COMPLETE", "complete trials"), ("PRUNED", "pruned trials"), ("FAIL", "failed trials")):
        groups.append((name, [trial for trial in record.trials if trial.state == state]))
    groups.append(("all trials", record.trials))
    return Table(
        title="Cost",
        columns=("", "number", "tokens evaluated", *(f"{phase}, s" for phase in named), "all, s"),
        rows=tuple((name, *_cost(members, named)) for name, members in groups if members or name == "all trials"),
        note=" ".join([_saved(study), *_cache(record)]),
    )


def failure_table(record: StudyRecord) -> Table:
    """What failed, and why."""
    failed = [trial for trial in record.trials if trial.state == "FAIL"]
    rows = tuple(
        (trial.name, setting_text(trial), trial.outcome or NOTHING, trial.reason or NOTHING) for trial in failed
    )
    return Table(title="Failed trials", columns=("name", "setting", "outcome", "reason"), rows=rows, words=4)


def contract_table(contract: Mapping[str, object]) -> Table:
    """What the numbers mean, whatever it consists of."""
    return Table(title="Contract", columns=("what", "value"), rows=tuple(_flat(contract, "")), words=2)


def _ranking(record: StudyRecord, level: SizeClassRanking) -> Table:
    rows = [(row, _ranked(level, row)) for row in level.rows]
    shown = [cells for place, (row, cells) in enumerate(rows) if is_shown(level, place, row)]
    hidden = [cells for place, (row, cells) in enumerate(rows) if not is_shown(level, place, row)]
    full = [_unquantized(one, level) for one in record.references if one.setting is None]
    return Table(
        title=level.title,
        columns=("name", "setting", "perplexity", "percent above best [95 %]", "bits per weight"),
        rows=(*shown, *full),
        words=2,
        more=tuple(hidden),
        note=f"{len(hidden)} weaker trials are in trials.csv." if hidden else "",
    )


def is_shown(level: SizeClassRanking, place: int, row: Ranked) -> bool:
    """Whether a reader sees this row of a ranking at once: references, presets, the best trials."""
    measured = row.measured
    found = isinstance(measured, TrialRecord) and not measured.origin.startswith("preset")
    return place < SHOWN_TRIALS or not found or row is level.recommended


def _ranked(level: SizeClassRanking, row: Ranked) -> tuple[str, ...]:
    name = f"{row.measured.name} (recommended)" if row is level.recommended else row.measured.name
    above = "best" if row is level.best else percent_text(row.difference)
    return (name, setting_text(row.measured), number(row.score.perplexity), above, number(row.measured.bits_per_weight))


def _unquantized(one: Measured, level: SizeClassRanking) -> tuple[str, ...]:
    best = level.best.score.perplexity
    above = f"{100 * (one.perplexity / best - 1):+.2f} %" if one.perplexity and math.isfinite(best) else NOTHING
    return (FULL_PRECISION, "", number(one.perplexity), above, number(one.bits_per_weight))


def _cost(members: Sequence[Measured], named: Sequence[str]) -> tuple[str, ...]:
    trials = [one for one in members if isinstance(one, TrialRecord)]
    tokens = f"{sum(trial.tokens for trial in trials):,}" if len(trials) == len(members) else NOTHING
    totals = [sum(one.seconds.get(phase, 0.0) for one in members) for phase in named]
    return (f"{len(members)}", tokens, *(f"{seconds:,.1f}" for seconds in totals), f"{sum(totals):,.1f}")


def _saved(study: Study) -> str:
    record, levels = study.record, study.ranking
    ended = sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials)
    full = int(levels[0].rows[0].score.tokens.sum()) if levels else 0
    if not ended or not full:
        return "What pruning saves is known when a trial has ended."
    return (
        f"Pruning saved {100 * record.tokens_saved(full):.1f} % of the tokens: "
        f"each of the {ended} complete and pruned trials would have read {full:,}."
    )


def _cache(record: StudyRecord) -> Iterator[str]:
    """What keeping calibration spared: sizes are prefixes of each other, so the largest one is all that is computed."""
    ended = [*record.references, *(trial for trial in record.trials if trial.state in ("COMPLETE", "PRUNED"))]
    read = [one.setting.n_calib for one in ended if one.setting and "n_calib" in one.setting.reads]
    if read:
        yield (
            f"They read statistics of {sum(read):,} calibration samples, of which at most {max(read):,} had to be "
            f"computed: {100 * (1 - max(read) / sum(read)):.1f} % came from the cache."
        )


def _flat(value: object, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{prefix} › {key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping | list | tuple) for part in value):
        for place, part in enumerate(value, 1):
            yield from _flat(part, f"{prefix} › {place}")
    else:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, list | tuple) else _word(value)


def _word(value: object) -> str:
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
