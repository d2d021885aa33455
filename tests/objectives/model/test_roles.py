"""Layer roles of every supported layout: by name, by what the model computes with them, and through a whole trial."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ArceeConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    GPT2Config,
    MambaConfig,
    Olmo2Config,
    OlmoConfig,
    PhiConfig,
    Qwen3Config,
)

from objectives.errors import InputError
from objectives.model.finding import find_blocks
from objectives.model.roles import Block, LinearRole
from objectives.trial import run_trial
from quant.linears import HeadTie
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny
from tests.objectives.listed import ListedConfig, ListedForCausalLM
from tests.objectives.tiny import EXPERTS, HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS, LAYOUTS, MIXTURES, MLP

layouts = pytest.mark.parametrize("layout", LAYOUTS)

# What every layout's block must be found to have: module name, role, site.
GATED = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
OPT = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "fc1": "fc1",
    "fc2": "fc2",
}
NEOX = {
    "attention.query_key_value:q": "q",
    "attention.query_key_value:k": "k",
    "attention.query_key_value:v": "v",
    "attention.dense": "o",
    "mlp.dense_h_to_4h": "fc1",
    "mlp.dense_4h_to_h": "fc2",
}
PHI3 = {
    "self_attn.qkv_proj:q": "q",
    "self_attn.qkv_proj:k": "k",
    "self_attn.qkv_proj:v": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_up_proj:gate": "gate",
    "mlp.gate_up_proj:up": "up",
    "mlp.down_proj": "down",
}
ROLES = {name: GATED for name in ("llama", "qwen2", "mistral", "gemma", "gemma2", "gemma3")}
ROLES |= {"opt": OPT, "opt-post-norm": OPT, "gpt-neox": NEOX, "phi3": PHI3}
PREFIX = {"opt": "model.decoder.layers", "opt-post-norm": "model.decoder.layers", "gpt-neox": "gpt_neox.layers"}

# roles of a site: kind, inputs, whether it folds.
Expected = dict[tuple[str, ...], tuple[str, int, bool]]
GATED_SITES: Expected = {
    ("q", "k", "v"): ("attention", HIDDEN, True),
    ("o",): ("attention", HIDDEN, True),
    ("gate", "up"): ("mlp", HIDDEN, True),
    ("down",): ("mlp", MLP, True),
}
PLAIN_SITES: Expected = {
    ("q", "k", "v"): ("attention", HIDDEN, True),
    ("o",): ("attention", HIDDEN, True),
    ("fc1",): ("mlp", HIDDEN, True),
    ("fc2",): ("mlp", MLP, True),
}
SITES = {name: GATED_SITES for name in LAYOUTS} | {
    "opt": PLAIN_SITES,
    # The norm comes after the residual sum and feeds the next sum, too.
    "opt-post-norm": PLAIN_SITES | {("q", "k", "v"): ("attention", HIDDEN, False), ("fc1",): ("mlp", HIDDEN, False)},
    # GELU is not positively homogeneous.
    "gpt-neox": PLAIN_SITES | {("fc2",): ("mlp", MLP, False)},
}
UNGROUPED = {"opt", "opt-post-norm", "gpt-neox"}
TIE = HeadTie(kv_heads=KV_HEADS, repeats=HEADS // KV_HEADS, head_dim=HEAD)


def found(layout: str) -> tuple[Any, list[Block]]:
    module = tiny.module(LAYOUTS[layout]())
    return module, find_blocks(module)


def by_role(block: Block) -> dict[str, LinearRole]:
    return {linear.role: linear for linear in block.linears}


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))


# By name


@layouts
def test_roles_by_name(layout: str) -> None:
    """Every Linear of every block is found under its name with its role, and nothing stays uncovered."""
    _, blocks = found(layout)
    assert len(blocks) == LAYERS
    for index, block in enumerate(blocks):
        name = f"{PREFIX.get(layout, 'model.layers')}.{index}"
        assert (block.index, block.name) == (index, name)
        assert {linear.name: linear.role for linear in block.linears} == {
            f"{name}.{child}": role for child, role in ROLES[layout].items()
        }
        assert block.uncovered == {}


@layouts
def test_roles_refer_to_the_modules_of_their_names(layout: str) -> None:
    """A role's module is the model's module of that name, so that writing to it changes the model."""
    module, blocks = found(layout)
    for linear in (linear for block in blocks for linear in block.linears):
        assert linear.module is module.get_submodule(linear.name.partition(":")[0])


@layouts
def test_sites_kinds_folds_and_ties(layout: str) -> None:
    """Linears with a common input are together, in order, with the input's width, and with what may be done with it."""
    _, blocks = found(layout)
    for block in blocks:
        sites = {
            tuple(linear.role for linear in site.linears): (site.kind, site.inputs, site.folds) for site in block.sites
        }
        assert sites == SITES[layout]
        assert list(sites) == list(SITES[layout])
        for site in block.sites:
            roles = tuple(linear.role for linear in site.linears)
            assert site.name == f"{block.name}:{'+'.join(roles)}"
            assert site.tie == (TIE if roles == ("o",) and layout not in UNGROUPED else None)


