"""Decide whether a directory holds what was measured, by what a fresh process has loaded and scored.

Responsible for three comparisons, each with an error that says by how much it fails: all tensors are equal to the last
bit, the codes of the quantized Linears among them; the perplexity is the one that was measured; and it is that of the
same codes with every folded scale undone. May assume that the bench was laid out for the model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from objectives.errors import RunError
from objectives.export.digests import differing, measured_digests
from objectives.export.formats import Proof, RoundedParts
from objectives.export.limits import quantized_linears
from objectives.export.manifest import ProvenScore
from objectives.export.rescoring import Reloaded
from objectives.model.loading import Model
from objectives.paired import paired_difference
from objectives.progress import Progress
from objectives.refined import owners
from objectives.scoring import Score, score_all
from objectives.text.sequences import Sequences
from objectives.trial import Bench, Quantized
from quant.plan import Plan
from quant.scheme import loaded

MOST_APART = 1e-3
"""Of the perplexity that was measured: what a written model may score differently whatever computes it."""
MOST_APART_UNFOLDED = 5e-3
"""Of the perplexity without folded scales, which a 16-bit type computes with other roundings; runtimes add theirs."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a directory has to hold and to score.

    Attributes:
        digests: Of every tensor, by name.
        perplexity: On the text of the proof.
        score: The same by sequence; None where it was not kept.
        notes: What that differs from what a trial measured.
    """

    digests: Mapping[str, str]
    perplexity: float
    score: Score | None
    notes: tuple[str, ...] = ()


def expected_of(
    rounded: RoundedParts | None, measured: Expected, model: Model, proof: Proof, progress: Progress
) -> Expected:
    """Return what a directory of a format has to hold: what was measured, with what the format rounds rounded."""
    if rounded is None:
        return measured
    with rounded.in_place:
        digests = measured_digests(model)
        if not rounded.scored:
            return Expected(digests=digests, perplexity=measured.perplexity, score=measured.score)
        phase = f"scoring with rounded {rounded.parts} on {proof.text.source}"
        score = score_all(model.module, proof.text, phase, progress)
    note = (
        f"{rounded.parts} are rounded, which no trial measured: perplexity {score.perplexity:.4f}, and "
        f"{measured.perplexity:.4f} with them as they were ({score.perplexity / measured.perplexity - 1:+.3%})"
    )
    return Expected(digests=digests, perplexity=score.perplexity, score=score, notes=(note,))


def measured_now(model: Model, proof: Proof, progress: Progress) -> Expected:
    """Return what the model, whose weights are quantized at the moment, holds and scores."""
    digests = measured_digests(model)
    if proof.perplexity is not None:
        return Expected(digests=digests, perplexity=proof.perplexity, score=proof.score)
    score = score_all(model.module, proof.text, f"scoring on {proof.text.source}", progress)
    return Expected(digests=digests, perplexity=score.perplexity, score=score)


def proven_score(
    name: str, reloaded: Reloaded, expected: Expected, unfolded: float, proof: Proof, linears: int, reader: str
) -> ProvenScore:
    """Return what a directory is proven by.

    Args:
        name: Of the format.
        reloaded: What a fresh process had to say of it.
        expected: What it has to hold and to score.
        unfolded: What its weights score with every folded scale undone.
        proof: The text.
        linears: How many are quantized.
        reader: What loaded it.

    Raises:
        RunError: If it holds or scores something else.
    """
    _require_equal_tensors(name, reloaded, expected)
    noise = _noise(reloaded.score, expected.score)
    perplexity = reloaded.score.perplexity
    _require_equal_score(name, perplexity, expected.perplexity, noise)
    _require_folds(name, perplexity, unfolded)
    return ProvenScore(
        source=proof.text.source,
        sequences=len(proof.text),
        measured=expected.perplexity,
        unfolded=unfolded,
        packed=perplexity,
        reader=reader,
        tensors=len(expected.digests),
        linears=linears,
        noise=noise,
    )


@torch.inference_mode()
def unfolded_perplexity(bench: Bench, plan: Plan, result: Quantized, text: Sequences, progress: Progress) -> float:
    """Score the quantized weights with every scale undone, in a model whose norms and biases were never touched.

    What folding broke is broken in the trial and in the directory alike, and here it is not.
    """
    linears, module = quantized_linears(bench.blocks, plan), bench.model.module
    weights, left = bench.model.weights, dict(result.unfolded_vectors)
    with weights.restored([*(linear.module for linear in linears), *owners(module, list(left))]):
        for block in bench.blocks:
            with weights.changing(block.name):
                for name in [name for name in left if name.startswith(f"{block.name}.")]:
                    module.get_parameter(name).copy_(left.pop(name))
                for linear in quantized_linears([block], plan):
                    weight = loaded(result.codes[linear.name]).to(bench.model.device)
                    linear.set_weight(result.folded[linear.name].undone(weight))
        for name, vector in left.items():
            module.get_parameter(name).copy_(vector)
        phase = f"scoring without folded scales on {text.source}"
        return score_all(bench.model.module, text, phase, progress).perplexity


def noise_notes(proof: ProvenScore) -> tuple[str, ...]:
    """Say that a perplexity is apart by more than the same arithmetic would give, where it is."""
    apart = _apart(proof.packed, proof.measured, MOST_APART)
    if apart is None or proof.noise is None:
        return ()
    return (
        f"{proof.reader} computes a perplexity that is {apart:+.2%} from what was measured, by the same codes; that is "
        f"within the scatter of its roundings, {proof.noise:.2%}",
    )


def _require_equal_tensors(name: str, reloaded: Reloaded, expected: Expected) -> None:
    wrong = differing(expected.digests, reloaded.digests)
    if wrong:
        raise RunError(
            f"{len(wrong)} of {len(expected.digests)} tensors that a fresh process has loaded of the {name} model are "
            f"not those that were measured (first: {wrong[0].removesuffix('.weight')}); nothing was written"
        )


def _noise(score: Score, expected: Score | None) -> float | None:
    """Return half of the 95 % interval of what a sequence's loss differs, as a share of perplexity; None if unknown."""
    if expected is None:
        return None
    difference = paired_difference(score, expected)
    half = (difference.high - difference.low) / 2
    return math.expm1(half) if math.isfinite(half) else None


def _require_equal_score(name: str, perplexity: float, expected: float, noise: float | None) -> None:
    most = max(MOST_APART, noise or 0.0)
    apart = _apart(perplexity, expected, most)
    if apart is not None:
        raise RunError(
            f"the {name} model has a perplexity of {perplexity:.4f} in a fresh process and {expected:.4f} was measured "
            f"({apart:+.2%}, at most {most:.2%} is allowed); nothing was written"
        )


def _require_folds(name: str, perplexity: float, unfolded: float) -> None:
    apart = _apart(perplexity, unfolded, MOST_APART_UNFOLDED)
    if apart is not None:
        raise RunError(
            f"the {name} model has a perplexity of {perplexity:.4f}, and its weights without the folded scales "
            f"{unfolded:.4f} ({apart:+.2%}, at most {MOST_APART_UNFOLDED:.1%} is allowed): a scale was folded through "
            "what changes it; nothing was written; use --format dense --scales linear"
        )


def _apart(perplexity: float, expected: float, most: float) -> float | None:
    """Return by which share perplexities are apart; None where that is at most `most`, which NaN never is."""
    apart = perplexity / expected - 1
    return None if abs(apart) <= most else apart
