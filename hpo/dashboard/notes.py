"""The notes on a study's page and on its trials', in Markdown.

Responsible for what they say: what is tuned and what the numbers mean in words, references, the best so far with its
interval, how to attach a worker; of a trial how it went and where it hurts. May assume a study of ours.
"""

from collections.abc import Iterator, Mapping, Sequence

from hpo.deploy.reproduce import repeat_command
from hpo.report.axes import label_of
from hpo.report.glance import confirmed_text
from hpo.report.page import NO_VERDICT, code_lines, escaped, table_lines
from hpo.report.tables import Table
from hpo.report.verdict_data import find_row
from hpo.space.dimension import Dimension
from hpo.space.space import Space
from hpo.study.contract import Contract, SequencesContract, TextContract
from hpo.study.objective import PERPLEXITY, Objective
from hpo.study.record import Measured, TrialRecord
from hpo.verdict.ranking import SizeClassRanking
from hpo.verdict.snapshot import Study
from hpo.verdict.words import NOTHING, number, setting_text, short_source
from objectives.quantized_blocks import LayerResult

WORST = 5
IMPORTANCES = (
    "The graph *What mattered* and optuna-dashboard's own *Hyperparameter Importance* may order parameters otherwise. "
    "Ours compares at equal bits and counts pruned trials with their estimates, with intervals; the dashboard's takes "
    "complete trials of all sizes together. To choose between settings of one size, read ours."
)


def study_note(study: Study, address: str, links: Mapping[str, str], problems: Sequence[str]) -> str:
    """Write the note of a study.

    Args:
        study: The study.
        address: Of its storage, without a password.
        links: Where its files are served, by their names.
        problems: What could not be drawn or read, a line each.
    """
    return "\n\n".join(_study_lines(study, address, links, problems))


def trial_note(
    trial: TrialRecord, ranking: SizeClassRanking | None, layers: Sequence[LayerResult], full: Measured | None
) -> str:
    """Write the note of a trial.

    Args:
        trial: The trial.
        ranking: The ranking that it stands in; None where it stands in none.
        layers: What the search chose in each Linear; empty where it is not known.
        full: Full precision; None before it is measured.
    """
    return "\n\n".join(_trial_lines(trial, ranking, layers, full))


def study_facts(study: Study) -> dict[str, str]:
    """Collect a few attributes that can be read at a glance in the list of studies."""
    record, chosen = study.record, study.recommendation
    contract = record.contract
    facts = {
        "what is quantized": contract.model.name,
        "tuned on": _text(contract.tuning),
        "calibrated on": _text(contract.calibration),
        "verdict": chosen.verdict if chosen else NO_VERDICT,
        "recommended": chosen.sentence() if chosen else "",
        "on other text": confirmed_text(study) if record.confirmation else "",
    }
    return {name: value for name, value in facts.items() if value}


def _study_lines(study: Study, address: str, links: Mapping[str, str], problems: Sequence[str]) -> Iterator[str]:
    record, chosen = study.record, study.recommendation
    yield f"## {escaped(chosen.verdict if chosen else NO_VERDICT)}"
    if chosen:
        yield escaped(chosen.sentence())
        yield escaped(confirmed_text(study))
    if links:
        yield " · ".join(f"[{name}]({link})" for name, link in links.items())
    for problem in problems:
        yield f"**Left out:** {escaped(problem)}"
    yield "### Best so far"
    yield from table_lines(_best(study.rankings, record.objective))
    yield "### References"
    yield from table_lines(_references(record.references, record.objective))
    yield "### What is tuned"
    yield "\n".join(f"- {escaped(line)}" for line in _space(record.contract.space))
    yield "### What the numbers mean"
    yield "\n".join(f"- {escaped(line)}" for line in _meaning(record.contract, record.objective))
    yield "### Two importances"
    yield IMPORTANCES
    yield "### Attach a worker"
    yield "On any machine that reaches the storage and has the model and the text (`--trials N` raises the budget):"
    yield code_lines(repeat_command(record, None, address))


def _best(rankings: Sequence[SizeClassRanking], objective: Objective) -> Table:
    rows = []
    for ranking in rankings:
        trial, reference = ranking.best_trial, ranking.best_reference
        if trial is None:
            continue
        against = objective.change_text(trial.against) if trial.against else NOTHING
        name = reference.measured.name if reference else NOTHING
        rows.append(
            (
                str(ranking.size_class),
                trial.measured.name,
                setting_text(trial.measured),
                number(objective.value(trial.score), objective.digits),
                f"{against} against {name}",
                number(trial.measured.bits_per_weight),
            )
        )
    columns = ("at equal bits", "trial", "setting", objective.column, "difference [95 %]", "bits per weight")
    note = "" if rows else "No trial is complete yet."
    return Table(title="Best trial at equal bits", columns=columns, rows=tuple(rows), words=3, note=note)


