"""The paired pruner: rarely wrong, soon right, exact at the end."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from hpo.search.incumbent import (
    Incumbent,
    VariancePrior,
    estimate,
    fit_variance_prior,
    make_incumbent,
    moderated_paired_difference,
)
from hpo.search.pruners.paired import is_hopeless
from hpo.search.pruners.registry import PRUNERS, Pruning
from hpo.study.objective import PERPLEXITY
from objectives.errors import InputError
from objectives.scoring import Score, look_sizes
from tests.hpo.made_studies import score

COUNT = 64
STRICT = Pruning(error=0.02)


def prefix(full: Score, count: int) -> Score:
    return full.first(count)


def texts(seed: int, shift: float, noise: float = 0.02) -> tuple[Score, Score]:
    """An incumbent, and a trial that is `shift` nats worse on the whole text, exactly."""
    generator = torch.Generator().manual_seed(seed)
    incumbent = 3 + 0.5 * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    moves = noise * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    return score(incumbent + moves - moves.mean() + shift), score(incumbent)


def against(score: Score) -> Incumbent:
    return Incumbent(number=0, score=score)


def looks(full: Score) -> list[Score]:
    return [prefix(full, count) for count in look_sizes(COUNT)[:-1]]


def test_a_trial_as_good_as_the_incumbent_is_rarely_given_up() -> None:
    """Over all looks together less often than the error that is allowed, and clearly better ones never."""
    wrong = better = 0
    for seed in range(600):
        trial, incumbent = texts(seed, shift=0.0)
        wrong += any(is_hopeless(look, against(incumbent), STRICT) for look in looks(trial))
        trial, incumbent = texts(seed, shift=-0.01)
        better += any(is_hopeless(look, against(incumbent), STRICT) for look in looks(trial))
    assert wrong / 600 < 0.03
    assert better == 0


def test_a_trial_that_is_clearly_worse_is_given_up_at_the_first_look() -> None:
    """Five standard deviations of a sequence behind: eight sequences are enough."""
    pairs = [texts(seed, 0.1) for seed in range(50)]
    assert all(is_hopeless(looks(trial)[0], against(incumbent), STRICT) for trial, incumbent in pairs)


def test_what_cannot_win_any_more_is_given_up_for_certain() -> None:
    """No NLL is negative: a trial that lost more than the incumbent in all is beaten, even where errors are unknown."""
    incumbent = score([1.0] * 8)
    assert is_hopeless(score([9.0]), against(incumbent), Pruning())
    assert not is_hopeless(score([7.0]), against(incumbent), Pruning())


def test_the_error_vanishes_as_the_text_is_read() -> None:
    """The difference on all text decides: nothing is uncertain once all is read."""
    trial, incumbent = texts(0, shift=0.01)
    errors = [
        moderated_paired_difference(prefix(trial, count), against(incumbent)).standard_error for count in (8, 32, COUNT)
    ]
    assert errors[0] > errors[1] > errors[2] == 0
    assert moderated_paired_difference(trial, against(incumbent)).value == pytest.approx(0.01)


def test_sequences_of_one_document_count_as_one() -> None:
    """Repeated text is no further evidence."""
    trial, incumbent = texts(1, shift=0.05)
    alone = moderated_paired_difference(prefix(trial, 16), against(incumbent))
    documents = torch.arange(COUNT) // 8
    trial, incumbent = replace(trial, clusters=documents), replace(incumbent, clusters=documents)
    clustered = moderated_paired_difference(prefix(trial, 16), against(incumbent))
    assert clustered.degrees == 1
    assert alone.degrees == 15
    assert math.isfinite(clustered.standard_error)


def test_an_estimate_is_far_closer_than_the_running_mean() -> None:
    """Easy first text misleads the running mean, not the paired estimate; its interval covers the truth."""
    covered, estimated, running = 0, 0.0, 0.0
    for seed in range(200):
        trial, full = texts(seed, shift=0.05)
        found = estimate(prefix(trial, 16), Incumbent(number=0, score=full))
        covered += found.low <= trial.perplexity <= found.high
        estimated += abs(found.value - trial.perplexity)
        running += abs(prefix(trial, 16).perplexity - trial.perplexity)
    assert 0.90 <= covered / 200 <= 0.99
    assert estimated < running / 10


def test_an_estimate_keeps_the_error_that_its_interval_comes_from() -> None:
    """Student's t of the stored degrees of freedom; unbounded, and as good as unknown, where there is one document."""
    trial, full = texts(4, shift=0.05)
    found = estimate(prefix(trial, 16), against(full))
    difference = moderated_paired_difference(prefix(trial, 16), against(full))
    assert (found.standard_error, found.degrees) == (difference.standard_error, difference.degrees)
    half_width = stats.t.ppf(0.975, difference.degrees) * difference.standard_error
    assert math.log(found.high / found.value) == pytest.approx(half_width)
    assert math.log(found.value / found.low) == pytest.approx(half_width)
    assert found.variance == pytest.approx((half_width / stats.norm.ppf(0.975)) ** 2, rel=1e-4)
    alone = estimate(score([3.0]), against(score([2.9, 3.1])))
    assert (alone.standard_error, alone.low, alone.variance) == (None, 0.0, 1.0)
    assert alone.high > 1e300


