"""A mixture whose experts are a list of modules, as code that comes with models has them.

Responsible for nothing else, because it is also copied beside the weights of models that tests write, as such code is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class ListedConfig(LlamaConfig):
    """LLaMA's, with how many experts a block has and how many of them read a token."""

    model_type = "listed-mixture"
    num_experts: int = 4
    num_experts_per_tok: int = 2


class ListedExperts(nn.Module):
    """Experts as modules of their own, each called with its tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(LlamaMLP(config) for _ in range(config.num_experts))

    def forward(self, states: Tensor) -> Tensor:
        rows = states.view(-1, states.shape[-1])
        logits, numbers = self.gate(rows).topk(self.chosen)
        weights = logits.softmax(-1)
        result = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            tokens, place = (numbers == number).nonzero(as_tuple=True)
            result.index_add_(0, tokens, expert(rows[tokens]) * weights[tokens, place, None])
        return result.view_as(states)


class ListedForCausalLM(LlamaForCausalLM):
    """LLaMA with such experts in every block."""

    config_class = ListedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = ListedExperts(config)
        self.post_init()
