"""Linears that have different settings are each quantized, counted and kept as their own setting says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from objectives.calibration.calibration import Calibration
from objectives.calibration.recording import BlockStatistics
from objectives.errors import InputError
from objectives.model.folding import changed_modules
from objectives.model.roles import Block
from objectives.quantization import model_size
from objectives.results import load_result, measurement_key, save_result
from objectives.suitability import require_suitable
from objectives.trial import Bench, quantized, run_trial
from quant.plan import Plan
from quant.setting import Setting
from storage.errors import DamagedEntryError
from storage.results import ResultStore
from tests.objectives import tiny

SHARING = Setting(method="gw-awq", n_calib=8, n_grid=5)
ALONE = replace(SHARING, bits=16)
FINE, COARSE = replace(SHARING, group_size=32), replace(SHARING, group_size=64, n_calib=4)
TEXT = tiny.sequences([12] * 20, seed=2)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tiny.bench(tiny.model(tiny.LAYOUTS["llama"](), dtype=torch.bfloat16), tmp_path / "home")


def names(block: Block) -> list[str]:
    return [linear.name for linear in block.linears]


def by_block(bench: Bench) -> Plan:
    """Small groups in the first block, large ones and fewer samples in the second."""
    first, second = bench.blocks
    return Plan(named={**dict.fromkeys(names(first), FINE), **dict.fromkeys(names(second), COARSE)})


def states(bench: Bench, plan: Plan | None) -> list[list[Tensor]]:
    """Every tensor that quantizing with `plan` leaves, by block, norms and biases included."""
    with quantized(bench, plan):
        return [
            [tensor.clone() for module in changed_modules(block) for tensor in module.state_dict().values()]
            for block in bench.blocks
        ]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(weight, other) for weight, other in zip(first, second, strict=True))


# What is quantized


@pytest.mark.parametrize("layout", ["llama", "opt", "phi3", "gpt-neox"])
def test_two_settings_in_two_blocks_give_what_each_gives_alone(layout: str, tmp_path: Path) -> None:
    """Weights, folded norms, codes and losses are to the last bit those of the two uniform plans."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS[layout]()), tmp_path)
    plans = (Plan.uniform(FINE), Plan.uniform(COARSE))
    mixed, fine, coarse = (states(bench, plan) for plan in (by_block(bench), *plans))
    assert same(mixed[0], fine[0])
    assert same(mixed[1], coarse[1])
    assert not same(mixed[1], fine[1])
    made = []
    for plan in (by_block(bench), *plans):
        with quantized(bench, plan, with_codes=True) as found:
            made.append(found)
    assert made[0].layers == (
        *(layer for layer in made[1].layers if layer.depth == 0),
        *(layer for layer in made[2].layers if layer.depth == 1),
    )
    assert made[0].codes.keys() == {name for block in bench.blocks for name in names(block)}
    for name in names(bench.blocks[1]):
        assert torch.equal(made[0].codes[name].codes, made[2].codes[name].codes)


def test_linears_of_one_input_may_differ_where_they_share_no_scale(bench: Bench) -> None:
    """Nearest rounding, and scales of a Linear's own, need no agreement."""
    for fine in (Setting(method="rtn", group_size=32, n_calib=8), replace(FINE, scales="linear")):
        coarse = replace(fine, group_size=64)
        query = "model.layers.0.self_attn.q_proj"
        plan = Plan(named={query: coarse}, others=fine)
        found = {}
        for name, chosen_plan in (("mixed", plan), ("fine", Plan.uniform(fine)), ("coarse", Plan.uniform(coarse))):
            with quantized(bench, chosen_plan):
                found[name] = {
                    linear.name: linear.weight().clone() for block in bench.blocks for linear in block.linears
                }
        for linear, weight in found["mixed"].items():
            assert torch.equal(weight, found["coarse" if linear == query else "fine"][linear])


@pytest.mark.parametrize("change", [{"group_size": 64}, {"n_grid": 4}, {"method": "rtn"}, {"scales": "linear"}])
def test_linears_that_share_a_scale_have_to_agree(bench: Bench, change: dict[str, object], tmp_path: Path) -> None:
    """One line names them; nothing was calibrated."""
    plan = Plan(named={"model.layers.0.self_attn.k_proj": replace(FINE, **change)}, others=FINE)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        run_trial(bench, plan, TEXT)
    message = str(caught.value)
    assert message.startswith("model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, ")
    assert "share one foldable input scale and have 2 settings; give them the same one" in message
    assert "\n" not in message
    assert not (tmp_path / "home" / "calibration").exists()