def test_an_estimate_of_all_text_is_exact() -> None:
    """Nothing is left to guess."""
    trial, full = texts(3, shift=0.02)
    found = estimate(trial, Incumbent(number=4, score=full))
    assert found.value == pytest.approx(trial.perplexity)
    assert found.low == pytest.approx(found.high)
    assert found.against == 4


def test_optuna_is_told_running_perplexities_and_for_wilcoxon_every_sequence() -> None:
    """At most one point per look; Optuna's Wilcoxon pruner compares sequence by sequence."""
    look = score([1.0, 2.0])
    assert PRUNERS["median"].reports(look, 64, PERPLEXITY) == {2: pytest.approx(math.exp(1.5))}
    assert PRUNERS["wilcoxon"].reports(look, 32, PERPLEXITY) == {
        1: pytest.approx(math.e),
        2: pytest.approx(math.exp(2)),
    }


def test_long_texts_are_reported_in_at_most_32_pieces() -> None:
    """Each under the sequences that were read then; all but the last are whole; later looks add to earlier ones."""
    full = score([float(value) for value in range(70)])
    pieces = PRUNERS["wilcoxon"].reports(full, 70, PERPLEXITY)
    assert len(pieces) == 24
    assert pieces[3] == pytest.approx(math.exp(1))
    assert pieces[70] == pytest.approx(math.exp(69))
    assert PRUNERS["wilcoxon"].reports(full.first(8), 70, PERPLEXITY) == {3: pieces[3], 6: pieces[6]}


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_can_be_made_for_short_and_long_texts(name: str) -> None:
    """Also where there is only one look."""
    for count in (4, 8, 64):
        assert PRUNERS[name].in_optuna(Pruning(name=name), count) is not None


def test_a_smaller_error_gives_up_less() -> None:
    """Trials a little behind: the more certain the pruner has to be, the fewer it gives up."""
    pairs = [texts(seed, 0.01) for seed in range(100)]
    gone = [
        sum(is_hopeless(looks(trial)[1], against(incumbent), Pruning(error=error)) for trial, incumbent in pairs)
        for error in (0.2, 0.02, 0.002)
    ]
    assert gone[0] > gone[1] > gone[2] > 0


def test_looks_double_from_the_first_on() -> None:
    """Up to all that is read."""
    assert Pruning(first_look=4).looks(20) == [4, 8, 16, 20]
    assert Pruning().looks(16) == [8, 16]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"error": 0.0}, "--prune-error 0"), ({"error": 0.5}, "--prune-error 0.5"), ({"first_look": 1}, "--first-look 1")],
)
def test_a_pruner_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    """One line with what was given."""
    with pytest.raises(InputError, match=message):
        Pruning(**fields)


def compared(count: int, noise: float = 0.02) -> tuple[list[Score], Score]:
    """An incumbent, and others that differ from it as `texts` do."""
    generator = torch.Generator().manual_seed(99)
    incumbent = 3 + 0.5 * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    moves = noise * torch.randn(count, COUNT, generator=generator, dtype=torch.float64)
    return [score(incumbent + move) for move in moves], score(incumbent)


def prior_of(others: list[Score], incumbent: Score) -> VariancePrior | None:
    differences = [PERPLEXITY.difference(other, incumbent) for other in others]
    return fit_variance_prior(differences, float(incumbent.tokens.sum()))


def test_the_prior_variance_is_that_of_the_others() -> None:
    """The variance per token they were made with; as many degrees as it may have where all scatter alike."""
    prior = prior_of(*compared(10))
    assert prior is not None
    # A move is one of the mean of a sequence's ten tokens.
    assert prior.variance == pytest.approx(10 * 0.02**2, rel=0.15)
    assert prior.degrees > 20


def test_others_that_scatter_unlike_each_other_say_less() -> None:
    """Few degrees of freedom; of fewer than three nothing is said, and equal scores say nothing."""
    others, incumbent = compared(3)
    wild, _ = compared(6, noise=0.5)
    calm, _ = compared(6, noise=0.01)
    mixed = prior_of([*wild, *calm], incumbent)
    assert mixed is not None
    assert mixed.degrees < 3
    assert prior_of(others[:2], incumbent) is None
    assert prior_of([incumbent] * 5, incumbent) is None


