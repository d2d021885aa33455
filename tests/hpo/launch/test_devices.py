"""Workers and devices: who gets which, and what a process is told before it starts."""

import pytest

from hpo.launch.devices import THREADS, VISIBLE, assigned, name_inside, worker_environment
from objectives.errors import InputError

GPUS = ["cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize(
    ("workers", "devices", "present", "expected"),
    [
        (None, "auto", GPUS, GPUS),
        (None, "auto", [], ["cpu"]),
        (2, "auto", [], ["cpu", "cpu"]),
        (None, "cuda:2,cuda:0", GPUS, ["cuda:2", "cuda:0"]),
        (4, "cuda:0,cuda:1", GPUS, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (1, "auto", GPUS, ["cuda:0"]),
        (None, "cuda", GPUS, ["cuda:0"]),
        (3, "cpu", GPUS, ["cpu"] * 3),
    ],
)
def test_devices_are_dealt_in_turn(workers: int | None, devices: str, present: list[str], expected: list[str]) -> None:
    """One worker per device unless a number is given."""
    assert assigned(workers, devices, present) == expected


@pytest.mark.parametrize(
    ("workers", "devices", "message"),
    [(0, "auto", "--workers 0 is not at least 1"), (None, "cuda:3", "cuda:3 is not there; there are: cpu, cuda:0")],
)
def test_what_is_not_there_is_refused_with_what_is(workers: int | None, devices: str, message: str) -> None:
    """Before anything is started."""
    with pytest.raises(InputError, match=message):
        assigned(workers, devices, GPUS)


def test_a_process_sees_its_gpu_only_also_where_its_parent_sees_some() -> None:
    """The numbers of a parent that was given GPUs 4 and 7 count among those."""
    assert worker_environment("cuda:1", GPUS, None, 8) == {VISIBLE: "1"}
    assert worker_environment("cuda:1", GPUS, "4, 7", 8) == {VISIBLE: "7"}
    assert worker_environment("cuda:0", GPUS, "GPU-abc", 8) == {VISIBLE: "GPU-abc"}
    assert (name_inside("cuda:1"), name_inside("cpu")) == ("cuda", "cpu")


@pytest.mark.parametrize(("workers", "cores", "threads"), [(2, 8, "4"), (3, 8, "2"), (4, 2, "1"), (1, 6, "6")])
def test_workers_on_the_processor_divide_its_cores(workers: int, cores: int, threads: str) -> None:
    """Never none; a worker on a GPU takes none of them."""
    environment = worker_environment("cpu", ["cpu"] * workers + ["cuda:0"], None, cores)
    assert environment == {VISIBLE: "", **dict.fromkeys(THREADS, threads)}