@layouts
def test_structure_is_what_the_block_computes(layout: str) -> None:
    """An activation follows gate and fc1, up is multiplied with it, and everything else is passed on as it is."""
    _, blocks = found(layout)
    expected = {"gate": "activated", "fc1": "activated", "up": "gated product"}
    for linear in blocks[0].linears:
        assert linear.structure == expected.get(linear.role, "plain")


@layouts
def test_the_activation_is_the_models_own(layout: str) -> None:
    """The activation of a block is the function that its MLP applies."""
    _, blocks = found(layout)
    kinds = {"llama": "silu", "qwen2": "silu", "mistral": "silu", "phi3": "silu", "gpt-neox": "gelu"}
    kinds |= {"opt": "relu", "opt-post-norm": "relu"}
    functions = {"silu": nn.functional.silu, "relu": nn.functional.relu, "gelu": nn.functional.gelu}
    x = torch.linspace(-4, 4, 101)
    gemma = nn.functional.gelu(x, approximate="tanh")
    expected = functions[kinds[layout]](x) if layout in kinds else gemma
    torch.testing.assert_close(blocks[0].activation(x), expected, rtol=0, atol=1e-5)


# By what the model computes


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs that a module reads inside the block."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    yield seen
    handle.remove()


def read_by(module: Any, reader: LinearRole, ids: Tensor) -> Tensor:
    with inputs_of(reader.module) as seen, torch.no_grad():
        module(ids)
    return seen[0]


def scaled(linear: LinearRole, factor: float | Tensor) -> None:
    """Multiply a Linear's or slice's rows, bias included."""
    with torch.no_grad():
        rows = slice(None) if linear.rows is None else linear.rows
        column = factor[:, None] if isinstance(factor, Tensor) else factor
        linear.module.weight[rows] *= column
        if linear.module.bias is not None:
            linear.module.bias[rows] *= factor


@layouts
def test_q_k_and_v_are_what_attention_uses_as_such(layout: str, ids: Tensor) -> None:
    """Negating v's rows negates what o reads; without q, every key counts the same and k's rows change nothing."""
    module, blocks = found(layout)
    roles = by_role(blocks[0])
    before = read_by(module, roles["o"], ids)
    scaled(roles["v"], -1)
    torch.testing.assert_close(read_by(module, roles["o"], ids), -before)
    scaled(roles["k"], -1)
    assert not torch.allclose(read_by(module, roles["o"], ids), -before, atol=1e-4)
    scaled(roles["q"], 0)
    uniform = read_by(module, roles["o"], ids)
    scaled(roles["k"], -2)
    torch.testing.assert_close(read_by(module, roles["o"], ids), uniform)
    scaled(roles["v"], 0)
    assert not read_by(module, roles["o"], ids).any()


@layouts
def test_gate_up_and_fc1_are_what_the_mlp_uses_as_such(layout: str, ids: Tensor) -> None:
    """What down reads is act(gate) * up, and what fc2 reads is act(fc1), of the slices' own outputs."""
    module, blocks = found(layout)
    block, roles = blocks[0], by_role(blocks[0])
    first, last = ("gate", "down") if "gate" in roles else ("fc1", "fc2")
    with inputs_of(roles[first].module) as inputs, inputs_of(roles[last].module) as outputs, torch.no_grad():
        module(ids)
        product = block.activation(output_of(roles[first], inputs[0]))
        if "up" in roles:
            product = product * output_of(roles["up"], inputs[0])
    torch.testing.assert_close(outputs[0], product)


