"""What a person says of a study, in the words of the flags: which model, which text, how it searches.

Responsible for each word, its default and its help standing once: the command line, the plans and the commands that
reproduce a study read them here. Light to import, so that help answers at once; values are checked by the plans.
"""

from dataclasses import dataclass, field
from typing import Any

from objectives.export.formats import ALIASES, RUNTIMES


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

    model: str = option(
        "model", "bundled", "hub name or directory; `bundled` is a small model that ships with praqtune"
    )
    revision: str | None = option("model", None, "branch, tag or commit of a hub model")
    dtype: str = option("model", "auto", "type to compute in: auto, float32, bfloat16 or float16")
    device: str = option("model", "auto", "where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N")
    trust_remote_code: bool = option("model", False, "run Python code that comes with the model")
    allow_partial: bool = option("model", False, "accept more than 5 percent of block weights in 16 bit")
    allow_partial_groups: bool = option(
        "model", False, "accept groups that do not divide the inputs: the last one is smaller"
    )
    max_memory: float | None = option(
        "model", None, "memory for calibration sums; a lower limit means more passes over the text", metavar="GB"
    )
    device_memory: float | None = option(
        "model",
        None,
        "memory for weights on the device; other blocks are read from disk whenever they are used",
        metavar="GB",
    )
    offload: str | None = option(
        "model",
        None,
        "where changed blocks that do not fit in memory are written (default: in the cache)",
        metavar="DIR",
    )
    calib_data: str | None = option("text", None, "calibration text (default: other documents of the evaluation text)")
    route_all: bool = option("text", False, "mixtures of experts: calibrate every expert on every token")
    eval_data: str | None = option(
        "text",
        None,
        "evaluation texts, by commas: c4, wikitext2, hub:org/name or files (default c4; the bundled model has its own)",
    )
    protocol: str = option("text", "packed", "how text becomes sequences: packed (joined, then cut) or documents")
    bos: str = option(
        "text",
        "auto",
        "put a beginning-of-sequence token first: auto (as the tokenizer does), always or never",
        choices=("auto", "always", "never"),
    )
    seq_len: int | None = option("text", None, "tokens per sequence (default 512; 256 for the bundled model)")
    eval_samples: int = option("text", 64, "sequences to score of each data set")
    seed: int = option("text", 0, "seed of the order of texts, of a study's search and of refining")
    confirm_data: str | None = option(
        "confirmation",
        None,
        "second text to confirm the winner on, or each member of a front (default: wikitext2 for c4, c4 for wikitext2)",
    )


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a study searches; every worker may have its own, but for the objective."""

    objective: str = option(
        "search",
        "perplexity",
        "what to minimise: perplexity, or kl, the divergence from full precision",
        choices=("perplexity", "kl"),
    )
    trials: int = option("search", 40, "trial limit of the whole study")
    timeout: float | None = option("search", None, "begin no trial after this time", metavar="SECONDS")
    trial_timeout: float | None = option(
        "search", None, "end a trial that makes no progress for this long", metavar="SECONDS"
    )
    sampler: str = option("search", "gp", "what proposes settings: gp, tpe, random, qmc or grid")
    pruner: str = option("search", "paired", "what ends weak trials early: paired, wilcoxon, median, hyperband or none")
    prune_error: float = option("search", 0.02, "risk that `paired` prunes a trial as good as the best", metavar="P")
    first_look: int = option("search", 8, "the pruner judges a trial after N, 2 N, 4 N, ... sequences", metavar="N")
    until: str | None = option(
        "search",
        None,
        "stop when ten more trials are not expected to gain the standard error of a paired difference",
        choices=("converged",),
    )
    patience: int | None = option("search", None, "stop after N trials in a row without improvement", metavar="N")
    presets_only: bool = option("search", False, "measure and rank the presets and the references; search nothing")
    budget: str | None = option(
        "space",
        None,
        "give each Linear its own bits within this size: 4.25 (bits per weight) or 110MB (the whole model)",
        metavar="BITS|SIZE",
    )
    front: str | None = option(
        "space",
        None,
        "like --budget, for all sizes between two (4.25..5): the best at each size; each is confirmed, which takes as "
        "long as a trial on each held-out text",
        metavar="A..B",
    )
    max_bits: float | None = option("space", None, "search only settings of at most this many bits per weight")
    for_: str | None = option(
        "space",
        None,
        f"search only what this runtime loads: {', '.join(RUNTIMES)} (gptq and awq: such files in vLLM); also "
        f"{', '.join(f'{alias} (as {runtime})' for alias, runtime in ALIASES.items())}",
        metavar="RUNTIME",
    )
    tensor_parallel: int = option(
        "space", 1, "devices that the runtime of --for will split every Linear over", metavar="N"
    )


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How what was rounded is refined; no part of a study's contract."""

    refine: bool = option(
        "refining", False, "tune codes, scales, norms and biases of the result towards full precision; its size stays"
    )
    refine_data: str | None = option(
        "refining", None, "text to learn from (default: documents of the calibration text that nothing else reads)"
    )
    refine_samples: int = option(
        "refining", 512, "sequences to learn from; a tenth as many more are held back to choose the best step"
    )
    refine_codes: int = option(
        "refining", 50, "steps per block in which codes may move by one; 0 leaves them as rounded", metavar="N"
    )
    refine_drift: float = option(
        "refining", 0.2, "how near to its boundary a code must be to move, in steps between codes", metavar="D"
    )
    refine_parts: str = option(
        "refining",
        "scales,norms,biases",
        "what is tuned after the codes: some of scales, norms and biases, by commas",
        metavar="PARTS",
    )
    refine_batch_tokens: int = option(
        "refining", 2048, "tokens per step of tuning scales, norms and biases", metavar="N"
    )
    refine_passes: int = option("refining", 1, "passes of that tuning over the refining text")
    refine_rate: float = option("refining", 1e-3, "highest relative change of a scale in one step", metavar="R")
    refine_trials: int = option(
        "refining",
        1,
        "refinements to try: the first with the values above, then others around its rate, passes, tokens per step, "
        "parts, code steps and drift; the held-back text chooses one",
        metavar="N",
    )
    refine_timeout: float | None = option(
        "refining", None, "begin no step after this time; the same command then continues", metavar="SECONDS"
    )


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Which workers one command starts; where nothing is said, the command is the worker."""

    workers: int | None = option(
        "workers", None, "worker processes to start (default: one for each of --devices)", metavar="N"
    )
    devices: str | None = option(
        "workers", None, "auto, cpu, or cuda:0,cuda:1,...; each worker is pinned to one of them"
    )
    backend: str = option("workers", "loky", "what starts the workers, through joblib: loky or dask")
    scheduler: str | None = option(
        "workers", None, "address of a running Dask cluster, for --backend dask", metavar="ADDRESS"
    )
    worker_name: str | None = option(
        "workers", None, "name of this process in tables (default HOST-PID)", metavar="NAME"
    )
