"""A model as its configuration describes it, without a single weight.

Responsible for what can be known of a model before its files are there: its decoder blocks by their names. Nothing is
run, so which scales fold is not known here. May assume that the installed transformers knows the architecture, or that
its code may be run.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.errors import InputError
from objectives.model.finding import named_blocks
from objectives.model.hub import hub_errors
from objectives.model.loading import BUNDLED, FAULTS_OF_VALUES, ModelPlan
from objectives.model.roles import Block


def load_skeleton(plan: ModelPlan, allow_partial: bool = False) -> tuple[Any, list[Block]]:
    """Return a model of tensors without data, and its blocks; of its files only `config.json` is read.

    Raises:
        InputError: If there is no configuration, or its layout is not known.
    """
    path = str(MODEL_DIRECTORY) if plan.name == BUNDLED else plan.name
    if Path(path).is_file():
        raise InputError(f"model {plan.name} is a file; give the directory that its config.json is in")
    common = {"revision": plan.revision, "trust_remote_code": plan.trust_remote_code}
    with hub_errors(f"model {plan.name}", *FAULTS_OF_VALUES):
        config = AutoConfig.from_pretrained(path, **common)
        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=plan.trust_remote_code
            )
    return module, named_blocks(module, allow_partial)
