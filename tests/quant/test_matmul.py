"""Matrix products at the device's rate: the chosen operand type, and Gram matrices that lose nothing to it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import quant.matmul
from quant.matmul import fast_dtype, gram_sum
from tests.quant import synthetic

PRECISION = torch.backends.mkldnn.matmul
PRODUCTS = (Tensor.matmul, Tensor.__matmul__, Tensor.mm, torch.matmul, torch.mm)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Pretend that the processor has only the named capabilities; the remembered answers are forgotten."""

    def pretend(**found: bool) -> None:
        fast_dtype.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)

    yield pretend
    fast_dtype.cache_clear()


@pytest.fixture
def bfloat16_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant.matmul, "fast_dtype", lambda device_type: torch.bfloat16)


@pytest.fixture(params=["none", "ieee", "tf32", "bf16"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """A precision setting that someone else made, put back afterwards."""
    before = PRECISION.fp32_precision
    PRECISION.fp32_precision = request.param
    yield request.param
    PRECISION.fp32_precision = before


class Watch(TorchFunctionMode):
    """Notes the precision setting at each matrix product, and fails the product if told to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.seen: list[str] = []

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func in PRODUCTS:
            self.seen.append(PRECISION.fp32_precision)
            if self.error is not None:
                raise self.error
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({"avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_processor_uses_bfloat16_only_with_instructions_for_it(
    processor: Callable[..., None], found: dict[str, bool], expected: torch.dtype
) -> None:
    """A processor multiplies in bfloat16 when it has instructions for it, and in float32 otherwise."""
    processor(**found)
    assert fast_dtype("cpu") == expected


@pytest.mark.parametrize(("device", "expected"), [("cuda", torch.bfloat16), ("mps", torch.float32)])
def test_accelerators_do_not_depend_on_the_processor(
    processor: Callable[..., None], device: str, expected: torch.dtype
) -> None:
    """CUDA multiplies in bfloat16 and other accelerators in float32, whatever the processor can do."""
    for able in (True, False):
        processor(amx_bf16=able, avx512_bf16=able)
        assert fast_dtype(device) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 1), (300, 48), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.usefixtures("bfloat16_processor")
def test_gram_sum_loses_nothing(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Products of rows are summed to float32 accuracy, for bfloat16 rows on bfloat16 hardware and for wider ones."""
    rows = synthetic.activations(shape[0], shape[1], 0).to(dtype)
    found = gram_sum(rows)
    exact, bound = rows.double().T @ rows.double(), rows.double().abs().T @ rows.double().abs()
    assert found.dtype == torch.float32
    # What float32 summation of N terms promises in any order (Higham 2002, section 4.2); bfloat16 errs by 4e-3.
    assert ((found.double() - exact).abs() <= shape[0] * 2**-24 * bound).all()


def test_gram_sum_without_fast_bfloat16(processor: Callable[..., None]) -> None:
    """On a processor without bfloat16 instructions the Gram matrix of bfloat16 rows is the float32 one."""
    rows = synthetic.activations(64, 16, 0).bfloat16()
    processor()
    assert torch.equal(gram_sum(rows), rows.float().T @ rows.float())


@pytest.mark.usefixtures("bfloat16_processor")
def test_gram_sum_restores_the_precision_setting(precision: str) -> None:
    """bfloat16 operands are allowed for the product only; the setting found before is found again after it."""
    rows = synthetic.activations(8, 4, 0).bfloat16()
    with Watch() as watch:
        gram_sum(rows)
    assert watch.seen == ["bf16"]
    assert precision == PRECISION.fp32_precision


@pytest.mark.usefixtures("bfloat16_processor")
def test_gram_sum_restores_the_precision_setting_after_a_failure(precision: str) -> None:
    """The setting found before is found again also when the product raises, as it does without memory."""
    rows = synthetic.activations(8, 4, 0).bfloat16()
    with Watch(RuntimeError("out of memory")), pytest.raises(RuntimeError, match="out of memory"):
        gram_sum(rows)
    assert precision == PRECISION.fp32_precision


@pytest.mark.usefixtures("bfloat16_processor")
def test_gram_sum_of_wide_rows_leaves_the_precision_alone() -> None:
    """Rows that are not bfloat16 are never read as bfloat16."""
    rows = synthetic.activations(8, 4, 0)
    with Watch() as watch:
        gram_sum(rows)
    assert watch.seen == [PRECISION.fp32_precision]
    assert watch.seen != ["bf16"]
