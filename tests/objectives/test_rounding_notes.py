"""What a person is told of codes that are not what was asked for."""

from objectives.quantized_blocks import LayerResult
from objectives.rounding_notes import MOST_NAMED, rounding_notes


def layer(number: int, **fields: object) -> LayerResult:
    losses = {"alpha": 0.0, "nearest_loss": 3.0, "loss": 2.0, "final_loss": 1.0}
    return LayerResult(**{"name": f"layers.{number}.down", "depth": number, "role": "down", **losses, **fields})  # type: ignore[arg-type]


def test_nothing_is_said_where_everything_is_as_it_was_asked_for() -> None:
    """Silence is the usual case."""
    assert rounding_notes([layer(0), layer(1)]) == []


def test_linears_are_named_with_the_damping_they_needed() -> None:
    """Few of many, with how many there are."""
    layers = [layer(number, damping=0.5 if number else 50.0, fell_back=number == 1) for number in range(MOST_NAMED + 3)]
    damped, kept = rounding_notes(layers)
    assert damped.startswith("more damping was needed than was asked for, by 11 Linears: layers.0.down (50), layers.1.")
    assert damped.endswith(" and 3 more")
    assert kept == (
        "1 Linears kept nearest rounding, because the ranges and codes that were asked for lose more: layers.1.down"
    )


def test_experts_that_few_tokens_reach_are_named_with_what_to_do() -> None:
    """Only those that lean more on what all experts read than on what reached themselves."""
    layers = [layer(0), layer(1, tokens=3, own_share=0.1), layer(2, tokens=300, own_share=0.8)]
    (note,) = rounding_notes(layers)
    assert note == (
        "1 of 2 matrices of experts count for less in their statistics than what all experts read, because few tokens "
        "reach them: layers.1.down (3 tokens); calibrate on more or on other text, or with --route-all"
    )
