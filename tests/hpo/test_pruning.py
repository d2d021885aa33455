"""The paired pruner: rarely wrong, soon right, exact at the end."""

import math

import pytest
import torch

from hpo.pruning import Incumbent, estimate, is_hopeless, lag, optuna_pruner, reports
from objectives.scoring import Score, look_sizes
from tests.hpo.made import score

COUNT = 64
EACH = list(range(COUNT))


def prefix(full: Score, count: int) -> Score:
    return Score(nll=full.nll[:count], tokens=full.tokens[:count])


def texts(seed: int, shift: float, noise: float = 0.02) -> tuple[Score, Score]:
    """An incumbent, and a trial that is `shift` nats worse on the whole text, exactly."""
    generator = torch.Generator().manual_seed(seed)
    incumbent = 3 + 0.5 * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    moves = noise * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    return score(incumbent + moves - moves.mean() + shift), score(incumbent)


def looks(full: Score) -> list[Score]:
    return [prefix(full, count) for count in look_sizes(COUNT)[:-1]]


def test_a_trial_as_good_as_the_incumbent_is_rarely_given_up() -> None:
    """Over all looks together less often than the error that is allowed, and clearly better ones never."""
    wrong = better = 0
    for seed in range(600):
        trial, incumbent = texts(seed, shift=0.0)
        wrong += any(is_hopeless(look, incumbent, EACH) for look in looks(trial))
        trial, incumbent = texts(seed, shift=-0.01)
        better += any(is_hopeless(look, incumbent, EACH) for look in looks(trial))
    assert wrong / 600 < 0.03
    assert better == 0


def test_a_trial_that_is_clearly_worse_is_given_up_at_the_first_look() -> None:
    """Five standard deviations of a sequence behind: eight sequences are enough."""
    gone = sum(is_hopeless(looks(trial)[0], incumbent, EACH) for trial, incumbent in (texts(s, 0.1) for s in range(50)))
    assert gone == 50


def test_what_cannot_win_any_more_is_given_up_for_certain() -> None:
    """No NLL is negative: a trial that lost more than the incumbent in all is beaten, even where errors are unknown."""
    incumbent = score([1.0] * 8)
    assert is_hopeless(score([9.0]), incumbent, [0] * 8)
    assert not is_hopeless(score([7.0]), incumbent, [0] * 8)


def test_the_error_vanishes_as_the_text_is_read() -> None:
    """The difference on all text decides: nothing is uncertain once all is read."""
    trial, incumbent = texts(0, shift=0.01)
    errors = [lag(prefix(trial, count), incumbent, EACH).standard_error for count in (8, 32, COUNT)]
    assert errors[0] > errors[1] > errors[2] == 0
    assert lag(trial, incumbent, EACH).value == pytest.approx(0.01)


def test_sequences_of_one_document_count_as_one() -> None:
    """Repeated text is no further evidence."""
    trial, incumbent = texts(1, shift=0.05)
    alone = lag(prefix(trial, 16), incumbent, EACH)
    clustered = lag(prefix(trial, 16), incumbent, [index // 8 for index in EACH])
    assert clustered.degrees == 1
    assert alone.degrees == 15
    assert math.isfinite(clustered.standard_error)


def test_an_estimate_is_far_closer_than_the_running_mean() -> None:
    """Easy first text misleads the running mean, not the paired estimate; its interval covers the truth."""
    covered, estimated, running = 0, 0.0, 0.0
    for seed in range(200):
        trial, full = texts(seed, shift=0.05)
        found = estimate(prefix(trial, 16), Incumbent(number=0, score=full), EACH)
        covered += found.low <= trial.perplexity <= found.high
        estimated += abs(found.perplexity - trial.perplexity)
        running += abs(prefix(trial, 16).perplexity - trial.perplexity)
    assert 0.90 <= covered / 200 <= 0.99
    assert estimated < running / 10


def test_an_estimate_of_all_text_is_exact() -> None:
    """Nothing is left to guess."""
    trial, full = texts(3, shift=0.02)
    found = estimate(trial, Incumbent(number=4, score=full), EACH)
    assert found.perplexity == pytest.approx(trial.perplexity)
    assert found.low == pytest.approx(found.high)
    assert found.against == 4


def test_optuna_is_told_running_perplexities_and_for_wilcoxon_every_sequence() -> None:
    """At most one point per look; Optuna's Wilcoxon pruner compares sequence by sequence."""
    look = score([1.0, 2.0])
    assert reports("median", look) == {2: pytest.approx(math.exp(1.5))}
    assert reports("wilcoxon", look) == {0: pytest.approx(math.e), 1: pytest.approx(math.exp(2))}


@pytest.mark.parametrize("name", ["median", "hyperband", "wilcoxon", "none", "paired"])
def test_every_pruner_can_be_made_for_short_and_long_texts(name: str) -> None:
    """Also where there is only one look."""
    for count in (4, 8, 64):
        assert optuna_pruner(name, count) is not None  # type: ignore[arg-type]
