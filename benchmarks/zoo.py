"""Every family of causal language models of the installed transformers, built small: loaded, asked, evaluated once.

Run: python benchmarks/zoo.py [--out docs/models.md] [FAMILY ...]

A family whose small model cannot be built at all is counted and named, not judged: its configuration asks for more than
the sizes that are set here. A traceback of ours ends the run.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from objectives.errors import InputError
from objectives.model.finding import find_blocks
from objectives.model.roles import Block, kept_in_16_bit
from objectives.scoring import score
from objectives.text.sequences import Sequences

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# A second try for those in which every head has keys and values of its own, or whose sizes have other names.
OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": 16},
    {"ffn_dim": 128, "word_embed_proj_dim": 64, "num_key_value_heads": 4},
    {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
)
LARGEST = 20_000_000
WIDTH = 120
TOKENS, SEED = 24, 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: what became of a family."""

    family: str
    supported: str
    folds: str
    remark: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Go through the families and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows, unbuilt = [], []
    for family in options.families:
        module = built(family)
        if module is None:
            unbuilt.append(family)
        else:
            rows.append(judged(family, module))
        print(rows[-1] if module is not None else f"{family}: cannot be built this small", file=sys.stderr, flush=True)
    folded = (
        line if line.startswith("|") else fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)
        for line in page(rows, unbuilt)
    )
    text = "\n".join(folded) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")


def built(family: str) -> Any:
    """A small model of a family with random weights; None where none of the sizes makes one."""
    for others in OTHERS:
        try:
            config = CONFIG_MAPPING[family](**SIZES, **others)
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
            if size > LARGEST:
                continue
            torch.manual_seed(SEED)
            module: Any = AutoModelForCausalLM.from_config(config)
            module = module.float().eval().requires_grad_(False)
            module(torch.arange(2, 10)[None], use_cache=False)
        except Exception:
            # Whatever a library's own constructor raises for sizes that it was not made for.
            continue
        return module
    return None


def judged(family: str, module: Any) -> Family:
    """Roles, folding and one evaluation of a model."""
    try:
        blocks = find_blocks(module)
        supported = "yes"
    except InputError as error:
        try:
            blocks = find_blocks(module, allow_partial=True)
            supported = "with `--allow-partial`"
        except InputError:
            return Family(family=family, supported="no", folds="-", remark=str(error).partition(";")[0])
    *_, last = score(module, text())
    assert last.nll.isfinite().all(), family
    return Family(
        family=family, supported=supported, folds=", ".join(folding(blocks)), remark=kept_in_16_bit(blocks) or ""
    )


def folding(blocks: Sequence[Block]) -> Iterator[str]:
    """What of a model's inputs folds, by roles."""
    counts: dict[str, list[bool]] = {}
    for site in (site for block in blocks for site in block.sites):
        counts.setdefault("+".join(linear.role for linear in site.linears), []).append(site.folds)
    for roles, folds in counts.items():
        if any(folds):
            yield roles if all(folds) else f"{roles} ({sum(folds)} of {len(folds)})"


def text() -> Sequences:
    """Two random sequences."""
    generator = torch.Generator().manual_seed(SEED)
    ids = tuple(torch.randint(2, SIZES["vocab_size"], (TOKENS,), generator=generator) for _ in range(2))
    scored = torch.ones(TOKENS, dtype=torch.bool)
    scored[0] = False
    return Sequences(source="random", ids=ids, scored=(scored, scored), clusters=(0, 1))


def page(rows: Sequence[Family], unbuilt: Sequence[str]) -> Iterator[str]:
    """The table, in Markdown."""
    count = sum(row.supported == "yes" for row in rows)
    yield "# Which families of models are supported"
    yield ""
    yield (
        f"`benchmarks/zoo.py` makes this table, here with transformers {version('transformers')}. It builds a small "
        f"model with random weights of every family of causal language models that can be built small ({len(rows)} "
        "families), finds the roles of its Linears and which scales fold, and evaluates it once. As they are, "
        f"{count} families are supported. With `--scales foldable`, inputs that do not fold keep a scale of 1. A "
        "family in which more than 5 % of the block weights are not in Linears that can be quantized needs "
        "`--allow-partial`, which leaves those weights in 16 bit."
    )
    yield ""
    yield from ("| family | supported | whose scales fold | remarks |", "|---|---|---|---|")
    for row in rows:
        yield f"| {row.family} | {row.supported} | {row.folds or 'none'} | {short(row.remark)} |"
    yield ""
    yield (
        f"Not checked by this page: the miniature configuration used here cannot build these {len(unbuilt)} families. "
        "They may work: `calibrate --dry-run` reads only a model's configuration, and `evaluate` refuses by name what "
        "is not supported. The tests cover deepseek_v3, with a small configuration of its own: it is supported."
    )
    yield ""
    yield f"{', '.join(unbuilt)}."


def short(text: str) -> str:
    """What fits into a cell: without the list of the largest weights."""
    return text.partition(" (largest")[0].replace("|", "/")[:160]


if __name__ == "__main__":
    main()
