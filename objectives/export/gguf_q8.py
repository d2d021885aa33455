"""Write a quantized model as a GGUF file with embeddings and head in Q8_0, which no trial measured.

Responsible for these, and for a model in memory that has them as the file does, so that what ships is what is scored.
May assume that embeddings have a multiple of 32 inputs, once a plan was found to be held.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from objectives.errors import InputError
from objectives.export.formats import RoundedParts
from objectives.export.gguf import BLOCK, Gguf
from objectives.model.weights import weights_restored
from objectives.trial import Bench
from quant.plan import Plan
from quant.scheme import IntWeight


class GgufQ8(Gguf):
    """The file format of llama.cpp, with embeddings and head in blocks of 8 bits."""

    limits = replace(Gguf.limits, name="gguf-q8")
    embeddings = "Q8_0"

    def require_holds(self, plan: Plan, bench: Bench | None = None) -> None:
        """Refuse what GGUF does not hold, and embeddings that are no whole blocks."""
        super().require_holds(plan, bench)
        for module in [] if bench is None else _embeddings(bench):
            width = module.weight.shape[-1]
            if width % BLOCK:
                raise InputError(
                    f"Q8_0 has blocks of {BLOCK}, and the embeddings have {width} values; use --format gguf"
                )

    def rounded(self, bench: Bench, plan: Plan, codes: Mapping[str, IntWeight]) -> RoundedParts:
        """Return what puts the values of Q8_0 into embeddings and head, beside what is rounded in the Linears."""
        linears = super().rounded(bench, plan, codes)
        others = nullcontext() if linears is None else linears.in_place
        return RoundedParts(parts="embeddings and head", in_place=_rounded(bench, others))


@contextmanager
@torch.inference_mode()
def _rounded(bench: Bench, others: AbstractContextManager[None]) -> Iterator[None]:
    modules = _embeddings(bench)
    with others, weights_restored(modules):
        for weight in {id(module.weight): module.weight for module in modules}.values():
            weight.copy_(_through_q8(weight))
        yield


def _embeddings(bench: Bench) -> list[Any]:
    model = bench.model.module
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _through_q8(weight: Tensor) -> Tensor:
    """Return the values of a matrix as Q8_0 has them, float32."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf.quants.quantize(weight.float().cpu().numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(stored, kind))