def output_of(linear: LinearRole, rows: Tensor) -> Tensor:
    bias = linear.module.bias
    if bias is not None and linear.rows is not None:
        bias = bias[linear.rows]
    return nn.functional.linear(rows, linear.weight(), bias)


@pytest.mark.parametrize(
    ("layout", "reshaped"),
    [
        ("gpt-neox", lambda out: out.view(-1, HEADS, 3 * HEAD).split(HEAD, dim=-1)),
        ("phi3", lambda out: out.split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD], dim=-1)),
    ],
)
def test_slices_of_fused_projections(layout: str, reshaped: Callable[[Tensor], Sequence[Tensor]], ids: Tensor) -> None:
    """The q, k and v slices give what the attention module cuts out of the projection's output."""
    module, blocks = found(layout)
    for block in blocks:
        roles = by_role(block)
        fused = roles["q"].module
        captured: list[Tensor] = []
        handle = fused.register_forward_hook(lambda _, args, out, seen=captured: seen.extend((args[0], out)))
        with torch.no_grad():
            module(ids)
        handle.remove()
        rows, output = (tensor.flatten(0, 1) for tensor in captured)
        for role, part in zip("qkv", reshaped(output), strict=True):
            torch.testing.assert_close(output_of(roles[role], rows), part.reshape(len(rows), -1))


@layouts
def test_slices_divide_their_modules_rows(layout: str) -> None:
    """Every row of every covered module belongs to exactly one role, and setting a weight sets those rows alone."""
    _, blocks = found(layout)
    for module in {linear.module for block in blocks for linear in block.linears}:
        own = [linear for block in blocks for linear in block.linears if linear.module is module]
        rows = torch.cat([torch.arange(len(module.weight)) if linear.rows is None else linear.rows for linear in own])
        assert rows.sort().values.tolist() == list(range(len(module.weight)))
        with torch.no_grad():
            for number, linear in enumerate(own):
                linear.set_weight(torch.full_like(linear.weight(), float(number)))
        for number, linear in enumerate(own):
            assert (linear.weight() == number).all()


# Folding, done

NORMS = {
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
    "opt-post-norm": ("self_attn_layer_norm", "final_layer_norm"),
    "gemma2": ("input_layernorm", "pre_feedforward_layernorm"),
    "gemma3": ("input_layernorm", "pre_feedforward_layernorm"),
}


def fold(module: Any, layout: str, block: Block, roles: tuple[str, ...]) -> None:
    """Scale the inputs of one site's Linears, and take the scale back in what produces the input."""
    found_roles = by_role(block)
    site = next(site for site in block.sites if site.linears[0].role == roles[0])
    scale = torch.rand(site.inputs, generator=torch.Generator().manual_seed(1)) + 0.5
    if site.tie:
        scale = site.tie.average(scale)
    with torch.no_grad():
        for linear in site.linears:
            linear.set_weight(linear.weight() * scale)
        producer = {"o": "v", "down": "up", "fc2": "fc1"}.get(roles[0])
        if producer:
            if site.tie:
                scale = scale.view(KV_HEADS, -1, HEAD)[:, 0].flatten()
            scaled(found_roles[producer], 1 / scale)
            return
        names = NORMS.get(layout, ("input_layernorm", "post_attention_layernorm"))
        norm = module.get_submodule(f"{block.name}.{names[roles[0] != 'q']}")
        offset = 1 if layout.startswith("gemma") else 0
        norm.weight.copy_((norm.weight + offset) / scale - offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias /= scale


@pytest.mark.parametrize(("layout", "roles"), [(layout, roles) for layout in LAYOUTS for roles in SITES[layout]])
def test_a_scale_folds_exactly_where_it_is_said_to(layout: str, roles: tuple[str, ...], ids: Tensor) -> None:
    """Folding a scale changes no logit where a site folds, its tie respected, and changes them where it does not."""
    module, blocks = found(layout)
    with torch.no_grad():
        before = module(ids).logits
        fold(module, layout, blocks[0], roles)
        after = module(ids).logits
    same = torch.allclose(after, before, rtol=1e-4, atol=1e-4 * float(before.std()))
    assert same == SITES[layout][roles][2]


def test_a_scale_that_breaks_the_tie_does_not_fold(ids: Tensor) -> None:
    """With grouped queries an untied scale of o's input cannot be taken back in v: the tie is needed."""
    module, blocks = found("llama")
    roles = by_role(blocks[0])
    untied = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(1)) + 0.5
    with torch.no_grad():
        before = module(ids).logits
        roles["o"].set_weight(roles["o"].weight() * untied)
        scaled(roles["v"], 1 / untied.view(KV_HEADS, -1, HEAD)[:, 0].flatten())
        assert not torch.allclose(module(ids).logits, before, atol=1e-3)