def test_a_prior_gives_up_sooner_and_no_more_often_wrongly() -> None:
    """Eight sequences know their scatter badly; what others showed makes up for it."""
    prior = prior_of(*compared(10))

    def share(shift: float, prior: VariancePrior | None, first: bool) -> float:
        pairs = [texts(seed, shift) for seed in range(300)]
        gone = [
            any(
                is_hopeless(look, Incumbent(number=0, score=incumbent, prior=prior), STRICT)
                for look in (looks(trial)[:1] if first else looks(trial))
            )
            for trial, incumbent in pairs
        ]
        return sum(gone) / len(gone)

    assert share(0.02, prior, first=True) > share(0.02, None, first=True) + 0.1
    assert share(0.0, prior, first=False) < 0.03


def test_others_that_scatter_almost_alike_are_no_special_case() -> None:
    """The excess of scatter may be as small as it likes."""
    others, incumbent = compared(3)
    for count in range(3, 40):
        found = prior_of((others * 20)[:count], incumbent)
        assert found is not None
        assert 0 < found.degrees <= 50


def alike(seed: int, count: int, noise: float = 0.02) -> list[Score]:
    """Settings that are as good as each other on the whole text, each with a scatter of its own."""
    generator = torch.Generator().manual_seed(seed)
    common = 3 + 0.5 * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    moves = noise * torch.randn(count, COUNT, generator=generator, dtype=torch.float64)
    return [score(common + move - move.mean()) for move in moves]


def errors_at_8(others: int, seeds: int = 200) -> tuple[float, float]:
    """The mean square of a difference's error after eight sequences, and what its standard error says that it is."""
    squares, said = 0.0, 0.0
    for seed in range(seeds):
        trial, incumbent, *known = alike(seed, 2 + others)
        found = moderated_paired_difference(prefix(trial, 8), make_incumbent(0, incumbent, known))
        squares, said = squares + found.value**2 / seeds, said + found.standard_error**2 / seeds
    return squares, said


def test_what_the_incumbent_happened_to_do_well_is_averaged_out() -> None:
    """Half of a difference's variance is the incumbent's own: beside eight others a tenth of it is left."""
    alone, beside_eight = errors_at_8(0), errors_at_8(8)
    assert beside_eight[0] / alone[0] == pytest.approx(0.5 * (1 + 1 / 9), rel=0.2)
    assert beside_eight[1] / beside_eight[0] == pytest.approx(1, rel=0.2)


@pytest.mark.slow
def test_more_is_given_up_beside_others_and_no_more_often_wrongly() -> None:
    """Of trials a standard deviation of a sequence behind, and of those that are as good."""

    def share(shift: float, others: int) -> float:
        gone = 0
        for seed in range(300):
            trial, incumbent, *known = alike(seed, 2 + others)
            behind = replace(trial, nll=trial.nll + shift * trial.tokens)
            made = make_incumbent(0, incumbent, known)
            gone += any(is_hopeless(look, made, STRICT) for look in looks(behind)[:1])
        return gone / 300

    assert share(0.02, 8) > share(0.02, 0) + 0.2
    assert share(0.0, 8) < 0.02


def test_settings_that_are_unlike_the_incumbent_hardly_count() -> None:
    """What scatters ten times as much has a hundredth of the weight; the incumbent has that of the nearest."""
    incumbent, near = alike(0, 2)
    [far, *_] = alike(1, 1, noise=0.5)
    control = make_incumbent(0, incumbent, [near, far]).control
    assert control is not None
    assert torch.allclose(control.nll, (incumbent.nll + near.nll) / 2, rtol=0.01)
    assert torch.equal(control.tokens, incumbent.tokens)


def test_all_text_is_compared_with_the_incumbent_itself() -> None:
    """Whatever looks are subtracted from: what it differs from the incumbent by is known."""
    trial, incumbent, *known = alike(3, 6)
    shifted = [replace(other, nll=other.nll + 0.3 * other.tokens) for other in known]
    made = make_incumbent(0, incumbent, shifted)
    behind = replace(trial, nll=trial.nll + 0.01 * trial.tokens)
    found = moderated_paired_difference(behind, made)
    assert found.value == pytest.approx(0.01)
    assert found.standard_error == 0
    assert estimate(behind, made).value == pytest.approx(behind.perplexity)


def test_equal_weights_under_other_settings_are_no_further_knowledge() -> None:
    """Where nothing else is known a trial is compared with the incumbent alone."""
    [incumbent] = alike(0, 1)
    made = make_incumbent(7, incumbent, [incumbent, incumbent])
    assert (made.number, made.control, made.prior) == (7, None, None)
