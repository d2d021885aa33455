"""The words around a report's figures: title, how to read it, what it shows, or why it is left out.

Responsible for saying all of that in one sentence each. Knows what is drawn, not how.
"""

from hpo.report.caption import Caption, caption
from hpo.report.charts import ChartData
from hpo.report.damage import disagreements
from hpo.report.plan_captions import plan_captions

NO_TRIAL = "no trial is complete"


def captions(data: ChartData) -> list[Caption]:
    """Write one for every figure that a report can have, in its order."""
    writers = (_forest, _waterfall, _bits, _transfer, _refining, _damage, _importances, _surface, _slices, _parallel)
    last = (_history, _running, _remaining, _reduction, _alpha, _memory)
    of_plans = plan_captions(data.plans) if data.plans else []
    return [*(write(data) for write in writers), *of_plans, *(write(data) for write in last)]


def _best(data: ChartData) -> str:
    return f"the best is {data.best.name} at {data.objective.number(data.best.value)}" if data.best else NO_TRIAL


def _forest(data: ChartData) -> Caption:
    forests = data.verdict.forests
    reading = (
        "Every row is one setting against the best reference of its group size, on the same sequences, with its 95 % "
        "interval: left of the line is better, and an interval that crosses the line is no difference. Green is what "
        "is recommended; a row at the right edge lies beyond it."
    )
    alt = "; ".join(
        f"{forest.title} against {forest.baseline}: " + ", ".join(f"{row.name} {row.text}" for row in forest.rows[:6])
        for forest in forests
    )
    return caption("forest", "Who won", reading, f"{alt}.", None if forests else "nothing can be compared yet")


def _waterfall(data: ChartData) -> Caption:
    bars = data.verdict.waterfall
    reading = (
        "From nearest rounding at the top to what is recommended at the bottom, one ingredient at a time: a bar is "
        "what it adds to those above it on the tuning text, and its line the paired 95 % interval of that step. In "
        "another order the shares differ."
    )
    alt = ", ".join(f"{bar.name} {bar.text}" for bar in bars)
    why_not = None if bars else "nothing between nearest rounding and what is recommended is measured"
    return caption("waterfall", "What the winner is made of", reading, f"{alt}.", why_not)


def _bits(data: ChartData) -> Caption:
    costs = data.verdict.costs
    reading = (
        "The references and the best trial of every group size or budget, with 95 % intervals: lower is better, "
        "further left is smaller. Only points above each other cost the same; the dashed line is full precision."
    )
    alt = ", ".join(f"{cost.name} {data.objective.number(cost.value)} at {cost.bits:.3f} bits" for cost in costs)
    title = f"{data.objective.title} against bits"
    return caption("bits", title, reading, f"{alt}.", None if costs else "nothing is measured yet")


def _transfer(data: ChartData) -> Caption:
    transfer = data.verdict.transfer
    reading, alt = "", ""
    if transfer is not None:
        named = ", ".join(f"{purpose}: {name}" for purpose, name in transfer.texts)
        reading = (
            f"{data.objective.title} above full precision ({named}): a setting that only fits the text that was tuned "
            "on rises from left to right more than the others do."
        )
        alt = "; ".join(
            f"{name}: "
            + ", ".join("not measured" if value is None else data.objective.short_change(value) for value in values)
            for name, values in transfer.rows
        )
        alt = f"{named}. {alt}."
    why_not = None if transfer is not None else "nothing was confirmed on other text yet"
    return caption("elsewhere", "On other text", reading, alt, why_not)


def _refining(data: ChartData) -> Caption:
    refining = data.verdict.refining
    reading = (
        "KL from full precision on the text that was held back from refining, by steps of the optimizer: the ring is "
        "the step that was kept, the dashed line where it began. No text in the rankings is this text."
    )
    alt = "" if refining is None else ", ".join(f"{look.kl:.4f} after {look.step} steps" for look in refining.looks)
    why_not = None if refining is not None else "nothing was refined (--refine)"
    return caption("refining", "How refining went", reading, f"{alt}.", why_not)


def _damage(data: ChartData) -> Caption:
    all_damages = data.verdict.damages
    apart, pairs = disagreements(all_damages)
    reading = (
        "What each setting costs by two measures, in nats per token with 95 % intervals: further right diverges more "
        "from full precision, higher loses more on this text; on the dashed line both are equal. Squares are "
        "references, circles trials. Of two settings whose line falls the measures disagree: here in "
        f"{apart} of {pairs} pairs at equal bits."
    )
    alt = "; ".join(damage.text for damage in all_damages[:6])
    why_not = None if all_damages else "no divergence was measured"
    return caption("damage", "Where KL and perplexity disagree", reading, f"{alt}.", why_not)


def _memory(data: ChartData) -> Caption:
    models = data.verdict.memory
    reading = (
        "Codes are 4 bits a weight; scales and zero points are what a smaller group adds; embeddings, head and norms "
        "stay as they are."
    )
    alt = ", ".join(f"{model.name} {model.total / 1e6:.1f} MB" for model in models)
    return caption("memory", "Where the bits go", reading, f"{alt}.", None if models else "no size is known yet")


def _remaining(data: ChartData) -> Caption:
    reading = (
        "Each Linear's share of the loss that the best trial leaves, so where more bits would help most; outputs grow "
        "with depth, and so does a loss that is no worse."
    )
    layer_map, reason = data.layers.remaining, data.layers.reason
    alt = (
        f"up to {max(layer_map.numbers):.1f} % in one Linear of {len(layer_map.numbers)}."
        if layer_map and layer_map.numbers
        else ""
    )
    if layer_map is None and reason is None:
        reason = "nothing is lost"
    return caption("remaining", "Where the model is hurt", reading, alt, reason)