def _references(references: Sequence[Measured], objective: Objective) -> Table:
    rows = tuple(
        (
            reference.name,
            NOTHING if reference.group_size is None else str(reference.group_size),
            number(objective.of(reference), objective.digits),
            number(reference.bits_per_weight),
        )
        for reference in references
    )
    columns = ("name", "group size", objective.column, "bits per weight")
    note = "" if rows else "They are not measured yet."
    return Table(title="Measured beside the trials", columns=columns, rows=rows, note=note)


def _space(space: Space) -> Iterator[str]:
    for name, part in space.parts.items():
        yield f"{label_of(name)}: {part}" + ("" if isinstance(part, Dimension) else ", fixed")


def _meaning(contract: Contract, objective: Objective) -> Iterator[str]:
    model = contract.model
    commit = f" at commit {model.commit}" if model.commit else ""
    yield f"Model {model.name}{commit}, run in {model.dtype}."
    yield f"The value of a trial is its {objective.meaning} on {_text(contract.tuning)}; lower is better."
    through = ", every token sent through every expert" if contract.calibration.route_all else ""
    yield f"Statistics come from up to {_text(contract.calibration)}, of other documents{through}."
    if contract.confirmation:
        yield f"The winner is confirmed on {_text(contract.confirmation)} that had no part in choosing it."
    if contract.second_confirmation:
        yield f"And on {_text(contract.second_confirmation)}."
    yield f"Seed {contract.seed}; only settings of equal group size are compared."


def _text(text: SequencesContract) -> str:
    source = short_source(text.source)
    if isinstance(text, TextContract):
        return f"{text.sequences} sequences of {text.seq_len} tokens from {source} ({text.protocol})"
    return f"{text.sequences} sequences from {source}"


def _trial_lines(
    trial: TrialRecord, ranking: SizeClassRanking | None, layers: Sequence[LayerResult], full: Measured | None
) -> Iterator[str]:
    if trial.setting is not None:
        setting = trial.setting
        kind = "symmetric" if setting.symmetric else "asymmetric"
        text = f"{setting_text(trial)}, {trial.size_class}, {kind}, {setting.scales}"
        yield f"**{escaped(text)}** (from: {escaped(trial.origin)})"
    rows = tuple((name, value) for name, value in _trial_rows(trial, ranking, full) if value)
    yield from table_lines(Table(title=f"Trial {trial.number}", columns=("what", "value"), rows=rows, words=2))
    if trial.reason:
        yield f"**Why it failed:** {escaped(trial.reason.strip().splitlines()[-1])}"
    yield from table_lines(_worst(layers))


def _trial_rows(
    trial: TrialRecord, ranking: SizeClassRanking | None, full: Measured | None
) -> Iterator[tuple[str, str]]:
    objective = trial.objective
    yield "outcome", trial.outcome or trial.state.lower()
    yield "perplexity", number(trial.perplexity) if trial.perplexity is not None else ""
    if trial.estimate:
        value, low, high = map(objective.number, (trial.estimate.value, trial.estimate.low, trial.estimate.high))
        yield f"estimated {objective.label}", f"{value} [{low}, {high}]"
    row = find_row(ranking, trial.name) if ranking else None
    if row is not None and row.against is not None and ranking is not None and ranking.best_reference is not None:
        yield f"against {ranking.best_reference.measured.name}", objective.change_text(row.against)
    if full is not None and full.perplexity and trial.perplexity:
        yield "above full precision", PERPLEXITY.above_text(trial.perplexity, full.perplexity)
    yield "KL from full precision, nats per token", number(trial.kl, 4) if trial.kl is not None else ""
    yield "flips", f"{trial.flips:.1f} % of tokens" if trial.flips is not None else ""
    yield "bits per weight", number(trial.bits_per_weight) if trial.bits_per_weight else ""
    yield "size", f"{trial.model_bytes / 1e6:,.1f} MB" if trial.model_bytes else ""
    yield "sequences read", str(max(trial.running, default=0) or "")
    yield "tokens scored", f"{trial.tokens:,}" if trial.tokens else ""
    yield "seconds", ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in trial.seconds.items())
    yield "worker", f"host {trial.owner.host}, pid {trial.owner.pid}" if trial.owner else ""


def _worst(layers: Sequence[LayerResult]) -> Table:
    total = sum(layer.final_loss for layer in layers)
    worst = sorted(layers, key=lambda layer: -layer.final_loss)[:WORST] if total > 0 else []
    rows = tuple(
        (
            layer.name,
            f"{100 * layer.final_loss / total:.1f} %",
            f"{layer.alpha:.2f}",
            f"{100 * layer.final_loss / layer.nearest_loss:.1f} %" if layer.nearest_loss > 0 else NOTHING,
        )
        for layer in worst
    )
    columns = ("layer", "share of the loss", "alpha", "of nearest rounding's loss")
    return Table(title="Where it hurts most", columns=columns, rows=rows)
