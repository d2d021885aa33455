"""Workers of one study may search in different ways, and quantize for one runtime."""

import pytest

from hpo.study.searching import SearchMode, require_same_runtime
from objectives.errors import InputError

SPLIT = SearchMode(for_="vllm", tensor_parallel=2)


@pytest.mark.parametrize(
    ("stored", "own", "said"),
    [
        (
            SPLIT,
            SearchMode(for_="awq"),
            "with --for vllm --tensor-parallel 2, and --for awq is given; give",
        ),
        (
            SPLIT,
            SearchMode(for_="vllm"),
            "with --for vllm --tensor-parallel 2, and --for vllm is given; give",
        ),
        (SearchMode(), SearchMode(for_="awq"), "without --for, and --for awq is given; leave it out, or begin another"),
    ],
)
def test_a_study_goes_on_for_no_other_runtime(stored: SearchMode, own: SearchMode, said: str) -> None:
    """One line names both: what is stored is what the report's commands write."""
    with pytest.raises(InputError) as caught:
        require_same_runtime(stored, own, "mine")
    assert str(caught.value).startswith(f"study 'mine' was begun {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("own", [SPLIT, SearchMode(), SearchMode(sampler="qmc")])
def test_who_says_no_runtime_goes_on_for_that_of_the_study(own: SearchMode) -> None:
    """However else it searches."""
    require_same_runtime(SPLIT, own, "mine")
