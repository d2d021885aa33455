"""From what a person says to the plan of a bench: which text by default, how long its sequences are, what confirms.

Responsible for what decides about a study's text before anything is read; command line and notebooks share it. May
assume that plans check their own values.
"""

from dataclasses import replace
from typing import Any, cast

from hpo.study.choosing import study_flags
from hpo.study.contract import Contract
from hpo.study.options import BenchOptions
from objectives.evaluation import BenchPlan
from objectives.model.loading import BUNDLED, ModelPlan
from objectives.text.bos import Beginning
from objectives.text.dealing import Part
from objectives.text.sequences import Protocol, TextPlan

BUNDLED_LENGTH, HUB_LENGTH = 256, 512
BUNDLED_DATA, HUB_DATA = "bundled:docstrings,bundled:topics", "c4"
# What a winner is confirmed on besides, by the text that it was tuned on.
SECOND_DATA = {"bundled:docstrings": "bundled:topics", "c4": "wikitext2", "wikitext2": "c4"}


def bench_plan(options: BenchOptions, samples: int) -> BenchPlan:
    """Plan a model with its calibration text and its evaluation texts.

    Args:
        options: What was said.
        samples: Calibration sequences.

    Raises:
        InputError: If a value cannot be.
    """
    bundled = options.model == BUNDLED
    usual = BUNDLED_LENGTH if bundled else HUB_LENGTH
    length = usual if options.seq_len is None else options.seq_len
    sources = (options.eval_data or (BUNDLED_DATA if bundled else HUB_DATA)).split(",")

    def text(source: str, part: Part, count: int) -> TextPlan:
        # The plan says what is wrong with a name that is none.
        protocol, bos = cast(Protocol, options.protocol), cast(Beginning, options.bos)
        return TextPlan(source=source, part=part, count=count, protocol=protocol, length=length, bos=bos)

    return BenchPlan(
        model=ModelPlan(
            name=options.model,
            revision=options.revision,
            dtype=options.dtype,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
            device_memory=None if options.device_memory is None else int(options.device_memory * 1e9),
            offload=options.offload,
        ),
        calibration=text(options.calib_data or sources[0], "calibration", samples),
        data=tuple(text(source, "tuning", options.eval_samples) for source in dict.fromkeys(sources)),
        seed=options.seed,
        max_memory=None if options.max_memory is None else int(options.max_memory * 1e9),
        route_all=options.route_all,
        allow_partial=options.allow_partial,
        allow_partial_groups=options.allow_partial_groups,
    )


def confirmed(plan: BenchPlan, second: str | None) -> BenchPlan:
    """The plan with its first evaluation text for tuning, and what a winner is confirmed on.

    That is other documents of the tuning text, and a second data set where there is one.
    """
    tuning = plan.data[0]
    held_out = replace(tuning, part="confirmation", minimum=1)
    other = [replace(held_out, source=second)] if second and second != tuning.source else []
    return replace(plan, data=(tuning, held_out, *other))


def new_bench_plan(options: BenchOptions, sizes: list[int]) -> BenchPlan:
    """Plan the bench of a study that begins.

    Args:
        options: What was said.
        sizes: Calibration sizes that the study may try, ascending; text for the first of them is enough.
    """
    plan = bench_plan(options, sizes[-1])
    plan = replace(plan, calibration=replace(plan.calibration, minimum=sizes[0]))
    return confirmed(plan, options.confirm_data or SECOND_DATA.get(plan.data[0].source))


def stored_bench_plan(contract: Contract, **given: Any) -> BenchPlan:
    """Plan the bench of a study again, from its contract.

    Args:
        contract: Of the study.
        given: Fields of `BenchOptions` that win over the contract's.
    """
    # A commit belongs to the model that it was stored with.
    other = {"revision": None} if given.get("model") is not None else {}
    options = BenchOptions(**{**study_flags(contract), **other, **given})
    return confirmed(bench_plan(options, contract.calibration.sequences), options.confirm_data)
