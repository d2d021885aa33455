"""How many tokens reach each expert is counted once, and said wherever it matters."""

from pathlib import Path

from objectives.calibration.reach import expert_tokens
from objectives.progress import silent
from objectives.trial import run_trial
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny
from tests.objectives.tiny import EXPERTS, HIDDEN, MIXTURES, MLP

AWQ = Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5)
WIDTHS = {"gate_proj": HIDDEN, "up_proj": HIDDEN, "down_proj": MLP}


def test_the_tokens_of_every_expert_are_counted_from_the_cache(tmp_path: Path) -> None:
    """Every token of the samples is with two experts of each block; a result says how many each matrix knows of."""
    bench = tiny.bench(tiny.model(MIXTURES["mixtral"]()), tmp_path)
    bench.calibration.ensure([8], silent)
    counts = expert_tokens(bench.calibration, bench.blocks, 8)
    tokens = sum(map(len, bench.calibration.text[:8].ids))
    assert list(counts) == [f"model.layers.{index}.mlp.experts" for index in range(2)]
    assert all(len(own) == EXPERTS and sum(own) == 2 * tokens for own in counts.values())
    for layer in run_trial(bench, Plan.uniform(AWQ), tiny.sequences([20], seed=2)).layers:
        owner, _, name = layer.name.partition(".experts.")
        expected = counts[f"{owner}.experts"][int(name.partition(".")[0])] if name else None
        assert layer.tokens == expected
        assert layer.own_share == (None if expected is None else expected / (expected + WIDTHS[name.partition(".")[2]]))


def test_what_routers_chose_is_counted_with_every_token_sent_through_every_expert(tmp_path: Path) -> None:
    """With `--route-all` the table, and how often an expert is used, are what they are without it."""
    model = tiny.model(MIXTURES["mixtral"]())
    counts = []
    for route_all in (False, True):
        bench = tiny.bench(model, tmp_path, route_all=route_all)
        bench.calibration.ensure([8], silent)
        counts.append(expert_tokens(bench.calibration, bench.blocks, 8))
        layers = run_trial(bench, Plan.uniform(AWQ), tiny.sequences([20], seed=2)).layers
        routed = [layer for layer in layers if layer.tokens is not None]
        assert {layer.own_share == 1.0 for layer in routed} == {route_all}
        counts.append({layer.name: [layer.tokens or 0] for layer in routed})
    assert counts[:2] == counts[2:]


def test_a_model_without_experts_has_none(tmp_path: Path) -> None:
    """Nothing is read for it."""
    bench = tiny.bench(tiny.model(tiny.LAYOUTS["llama"]()), tmp_path)
    assert expert_tokens(bench.calibration, bench.blocks, 8) == {}