def test_a_plan_has_to_cover_the_model_and_nothing_else(bench: Bench) -> None:
    """Unknown names and Linears without a setting are refused in one line."""
    for name in ("model.layers.7.mlp.up_proj", "lm_head"):
        with pytest.raises(InputError) as caught:
            require_suitable(bench.blocks, Plan(named={name: FINE}, others=FINE))
        assert str(caught.value) == (
            f"the plan has settings for {name}, which the decoder blocks of this model do not have; leave them out "
            "(head and embeddings stay in 16 bit)"
        )
    with pytest.raises(
        InputError, match=r"no setting for model\.layers\.1\.self_attn\.q_proj, .* and 4 more; name them"
    ):
        require_suitable(bench.blocks, Plan(named=dict.fromkeys(names(bench.blocks[0]), FINE)))


def test_a_group_size_is_held_against_the_linears_that_have_it(bench: Bench) -> None:
    """128 suits the one Linear with as many inputs, and no other."""
    wide = replace(FINE, group_size=128)
    require_suitable(bench.blocks, Plan(named={"model.layers.0.mlp.down_proj": wide}, others=FINE))
    with pytest.raises(InputError, match="group size 128 does not divide the input widths 64 of this model"):
        require_suitable(bench.blocks, Plan(named={"model.layers.0.self_attn.o_proj": wide}, others=FINE))


# What is left in 16 bit


@pytest.mark.parametrize("layout", ["llama", "opt", "phi3", "gpt-neox"])
def test_what_is_left_alone_is_as_it_was(layout: str, tmp_path: Path) -> None:
    """Nothing of a block changes; the other block is quantized as it is everywhere."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS[layout]()), tmp_path)
    first, second = bench.blocks
    plan = Plan(named=dict.fromkeys(names(first), ALONE), others=FINE)
    untouched = states(bench, None)
    mixed, fine = states(bench, plan), states(bench, Plan.uniform(FINE))
    assert same(mixed[0], untouched[0])
    assert same(mixed[1], fine[1])
    assert not same(mixed[1], untouched[1])
    with quantized(bench, plan, with_codes=True) as made:
        assert made.codes.keys() == set(names(second))
        assert {layer.name for layer in made.layers if layer.final_loss == 0} == set(names(first))


def test_nothing_is_read_for_blocks_that_are_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring a single site costs no more than that."""
    read: list[int] = []
    of_block = Calibration.read

    def noted(self: Calibration, block: Block, samples: int) -> BlockStatistics:
        read.append(block.index)
        return of_block(self, block, samples)

    monkeypatch.setattr(Calibration, "read", noted)
    with quantized(bench, Plan(named=dict.fromkeys(names(bench.blocks[1]), FINE), others=ALONE)):
        assert read == [1]


@pytest.mark.parametrize("left", ["v_proj", "up_proj"])
def test_rows_left_in_16_bit_take_the_scale_of_what_reads_them(left: str, bench: Bench) -> None:
    """The product of both is what it was, but for rounding: the fold is whole."""
    reader = {"v_proj": "self_attn.o_proj", "up_proj": "mlp.down_proj"}[left]
    fine = replace(FINE, bits=8, group_size=64)
    plan = Plan(named={f"model.layers.0.{reader}": fine}, others=ALONE)
    divided = next(linear for linear in bench.blocks[0].linears if linear.name.endswith(left))
    # A few large inputs, so that scaling helps.
    divided.set_weight(torch.cat([8 * divided.weight()[:4], divided.weight()[4:]]))
    before = divided.weight().float().clone()
    with quantized(bench, plan, with_codes=True) as made:
        scale = made.folded[f"model.layers.0.{reader}"].inputs
        assert scale is not None
        ratio = before / divided.weight().float()
        if left == "up_proj":
            assert torch.allclose(ratio, scale[:, None].expand_as(ratio), rtol=0.01)
        assert not torch.equal(divided.weight().float(), before)
    score = run_trial(bench, plan, TEXT).score
    assert score is not None
    assert score.mean_kl == pytest.approx(0, abs=1e-3)


def test_unquantized_linears_count_as_they_are_stored(bench: Bench) -> None:
    """Sixteen bits each, and none of codes or scales."""
    first, second = bench.blocks
    plan = Plan(named={**dict.fromkeys(names(first), ALONE), **dict.fromkeys(names(second), replace(FINE, bits=8))})
    size = model_size(bench.model, bench.blocks, plan)
    assert size.bits_per_weight == (16 + 8.5) / 2
    assert (size.codes, size.rest) == (size.weights / 2, size.weights)
    require_suitable(bench.blocks, Plan.uniform(replace(ALONE, group_size=48)))


# What it takes