ATTENTION = {"q": False, "k": False, "v": False, "o": True}


@pytest.mark.parametrize(
    ("config", "folds"),
    [
        # One norm feeds attention and MLP.
        (PhiConfig(**tiny.COMMON), {**ATTENTION, "fc1": False, "fc2": False}),
        (CohereConfig(**tiny.COMMON), {**ATTENTION, "gate": False, "up": False, "down": True}),
        # Norms follow attention and MLP; nothing but the residual sum comes before them.
        (Olmo2Config(**tiny.GROUPED), {**ATTENTION, "gate": False, "up": False, "down": True}),
        # The norm has no weight.
        (OlmoConfig(**tiny.GROUPED), {**ATTENTION, "gate": False, "up": False, "down": True}),
        # Norms of queries and keys are in no value's way.
        (
            Qwen3Config(**tiny.GEMMA),
            dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), True),
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_relatives_fold_only_where_they_can(config: Any, folds: dict[str, bool]) -> None:
    """Relatives of the supported layouts are covered, and never said to fold where a norm cannot take the scale."""
    blocks = find_blocks(tiny.module(config))
    for block in blocks:
        assert {linear.role: site.folds for site in block.sites for linear in site.linears} == folds
        assert block.uncovered == {}


def test_a_norm_between_two_linears_does_not_fold() -> None:
    """A norm inside attention or the MLP undoes a scale."""

    class Normed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.rms_norm(super().forward(x), (self.out_features,))

    module = tiny.module(LAYOUTS["llama"]())
    replaced(module.model.layers[1].self_attn, "v_proj", Normed)
    first, second = (folds(block) for block in find_blocks(module))
    assert first == {"q": True, "o": True, "gate": True, "down": True}
    assert second == {"q": True, "o": False, "gate": True, "down": True}


def folds(block: Block) -> dict[str, bool]:
    return {site.linears[0].role: site.folds for site in block.sites}


def replaced(parent: nn.Module, name: str, kind: type[nn.Linear]) -> None:
    """Put a Linear of another class, with the same weights, in the place of one."""
    before = getattr(parent, name)
    made = kind(before.in_features, before.out_features, bias=before.bias is not None)
    made.load_state_dict(before.state_dict())
    setattr(parent, name, made.requires_grad_(False))


def test_an_mlp_without_a_gate_is_activated_and_folds_by_its_activation() -> None:
    """Arcee's `down(act(up(x)))`: up is what fc1 is elsewhere; its squared ReLU takes no scale, a plain one does."""
    for activation, expected in (("relu2", False), ("relu", True), ("gelu", False)):
        (block, _) = find_blocks(tiny.module(ArceeConfig(**tiny.GROUPED, hidden_act=activation)))
        roles = by_role(block)
        assert (roles["fc1"].name, roles["fc2"].name) == (f"{block.name}.mlp.up_proj", f"{block.name}.mlp.down_proj")
        assert roles["fc1"].structure == "activated"
        assert folds(block) == {"q": True, "o": True, "fc1": True, "fc2": expected}


@pytest.mark.parametrize("bound", [1e-2, 8.0])
def test_a_clamp_between_values_and_the_output_projection_does_not_fold(bound: float) -> None:
    """A clamp is found whether or not the numbers of the model's own scale reach it."""
    for block in find_blocks(tiny.module(OlmoConfig(**tiny.GROUPED, clip_qkv=bound))):
        assert folds(block) == {"q": False, "o": False, "gate": False, "down": True}


def test_values_that_are_used_a_second_time_do_not_fold() -> None:
    """Values that the block adds to its output, hands on in an argument or keeps in a module have another reader."""

    class Adding(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.input_layernorm, self.self_attn = layer.input_layernorm, layer.self_attn
            self.post_attention_layernorm, self.mlp = layer.post_attention_layernorm, layer.mlp

        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            values = self.self_attn.v_proj(self.input_layernorm(hidden_states)).repeat(1, 1, 2)
            attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + attended + 0.1 * values
            return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    class Keeping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            return self.last

    module = tiny.module(LAYOUTS["llama"]())
    module.model.layers[0] = Adding(module.model.layers[0])
    replaced(module.model.layers[1].self_attn, "v_proj", Keeping)
    for block in find_blocks(module):
        assert folds(block) == {"q": True, "o": False, "gate": True, "down": True}


def test_a_weight_that_stands_in_two_blocks_takes_no_scale() -> None:
    """What one block would fold into it another would read."""
    module = tiny.module(LAYOUTS["llama"]())
    first, second = module.model.layers
    second.self_attn.v_proj.weight = first.self_attn.v_proj.weight
    second.post_attention_layernorm = first.post_attention_layernorm
    for block in find_blocks(module):
        assert folds(block) == {"q": False, "o": False, "gate": False, "down": True}


class Reordered(nn.Module):
    """A fused projection whose rows stand in another order, put back where its outputs are used."""

    def __init__(self, parent: nn.Module, name: str, placed: Tensor) -> None:
        super().__init__()
        self.order = placed.argsort()
        setattr(self, name, getattr(parent, name))
        setattr(parent, name, self)

    def forward(self, x: Tensor) -> Tensor:
        (linear,) = self.children()
        return linear(x)[..., self.order]


QKV_ROWS = {"q": torch.arange(64), "k": torch.arange(64, 96), "v": torch.arange(96, 128)}


@pytest.mark.parametrize("order", ["qkv", "vkq", "kqv"])
def test_the_order_of_a_fused_projection_of_q_k_and_v_is_asked_of_the_block(order: str) -> None:
    """Whatever comes first, the slices are what attention uses as such, and values fold."""
    module = tiny.module(LAYOUTS["phi3"]())
    placed = torch.cat([QKV_ROWS[role] for role in order])
    for layer in module.model.layers:
        Reordered(layer.self_attn, "qkv_proj", placed)
    for block in find_blocks(module):
        roles = by_role(block)
        for role in "qkv":
            assert torch.equal(placed[roles[role].rows], QKV_ROWS[role])
        assert folds(block) == {"q": True, "o": True, "gate": True, "down": True}


@pytest.mark.parametrize("placed", [torch.arange(256).roll(128), torch.arange(256).view(2, 128).T.flatten()])
def test_the_order_of_a_fused_gate_and_up_is_asked_of_the_block(placed: Tensor) -> None:
    """Up first, or one row of each in turns: gate is what is activated, and down's scale folds into up."""
    module = tiny.module(LAYOUTS["phi3"]())
    for layer in module.model.layers:
        Reordered(layer.mlp, "gate_up_proj", placed)
    for block in find_blocks(module):
        roles = by_role(block)
        assert torch.equal(placed[roles["gate"].rows], torch.arange(128))
        assert torch.equal(placed[roles["up"].rows], torch.arange(128, 256))
        assert folds(block)["down"]


def test_an_order_that_nobody_knows_is_not_covered() -> None:
    """A fused projection whose rows are mixed is refused, not cut up wrongly."""
    module = tiny.module(LAYOUTS["phi3"]())
    for layer in module.model.layers:
        Reordered(layer.self_attn, "qkv_proj", torch.randperm(128, generator=torch.Generator().manual_seed(0)))
    assert "self_attn.qkv_proj.qkv_proj.weight" in refusal(module)


def test_head_shapes_are_read_from_each_block() -> None:
    """A number of key/value heads that the configuration has wrong, and another one in every block, change nothing."""
    module = tiny.module(LAYOUTS["llama"]())
    module.config.num_key_value_heads = 1
    module.config.num_attention_heads = 16
    for block in find_blocks(module):
        assert [site.tie for site in block.sites] == [None, TIE, None, None]
        assert folds(block) == {"q": True, "o": True, "gate": True, "down": True}


def test_a_broken_weight_leaves_the_roles_as_they_are_named() -> None:
    """Where nothing can be told, whoever quantizes says which weight is broken."""
    module = tiny.module(LAYOUTS["llama"]())
    module.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    for block in find_blocks(module):
        assert folds(block) == {"q": True, "o": True, "gate": True, "down": True}


# What is not supported


def refusal(module: Any, **options: bool) -> str:
    with pytest.raises(InputError) as caught:
        find_blocks(module, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_gpt2_is_refused_by_name() -> None:
    """A Conv1D is named, with the layouts there are."""
    module = tiny.module(GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=4, vocab_size=96, n_positions=64, **tiny.TOKENS))
    for options in ({}, {"allow_partial": True}):
        message = refusal(module, **options)
        assert "transformer.h.0.attn.c_attn is a Conv1D (GPT-2 layout), which is not supported" in message
        assert "LLaMA-like, Gemma-like, OPT-like and GPT-NeoX-like" in message


@pytest.fixture
def unknown_experts() -> Any:
    """Mixtral, if its experts computed something else than their matrices say."""
    module = tiny.module(MIXTURES["mixtral"]())
    for layer in module.model.layers:
        own = layer.mlp.experts.forward
        layer.mlp.experts.forward = lambda *args, own=own: own(*args).tanh()
    return module


def test_experts_of_an_unknown_layout_are_refused_above_five_percent(unknown_experts: Any) -> None:
    """They are refused with the share of their weights, the largest of them, and the flag."""
    message = refusal(unknown_experts)
    experts = EXPERTS * 3 * HIDDEN * MLP + EXPERTS * HIDDEN
    share = experts / (experts + 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_HEADS * HEAD)
    assert message.startswith(f"{share:.0%} of the block weights are not Linears that can be quantized")
    assert f"model.layers.0.mlp.experts.gate_up_proj with {EXPERTS * 2 * MLP * HIDDEN} weights" in message
    assert (
        "model.layers.0.mlp.experts (MixtralExperts: gate_up_proj, down_proj) has experts that compute something else"
    ) in message
    assert "--allow-partial" in message


class NarrowMLP(nn.Module):
    """An expert of a layout that is not known: gate and up are one Linear."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(HIDDEN, 2 * MLP, bias=False)
        self.down_proj = nn.Linear(MLP, HIDDEN, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        gate, up = self.gate_and_up(states).chunk(2, -1)
        return self.down_proj(nn.functional.silu(gate) * up)


def test_lists_of_experts_of_another_layout_are_refused_by_name() -> None:
    """With what they are, and what to do; where they may stay in 16 bit, attention alone is quantized."""
    module = ListedForCausalLM(ListedConfig(**tiny.GROUPED, num_experts=EXPERTS)).eval().requires_grad_(False)
    for layer in module.model.layers:
        layer.mlp.experts = nn.ModuleList(NarrowMLP(module.config) for _ in range(EXPERTS))
    message = refusal(module)
    assert (
        "model.layers.0.mlp.experts is a list of 4 experts, and of such lists only those are known in which" in message
    )
    assert "leave out --trust-remote-code" in message
    assert "supported layouts" not in message
    assert "\n" not in message
    for block in find_blocks(module, allow_partial=True):
        assert [linear.role for linear in block.linears] == ["q", "k", "v", "o"]


def test_experts_of_an_unknown_layout_are_listed_with_sizes_when_allowed(unknown_experts: Any) -> None:
    """What stays in 16 bit is listed by name and size; attention is covered, and the norm that feeds it alone folds."""
    for index, block in enumerate(find_blocks(unknown_experts, allow_partial=True)):
        name = f"model.layers.{index}"
        assert block.uncovered == {
            f"{name}.mlp.gate.weight": EXPERTS * HIDDEN,
            f"{name}.mlp.experts.gate_up_proj": EXPERTS * 2 * MLP * HIDDEN,
            f"{name}.mlp.experts.down_proj": EXPERTS * HIDDEN * MLP,
        }
        assert [linear.role for linear in block.linears] == ["q", "k", "v", "o"]
        assert [site.folds for site in block.sites] == [True, True]


def test_a_few_uncovered_weights_need_no_flag() -> None:
    """Up to 5 % of the block weights may stay in 16 bit; they are listed."""
    module = tiny.module(LAYOUTS["llama"]())
    module.model.layers[0].mlp.extra = nn.Linear(16, 16)
    blocks = find_blocks(module)
    assert [block.uncovered for block in blocks] == [{"model.layers.0.mlp.extra.weight": 256}, {}]


def test_several_linears_of_one_role_are_not_covered() -> None:
    """Experts that are modules of their own read a part of the tokens each: none stands for the block's MLP."""
    module = tiny.module(LAYOUTS["llama"]())
    for layer in module.model.layers:
        layer.mlp.experts = nn.ModuleList([nn.ModuleDict({"up_proj": nn.Linear(HIDDEN, MLP, bias=False)})])
    assert "mlp.up_proj.weight" in refusal(module)
    blocks = find_blocks(module, allow_partial=True)
    assert "up" not in by_role(blocks[0])
    assert set(blocks[0].uncovered) == {
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
    }


def test_a_model_without_a_decoder_list_is_refused() -> None:
    """The blocks must be one list as long as the configuration says."""
    module = tiny.module(LAYOUTS["llama"]())
    module.config.num_hidden_layers = 7
    message = refusal(module)
    assert "LlamaForCausalLM has no list of 7 decoder blocks; supported layouts are LLaMA-like" in message


def test_a_model_without_attention_is_refused() -> None:
    """A state-space model is refused by its class."""
    module = tiny.module(MambaConfig(hidden_size=HIDDEN, num_hidden_layers=2, vocab_size=96, **tiny.TOKENS))
    assert "MambaForCausalLM has no attention heads; supported layouts are" in refusal(module)


@pytest.mark.parametrize("options", [{}, {"multi_query": False}, {"new_decoder_architecture": True, "num_kv_heads": 2}])
def test_falcon_in_each_of_its_arrangements_folds_where_it_can(options: dict[str, Any]) -> None:
    """One key and value for all heads, one for each, or one for a group: the block is asked, and one norm feeds all."""
    config = FalconConfig(
        vocab_size=96, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS, **options, **tiny.TOKENS
    )
    for block in find_blocks(tiny.module(config)):
        expected = {"q": "num_kv_heads" in options, "o": True, "fc1": "num_kv_heads" in options, "fc2": False}
        assert folds(block) == expected


def test_a_model_whose_activation_is_not_named_is_refused() -> None:
    """Without the activation's name importances cannot be computed; which layouts are supported is said."""
    module = tiny.module(BloomConfig(vocab_size=96, hidden_size=HIDDEN, n_layer=2, n_head=HEADS, **tiny.TOKENS))
    message = refusal(module)
    assert message.startswith("bloom is no supported layout: its configuration names no activation function")
    assert "GPT-NeoX-like" in message
    assert "--allow-partial does not help" in message


def test_a_model_that_cannot_be_run_is_refused() -> None:
    """Whatever its own code raises is one line."""
    module = tiny.module(LAYOUTS["llama"]())
    module.model.layers[0].mlp.forward = lambda x: x @ torch.zeros(3, 3)
    assert "LlamaForCausalLM cannot be run on 16 tokens: mat1 and mat2" in refusal(module)


# The whole trial


@layouts
@pytest.mark.parametrize("scales", ["foldable", "linear"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_trial_on_every_layout(tmp_path: Path, layout: str, scales: Any, symmetric: bool) -> None:
    """Both methods give a finite result that differs from full precision, and leave the weights bit for bit."""
    model = tiny.model(LAYOUTS[layout]())
    bench = tiny.bench(model, tmp_path)
    text = tiny.sequences([20, 31, 8, 20, 20, 13, 20, 20, 20, 20], seed=2)
    before = tiny.state(model.module)
    full = run_trial(bench, None, text)
    results = {}
    for method in ("rtn", "gwh-praq-v2"):
        setting = Setting(method=method, group_size=32, n_calib=8, n_grid=5, scales=scales, symmetric=symmetric)
        result = results[method] = run_trial(bench, Plan.uniform(setting), text)
        assert result.outcome == "complete"
        assert result.score is not None
        assert result.score.nll.isfinite().all()
        assert not torch.equal(result.score.nll, full.score.nll)
        assert [layer.name for layer in result.layers] == [
            linear.name for block in bench.blocks for linear in block.linears
        ]
        assert tiny.same_bits(before, tiny.state(model.module))
    for block in bench.blocks:
        for site in block.sites:
            names = {linear.name for linear in site.linears}
            own = [layer for layer in results["gwh-praq-v2"].layers if layer.name in names]
            # A shared scale must win on the sum, an own one everywhere.
            for layers in [own] if scales == "foldable" else [[layer] for layer in own]:
                assert sum(layer.loss for layer in layers) <= sum(layer.nearest_loss for layer in layers)
            if scales == "foldable":
                assert len({layer.alpha for layer in own}) == 1
                assert site.folds or own[0].alpha == 0
    assert any(layer.alpha > 0 for layer in results["gwh-praq-v2"].layers)
    assert all(layer.alpha == 0 for layer in results["rtn"].layers)
    assert torch.equal(run_trial(bench, None, text).score.nll, full.score.nll)
