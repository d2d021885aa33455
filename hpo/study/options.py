"""What a person says of a study, in the words of the flags: which model, which text, how it searches.

Responsible for each word, its default and its help standing once: the command line, the plans and the commands that
reproduce a study read them here. Light to import, so that help answers at once; values are checked by the plans.
"""

from dataclasses import dataclass, field
from typing import Any

from objectives.export.formats import RUNTIMES


def option(
    group: str, default: Any, help: str, metavar: str | None = None, choices: tuple[str, ...] | None = None
) -> Any:
    """Make a field that carries what help says of it.

    Args:
        group: The heading that it stands under.
        default: Where nothing is said.
        help: One line, without the default.
        metavar: What its value is called; None for its own name.
        choices: The only values that are taken; None where the plans check.
    """
    return field(default=default, metadata={"group": group, "help": help, "metavar": metavar, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Which model and which text; None is what suits the model, the text or the machine."""

    model: str = option("model", "bundled", "hub name, directory, or `bundled`")
    revision: str | None = option("model", None, "branch, tag or commit of a hub model")
    dtype: str = option("model", "auto", "auto, float32, bfloat16 or float16")
    device: str = option("model", "auto", "auto (a GPU where there is one), cpu, cuda or cuda:N")
    trust_remote_code: bool = option("model", False, "run code that comes with the model")
    allow_partial: bool = option("model", False, "accept block weights that stay in 16 bit")
    allow_partial_groups: bool = option("model", False, "accept a partial last group")
    max_memory: float | None = option("model", None, "for calibration sums; more passes below it", metavar="GB")
    device_memory: float | None = option(
        "model", None, "for the weights on the device; blocks beyond it are read whenever they are used", metavar="GB"
    )
    offload: str | None = option(
        "model", None, "for what becomes of such blocks (default: in the cache)", metavar="DIR"
    )
    calib_data: str | None = option("text", None, "calibration text (default: other documents of the evaluation text)")
    route_all: bool = option("text", False, "send every token through every expert, for calibration's statistics only")
    eval_data: str | None = option("text", None, "evaluation text: c4, wikitext2, hub:..., or files, by commas")
    protocol: str = option("text", "packed", "packed or documents")
    bos: str = option(
        "text",
        "auto",
        "begin each sequence with the token that says so: auto as the tokenizer does, always or never",
        choices=("auto", "always", "never"),
    )
    seq_len: int | None = option("text", None, "tokens per sequence (512; 256 for the bundled model)")
    eval_samples: int = option("text", 64, "sequences per data set")
    seed: int = option("text", 0, "of the split and the order of the text")
    confirm_data: str | None = option(
        "confirmation",
        None,
        "second data set that the winner, of the size class that leads, is confirmed on, and every member of a front",
    )


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a study searches; every worker may have its own, but for the objective."""

    objective: str = option(
        "search",
        "perplexity",
        "what a trial's value is: its perplexity, or its KL divergence from full precision",
        choices=("perplexity", "kl"),
    )
    trials: int = option("search", 40, "in the whole study")
    timeout: float | None = option("search", None, "begin no trial after this", metavar="SECONDS")
    trial_timeout: float | None = option("search", None, "end a trial without progress for this", metavar="SECONDS")
    sampler: str = option("search", "gp", "gp, tpe, random, qmc or grid")
    pruner: str = option("search", "paired", "paired, wilcoxon, median, hyperband or none")
    prune_error: float = option(
        "search", 0.02, "chance that `paired` gives up a trial as good as the best", metavar="P"
    )
    first_look: int = option("search", 8, "judge a trial after N sequences, 2 N, 4 N, ...", metavar="N")
    until: str | None = option(
        "search",
        None,
        "stop when ten more trials are not expected to gain more than the paired noise",
        choices=("converged",),
    )
    patience: int | None = option("search", None, "stop when N trials in a row improved nothing", metavar="N")
    presets_only: bool = option("search", False, "rank the presets and the references, search nothing")
    budget: str | None = option(
        "space", None, "plans of so many bits per weight, 4.25, or of so large a model, 110MB", metavar="BITS|SIZE"
    )
    front: str | None = option(
        "space",
        None,
        "plans of all sizes between two, 4.25..5: bytes and damage are both minimised; each member is confirmed, which "
        "takes as long as a trial on every held-out text",
        metavar="A..B",
    )
    max_bits: float | None = option("space", None, "most bits per weight that a setting may cost")
    for_: str | None = option(
        "space", None, f"search only what this runtime loads: {', '.join(RUNTIMES)}", metavar="RUNTIME"
    )
    tensor_parallel: int = option("space", 1, "devices that the runtime of --for splits every Linear over", metavar="N")


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How what was rounded is refined; no part of a study's contract."""

    refine: bool = option(
        "refining", False, "tune codes, scales, norms and biases towards full precision; the file is as large"
    )
    refine_data: str | None = option(
        "refining", None, "text to learn from (default: documents of the calibration text that nothing else reads)"
    )
    refine_samples: int = option("refining", 512, "sequences to learn from; a tenth as many more choose the best step")
    refine_codes: int = option(
        "refining", 50, "steps per block in which codes may move by one, for its outputs; 0 leaves them", metavar="N"
    )
    refine_passes: int = option("refining", 1, "how often they are read")
    refine_rate: float = option("refining", 1e-3, "highest relative change of a scale in a step", metavar="R")
    refine_trials: int = option(
        "refining",
        1,
        "refinements that are tried, of other rates, passes and steps for codes; what is held back chooses one",
        metavar="N",
    )
    refine_timeout: float | None = option(
        "refining", None, "begin no step after this; calling it again goes on", metavar="SECONDS"
    )


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Which workers one command starts; where nothing is said, the command is the worker."""

    workers: int | None = option("workers", None, "processes to start (default: one per --devices)", metavar="N")
    devices: str | None = option("workers", None, "auto, cpu, or cuda:0,cuda:1,...: one process each, pinned to it")
    backend: str = option("workers", "loky", "who starts them through joblib: loky or dask")
    scheduler: str | None = option("workers", None, "of a running Dask cluster, for --backend dask", metavar="ADDRESS")
    worker_name: str | None = option(
        "workers", None, "what tables call this process (default HOST-PID)", metavar="NAME"
    )