def test_bits_are_those_of_each_linear(bench: Bench) -> None:
    """Blocks are equally large, so their mean is that of the two settings; parts add up to the whole."""
    fine, coarse, mixed = (
        model_size(bench.model, bench.blocks, plan)
        for plan in (Plan.uniform(FINE), Plan.uniform(COARSE), by_block(bench))
    )
    assert (fine.bits_per_weight, coarse.bits_per_weight) == (4.5, 4.25)
    assert mixed.bits_per_weight == 4.375
    assert mixed.codes == fine.codes == coarse.codes == fine.weights / 2
    assert mixed.scales == (fine.scales + coarse.scales) / 2
    assert mixed.model_bytes == int(mixed.codes + mixed.scales + mixed.rest + mixed.outside)
    total = sum(parameter.numel() for parameter in bench.model.module.parameters())
    assert mixed.outside == 2 * (total - mixed.weights)


def test_full_precision_has_no_codes(bench: Bench) -> None:
    """Its blocks' weights are what is not quantized."""
    size = model_size(bench.model, bench.blocks, None)
    assert (size.codes, size.scales, size.rest) == (0, 0, 2 * size.weights)


def test_kept_rows_are_no_codes(bench: Bench) -> None:
    """Rows in 16 bit are counted apart from codes and scales."""
    half = model_size(bench.model, bench.blocks, Plan.uniform(Setting(method="awq-mixed", keep_ratio=0.5)))
    assert half.rest == half.weights
    assert half.codes == half.weights / 4


# What is kept


def test_a_result_of_a_plan_is_kept_with_depth_role_and_parts(bench: Bench, tmp_path: Path) -> None:
    """It comes back as it was measured, mixed or uniform or full precision."""
    store = ResultStore(tmp_path / "results")
    for plan in (by_block(bench), Plan.uniform(FINE), None):
        result = run_trial(bench, plan, TEXT)
        save_result(store, "key", result)
        found = load_result(store, "key")
        assert (found.plan, found.size, found.layers) == (result.plan, result.size, result.layers)
        assert found.setting == (FINE if plan is not None and plan.is_uniform else None)
    roles = [(layer.depth, layer.role) for layer in run_trial(bench, by_block(bench), TEXT).layers]
    assert roles == [(depth, role) for depth in (0, 1) for role in ("q", "k", "v", "o", "gate", "up", "down")]


def test_a_result_of_another_format_is_not_misread(bench: Bench, tmp_path: Path) -> None:
    """It is refused as damaged, which is what is measured again."""
    store = ResultStore(tmp_path / "results")
    save_result(store, "key", run_trial(bench, None, TEXT))
    record, tensors = store.load("key")
    store.save("key", {name: value for name, value in record.items() if name != "format"}, tensors)
    with pytest.raises(DamagedEntryError, match="has format None, and this version reads"):
        load_result(store, "key")


def test_a_result_from_before_divergence_has_none(bench: Bench, tmp_path: Path) -> None:
    """It is read for what it has, and never as a divergence of nothing."""
    store = ResultStore(tmp_path / "results")
    save_result(store, "key", run_trial(bench, Plan.uniform(FINE), TEXT))
    record, tensors = store.load("key")
    assert {"kl", "flips"} <= tensors.keys()
    older = {name: values for name, values in tensors.items() if name not in ("kl", "flips")}
    store.save("key", {**record, "format": 5}, older)
    score = load_result(store, "key").score
    assert score is not None
    assert score.kl is score.flips is score.mean_kl is score.percent_flips is None
    assert score.mean_nll == pytest.approx(float(tensors["nll"].sum() / tensors["tokens"].sum()))


def test_the_key_is_that_of_what_is_done(bench: Bench) -> None:
    """However a uniform plan was said it has one key; another setting of one Linear has another."""
    uniform, mixed = Plan.uniform(FINE), by_block(bench)
    everything = Plan(named={name: FINE for block in bench.blocks for name in names(block)})
    assert measurement_key(bench, everything, TEXT) == measurement_key(bench, uniform, TEXT)
    first = names(bench.blocks[0])[0]
    others = [
        mixed,
        Plan(named={**mixed.named, first: replace(FINE, n_grid=4)}),
        Plan(named={**mixed.named, first: replace(FINE, n_calib=4)}),
        Plan.uniform(COARSE),
    ]
    keys = {measurement_key(bench, plan, TEXT) for plan in (uniform, *others)}
    assert len(keys) == 5
    unread = Plan(named={name: replace(setting, beta=0.1, tau=0.3) for name, setting in mixed.named.items()})
    assert measurement_key(bench, unread, TEXT) == measurement_key(bench, mixed, TEXT)