def _history(data: ChartData) -> Caption:
    counts = f"{len(data.measured)} complete, {len(data.estimated)} pruned and {len(data.failed)} failed trials"
    why_not = None if data.measured or data.estimated else "no trial has a value yet"
    reading = (
        f"The line is the best {data.objective.label} so far, lower is better; a pruned trial stands at its estimate "
        "with its 95 % interval, an outlier at the upper edge; a cross at the lower edge is a failed trial, and the "
        "dashed line is the best reference."
    )
    return caption("history", "History", reading, f"{counts} by number; {_best(data)}.", why_not)


def _importances(data: ChartData) -> Caption:
    drawn = [shares for shares in data.importances.scopes if shares.reason is None]
    reasons = [shares.reason for shares in data.importances.scopes if shares.reason is not None]
    warnings = [f"{shares.scope.capitalize()}: {shares.warning}" for shares in drawn if shares.warning is not None]
    reading = (
        "A longer bar explains more of the outcome, and its line is a 90 % interval over resampled trials: PED-ANOVA "
        "asks what tells the best trials from all, fANOVA which hyperparameter the variance comes from "
        f"({data.objective.label} in nats)."
    )
    reading = " ".join([reading, *warnings, *reasons])
    alt = "; ".join(
        f"{shares.scope}: " + ", ".join(f"{name} {share.percent(0)}" for name, share in shares.mean.items())
        for shares in drawn
    )
    why_not = None if drawn else " ".join(reasons).removesuffix(".")
    return caption("importances", "What mattered", reading, f"{alt}.", why_not)


def _surface(data: ChartData) -> Caption:
    title = "β and τ"
    if data.surface is None:
        return caption("beta-tau", title, "", "", "β and τ do not both vary")
    points, size_class = data.surface.points, data.surface.size_class
    reading = (
        f"Every point is a complete trial at {size_class}, darker is lower {data.objective.label}; the colours between "
        "them are a smoothed mean, and the scale ends where outliers begin"
    )
    reading += "." if data.surface.z else ", drawn when there are more trials."
    alt = f"{data.objective.label} of {len(points)} complete trials at {size_class} over β and τ."
    return caption("beta-tau", title, reading, alt, None if points else NO_TRIAL)


def _slices(data: ChartData) -> Caption:
    sizes = " Colours and symbols tell group sizes or kept rows apart." if len(data.size_classes) > 1 else ""
    reading = (
        "One panel per hyperparameter: filled points are complete trials, grey ones pruned estimates, and outliers "
        f"stand at the upper edge.{sizes}"
    )
    trials = f"{len(data.measured)} complete trials"
    alt = f"{data.objective.label} of {trials} against each of {len(data.axes)} hyperparameters."
    return caption("slices", "Slices", reading, alt, _why_no_trials(data, 1))


def _running(data: ChartData) -> Caption:
    reading = (
        f"{data.objective.title} of the first sequences, as percent above the lowest of all trials after as many "
        "sequences; a dashed line ends where its trial was pruned, and lines far above the others leave the figure."
    )
    counts = {kind: sum(line.kind == kind for line in data.running) for kind in ("complete", "pruned", "best")}
    alt = f"{counts['complete'] + counts['best']} complete and {counts['pruned']} pruned trials by sequences read."
    why_not = None if data.running else "no trial has reported a running value"
    return caption("running", f"Running {data.objective.label}", reading, alt, why_not)


def _parallel(data: ChartData) -> Caption:
    reading = (
        f"Every line is a complete trial that crosses each axis at its value, the last axis is {data.objective.label}; "
        "blue lines are better than orange ones."
    )
    names = ", ".join(axis.name for axis in data.axes)
    alt = f"{len(data.measured)} complete trials across {names} and {data.objective.label}; {_best(data)}."
    return caption("parallel", "Parallel coordinates", reading, alt, _why_no_trials(data, 2))


def _alpha(data: ChartData) -> Caption:
    reading = (
        "For every Linear of the best trial the exponent α that was chosen: 0 leaves the inputs unscaled, 1 scales by "
        "the whole salience."
    )
    layer_map = data.layers.alpha
    alt = (
        f"from {min(layer_map.numbers):.2f} to {max(layer_map.numbers):.2f} over {len(layer_map.depths)} blocks."
        if layer_map
        else ""
    )
    return caption("alpha", "Alpha by depth and role", reading, alt, data.layers.reason)


def _reduction(data: ChartData) -> Caption:
    reading = (
        "For every Linear of the best trial the percent of nearest rounding's loss that its input scale avoids; where "
        "several share a scale, one of them may lose."
    )
    layer_map = data.layers.reduction
    alt, reason = "", data.layers.reason
    if layer_map is not None and layer_map.numbers:
        alt = (
            f"from {min(layer_map.numbers):.0f} to {max(layer_map.numbers):.0f} % over {len(layer_map.depths)} blocks."
        )
    elif reason is None:
        reason = "nearest rounding loses nothing"
    return caption("loss", "What the scale search avoids", reading, alt, reason)


def _why_no_trials(data: ChartData, fewest_axes: int) -> str | None:
    if len(data.axes) < fewest_axes:
        return "no hyperparameter varies" if not data.axes else f"only {data.axes[0].name} varies"
    return None if data.measured else NO_TRIAL
