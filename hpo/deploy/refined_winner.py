"""What a study recommends, refined, on text that had no part in choosing or refining it.

Responsible for the text of refining being there before a study begins, and for comparing the refined model with what it
was made of and with the references, by divergence. May assume a study that was confirmed.
"""

from collections.abc import Sequence
from dataclasses import replace

from hpo.deploy.refinement_trials import refine_best
from hpo.deploy.refining import Refining, stage_of, text_of, with_refining_text
from hpo.study.confirmation import ConfirmedComparison, RefinedConfirmation
from hpo.study.objective import KL
from hpo.study.record import FULL_PRECISION, TrialRecord
from hpo.verdict.confirmation import compare, confirmed_scores
from hpo.verdict.ranking import SIGNIFICANT
from hpo.verdict.recommendation import judge
from hpo.verdict.snapshot import Study
from hpo.workers.measuring import Planned, measure_all, measure_plan
from objectives.evaluation import BenchPlan, LaidOut, lay_out
from objectives.progress import Progress
from objectives.refinement.options import RefinementText
from objectives.refinement.refine import forgotten_where_codes_differ
from objectives.scoring import Score
from objectives.text.sequences import Sequences
from objectives.trial import Bench
from quant.plan import Plan
from storage.paths import Paths
from storage.results import ResultStore

SUFFIX = " refined"
JUDGEMENTS = {"confirmed": "confirmed as nearer to full precision", "worse": "confirmed as farther from it"}


def lay_out_to_refine(
    plan: BenchPlan, refining: Refining | None, paths: Paths, progress: Progress
) -> tuple[LaidOut, RefinementText | None]:
    """Lay out a study's bench, and what refining reads beside its text, of which that moves nothing.

    Raises:
        InputError: As `lay_out`; or if too little text is left, or the model's codes are to move and cannot.
    """
    if refining is None:
        return lay_out(plan, paths, progress), None
    laid_out = lay_out(with_refining_text(plan, refining), paths, progress)
    *data, training, validation = laid_out.data
    return replace(laid_out, data=data), text_of(laid_out.bench, training, validation, refining)


def confirm_refined(
    bench: Bench,
    store: ResultStore,
    study: Study,
    refining: Refining,
    text: RefinementText,
    held_out: list[Sequences],
    progress: Progress,
    planned: Planned = Plan.uniform,
) -> RefinedConfirmation:
    """Refine what a study recommends, and compare that on held-out text with what it was and with the references.

    Args:
        bench: Model, roles, calibration.
        store: Where results are kept.
        study: Confirmed, so that what it recommends is settled.
        refining: How.
        text: What refining reads.
        held_out: Text that nothing has seen but the confirmation of the recommended setting.
        progress: Told how far it is.
        planned: How a setting becomes a plan.
    """
    chosen, lead = study.recommendation, study.lead
    assert chosen is not None
    assert lead is not None
    setting = chosen.measured.setting
    assert setting is not None
    plan = planned(setting)
    refined = refine_best(stage_of(bench, plan, text, refining, store), progress)
    references = [row.measured for row in lead.rows if not isinstance(row.measured, TrialRecord)]
    plain = {measured.name: measured.setting for measured in (chosen.measured, *references)}
    settings = {name: other for name, other in plain.items() if name != FULL_PRECISION}
    results = measure_all(bench, store, list(settings.values()), held_out, progress, planned)
    with forgotten_where_codes_differ(store):
        results.append(measure_plan(replace(bench, refined=refined), store, plan, held_out, progress))
    name = f"{chosen.measured.name}{SUFFIX}"
    scores: dict[str, list[Score]] = {
        of: [result.score for result in on_texts if result.score is not None]
        for of, on_texts in zip([*settings, name], results, strict=True)
    }
    comparisons = compare([(name, rival) for rival in settings], scores, held_out, KL)
    own = [row for row in comparisons if row.against == chosen.measured.name]
    changes = ", ".join(f"{KL.interval_text(row.change)} on {row.dataset}" for row in own)
    return RefinedConfirmation(
        refined=chosen.measured.name,
        tuned=refined.refinement.sentence(),
        sentence=f"On held-out text {name} against {chosen.measured.name}: KL {changes}: {judgement(own)}.",
        rows=confirmed_scores(scores, held_out),
        comparisons=tuple(comparisons),
        kept_step=refined.refinement.kept_step,
        looks=refined.refinement.looks,
    )


def judgement(comparisons: Sequence[ConfirmedComparison]) -> str:
    """Say what held-out text shows of a refined model against what it was made of, a comparison for each text.

    Where texts disagree, or differ by less than counts as a win, it says so text by text.
    """
    outcome = judge(comparisons, KL)
    if outcome in JUDGEMENTS:
        return JUDGEMENTS[outcome]
    different = [
        f"{'nearer to' if row.change.value < 0 else 'farther from'} full precision on {row.dataset}"
        for row in comparisons
        if row.holm < SIGNIFICANT
    ]
    if not different:
        return "not confirmed as different"
    if len(different) < len(comparisons):
        different.append("not confirmed as different elsewhere")
    return ", ".join(different)
