"""The tables of a report, as text in rows: ranking, confirmation, steps, importances, cost, contract.

Responsible for what they say; the page and the Markdown file lay out the same tables. May assume a ranked study.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpo.report.export import phases
from hpo.study.confirmation import ConfirmedComparison, ConfirmedScore
from hpo.study.objective import KL, Objective
from hpo.study.record import FULL_PRECISION, Measured, StudyRecord, TrialRecord
from hpo.verdict.importance import Importances
from hpo.verdict.ranking import Ranked, SizeClassRanking
from hpo.verdict.snapshot import Study
from hpo.verdict.words import (
    NOTHING,
    flips_text,
    kl_text,
    number,
    setting_text,
    short_source,
)

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
    """Make one for each size class: all references and presets, and the best trials."""
    return [_ranking(study.record, ranking) for ranking in study.rankings]


def confirmation_tables(record: StudyRecord) -> list[Table]:
    """Tabulate what was measured on other text, how the winner compares, and the same of what was refined."""
    confirmation, refined = record.confirmation, record.refined
    tables = []
    if confirmation is not None:
        title = f"{record.objective.title} on held-out text, {confirmation.size_class}"
        members = [row for member in confirmation.front for row in member.comparisons]
        compared = [*confirmation.comparisons, *members]
        tables += [_held_out(title, confirmation.rows), _compared("Comparisons", record.objective, compared)]
        # A reference may be the best one at several budgets.
        others = list(dict.fromkeys(row for member in confirmation.front for row in member.rows))
        tables.append(_held_out("Other members of the front, on held-out text", others))
    if refined is not None:
        title = f"{refined.refined} refined, on held-out text"
        compared = list(refined.comparisons)
        tables += [_held_out(title, refined.rows), _compared("Comparisons of what was refined", KL, compared)]
    return [table for table in tables if table.rows]


def _held_out(title: str, rows: Sequence[ConfirmedScore]) -> Table:
    return Table(
        title=title,
        columns=("text", "name", "perplexity", "mean NLL", "KL, nats", "flips, %", "tokens"),
        rows=tuple(
            (
                short_source(row.dataset),
                row.name,
                number(row.perplexity),
                number(row.mean_nll, 4),
                number(row.kl, 4),
                number(row.flips, 1),
                f"{row.tokens:,}",
            )
            for row in rows
        ),
        words=2,
    )


def _compared(title: str, objective: Objective, comparisons: Sequence[ConfirmedComparison]) -> Table:
    return Table(
        title=title,
        columns=("text", "compared", f"{objective.change_column} [95 %]", "p", "p after Holm"),
        rows=tuple(
            (
                short_source(row.dataset),
                f"{row.name} against {row.against}",
                objective.interval_text(row.change),
                number(row.p_value, 4),
                number(row.holm, 4),
            )
            for row in comparisons
        ),
        words=2,
        note="Negative is better; Holm's correction is for all of these comparisons together.",
    )


def waterfall_tables(study: Study) -> list[Table]:
    """Tabulate the steps from nearest rounding to what is recommended; empty where there are none."""
    steps = study.waterfall
    if len(steps) < 2:
        return []
    objective = study.record.objective
    exact = objective.of_full(study.record.full_precision)
    most = 0.0 if exact is None else objective.lost(steps[0].score, exact)
    return [
        Table(
            title="From nearest rounding to what is recommended",
            columns=("step", "setting", objective.column, "change [95 %]", "of nearest rounding's damage left"),
            rows=tuple(
                (
                    step.measured.name,
                    setting_text(step.measured),
                    number(objective.value(step.score), objective.digits),
                    objective.change_text(step.change) if step.change else NOTHING,
                    f"{100 * objective.lost(step.score, exact) / most:.0f} %"
                    if exact is not None and most > 0
                    else NOTHING,
                )
                for step in steps
            ),
            words=2,
            note="Each step is compared with the one before it on the same sequences of the tuning text.",
        )
    ]


def importance_tables(importances: Importances) -> list[Table]:
    """Tabulate shares per hyperparameter with their intervals, where there are any."""
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
    """Tabulate tokens and seconds that references and trials took, and what pruning saved."""
    record = study.record
    phase_names = phases([*record.references, *record.trials])
    groups: list[tuple[str, Sequence[Measured]]] = [("references", record.references)]
    for state, name in (("COMPLETE", "complete trials"), ("PRUNED", "pruned trials"), ("FAIL", "failed trials")):
        groups.append((name, [trial for trial in record.trials if trial.state == state]))
    groups.append(("all trials", record.trials))
    return Table(
        title="Cost",
        columns=("", "number", "tokens evaluated", *(f"{phase}, s" for phase in phase_names), "all, s"),
        rows=tuple((name, *_cost(members, phase_names)) for name, members in groups if members or name == "all trials"),
        note=" ".join([_saved(record), *_cache(record)]),
    )


def failure_table(record: StudyRecord) -> Table:
    """Tabulate what failed, and why."""
    failed = [trial for trial in record.trials if trial.state == "FAIL"]
    rows = tuple(
        (trial.name, setting_text(trial), trial.outcome or NOTHING, trial.reason or NOTHING) for trial in failed
    )
    return Table(title="Failed trials", columns=("name", "setting", "outcome", "reason"), rows=rows, words=4)


def contract_table(contract: Mapping[str, object]) -> Table:
    """Tabulate what the numbers mean, whatever it consists of."""
    return Table(title="Contract", columns=("what", "value"), rows=tuple(_flat(contract, "")), words=2)


def _ranking(record: StudyRecord, ranking: SizeClassRanking) -> Table:
    rows = [(row, _ranked(record, ranking, row)) for row in ranking.rows]
    shown = [cells for place, (row, cells) in enumerate(rows) if is_shown(ranking, place, row)]
    hidden = [cells for place, (row, cells) in enumerate(rows) if not is_shown(ranking, place, row)]
    full = [] if record.full_precision is None else [_unquantized(record.full_precision, ranking)]
    return Table(
        title=ranking.title,
        columns=(
            "name",
            "setting",
            "perplexity",
            "above best [95 %]",
            "KL, nats",
            "flips, %",
            "bits per weight",
        ),
        rows=(*shown, *full),
        words=2,
        more=tuple(hidden),
        note=f"{len(hidden)} weaker trials are in trials.csv." if hidden else "",
    )


def is_shown(ranking: SizeClassRanking, place: int, row: Ranked) -> bool:
    """Tell whether a reader sees this row of a ranking at once: references, presets, the best trials."""
    measured = row.measured
    searched = isinstance(measured, TrialRecord) and not measured.origin.startswith("preset")
    return place < SHOWN_TRIALS or not searched or row is ranking.recommended


def _ranked(record: StudyRecord, ranking: SizeClassRanking, row: Ranked) -> tuple[str, ...]:
    twin = record.twin_of(row.measured) if isinstance(row.measured, TrialRecord) else None
    name = row.measured.name if twin is None else f"{row.measured.name}, with the weights of {twin.name}"
    name = f"{name} (recommended)" if row is ranking.recommended else name
    above = "best" if row is ranking.best else ranking.objective.change_text(row.difference)
    measures = (number(row.score.perplexity), above, kl_text(row.kl), flips_text(row.flips))
    return (name, setting_text(row.measured), *measures, number(row.measured.bits_per_weight))


def _unquantized(full: Measured, ranking: SizeClassRanking) -> tuple[str, ...]:
    exact, best = ranking.objective.of_full(full), ranking.objective.value(ranking.best.score)
    above = NOTHING if exact is None else ranking.objective.above_text(exact, best)
    return (FULL_PRECISION, "", number(full.perplexity), above, NOTHING, NOTHING, number(full.bits_per_weight))


def _cost(members: Sequence[Measured], phase_names: Sequence[str]) -> tuple[str, ...]:
    trials = [member for member in members if isinstance(member, TrialRecord)]
    tokens = f"{sum(trial.tokens for trial in trials):,}" if len(trials) == len(members) else NOTHING
    totals = [sum(member.seconds.get(phase, 0.0) for member in members) for phase in phase_names]
    return (f"{len(members)}", tokens, *(f"{seconds:,.1f}" for seconds in totals), f"{sum(totals):,.1f}")


def _saved(record: StudyRecord) -> str:
    ended = len(record.complete) + len(record.pruned)
    if not record.complete:
        return "What pruning saves is known when a trial is complete."
    return (
        f"Pruning saved {100 * record.tokens_saved:.1f} % of the tokens: "
        f"each of the {ended} complete and pruned trials would have read {record.full_tokens:,}."
    )


def _cache(record: StudyRecord) -> Iterator[str]:
    """Say what the cache of statistics spared: sizes are prefixes of each other, so only the largest is computed."""
    ended = [*record.references, *(trial for trial in record.trials if trial.state in ("COMPLETE", "PRUNED"))]
    read = [member.setting.n_calib for member in ended if member.setting and "n_calib" in member.setting.reads]
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
