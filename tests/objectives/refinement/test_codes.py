"""Codes move by a step where a block's outputs come nearer to full precision's, and only then."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from objectives.errors import InputError
from objectives.model.roles import Block
from objectives.progress import silent
from objectives.refined import Refined, moved, moves_between
from objectives.refinement import block_codes, codes, course, moving
from objectives.refinement.options import RefinementOptions, RefinementText, TooLittleTimeError
from objectives.refinement.refine import forget_begun, is_finished, refine
from objectives.scoring import score_all
from objectives.trial import Bench, quantized
from quant.plan import Plan
from quant.scheme import IntWeight, Scheme, loaded
from quant.setting import Setting
from storage.paths import Paths
from storage.results import ResultStore
from tests.objectives import tiny
from tests.objectives.refinement.killing import Killed, killing_at

AWQ = Setting(method="gw-awq", group_size=32, symmetric=False, n_calib=8, n_grid=3)
PLAN = Plan.uniform(AWQ)
# A step of the scales that is as good as none.
OPTIONS = RefinementOptions(rate=1e-9, batch_tokens=64, code_steps=20, code_batch_tokens=64)
TEXT = RefinementText(
    training=replace(tiny.sequences([16] * 20, seed=3), source="some text"),
    validation=replace(tiny.sequences([16] * 6, seed=4), source="some text"),
)


@pytest.fixture(scope="module")
def usual(bench: Bench, home: Path) -> Refined:
    return refined_by(bench, ResultStore(Paths(home).results))


def refined_by(bench: Bench, store: ResultStore, options: RefinementOptions = OPTIONS, plan: Plan = PLAN) -> Refined:
    return refine(bench, plan, TEXT, options, store, silent)


def test_codes_move_by_one_step_and_the_model_is_nearer(bench: Bench, usual: Refined) -> None:
    """What is written are the codes that moved; what is told of them is what a trial would score."""
    before = tiny.state(bench.model.module)
    told = usual.refinement.moves
    assert told is not None
    assert told.kept
    assert told.after < 0.9 * told.before
    with quantized(bench, PLAN, with_codes=True) as plain:
        pass
    with quantized(replace(bench, refined=usual), PLAN, with_codes=True) as result:
        state = tiny.state(bench.model.module)
        teacher = bench.teacher(TEXT.validation)
        measured = score_all(bench.model.module, TEXT.validation, "", silent, teacher).mean("kl")
    changes = [result.codes[name].codes.short() - plain.codes[name].codes.short() for name in plain.codes]
    assert {int(change) for matrix in changes for change in matrix.unique()} == {-1, 0, 1}
    share = sum(int(change.count_nonzero()) for change in changes) / sum(change.numel() for change in changes)
    assert told.share == pytest.approx(share)
    for name, weight in result.codes.items():
        assert 0 <= int(weight.codes.min()) <= int(weight.codes.max()) <= 15
        assert torch.equal(state[f"{name}.weight"], loaded(weight))
    assert measured == pytest.approx(usual.refinement.after, rel=1e-6)
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert not any(parameter.requires_grad for parameter in bench.model.module.parameters())


def test_it_says_how_many_codes_moved(usual: Refined) -> None:
    """In the sentence of notes and cards."""
    assert usual.refinement.moves is not None
    share = f"{100 * usual.refinement.moves.share:.1f}"
    told = f"{share} % of the codes were moved by a step for the outputs of blocks (20 steps each on 20 sequences)"
    assert told in usual.refinement.sentence()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 8])
def test_moves_and_the_codes_they_make_are_each_others_inverse(symmetric: bool, bits: int) -> None:
    """Of any kind of codes, up and down."""
    scheme = Scheme(bits=bits, symmetric=symmetric)
    before = torch.randint(scheme.lowest + 1, scheme.highest, (6, 9), generator=torch.Generator().manual_seed(1))
    change = torch.randint(-1, 2, (6, 9), generator=torch.Generator().manual_seed(2))
    dtype = torch.uint8 if scheme.highest > 127 else torch.int8
    weight, other = (
        IntWeight(codes=codes.to(dtype), scale=torch.ones(6, 1), zero=None, group_size=9, bits=bits)
        for codes in (before, before + change)
    )
    assert torch.equal(moved(weight, moves_between(weight, other)).codes, other.codes)
    assert len(moves_between(weight, other)) == int(change.count_nonzero())
    assert moved(weight, None) is weight


@pytest.mark.parametrize(
    "changed",
    [
        replace(OPTIONS, code_steps=5),
        replace(OPTIONS, code_drift=0.05),
        replace(OPTIONS, code_batch_tokens=32),
        replace(OPTIONS, seed=1),
    ],
    ids=["steps", "drift", "batch", "seed"],
)
def test_every_option_changes_the_codes(
    bench: Bench, usual: Refined, store: ResultStore, changed: RefinementOptions
) -> None:
    other = refined_by(bench, store, changed)
    assert not tiny.same_bits(usual.moves, other.moves)
    assert other.refinement.moves is not None
    assert (other.refinement.moves.steps, other.refinement.moves.drift) == (changed.code_steps, changed.code_drift)


def test_signs_of_small_differences_outlive_float16() -> None:
    """Of a wide block the gradient of a mean is below the least number of that type; scaled, it is exact elsewhere."""
    outputs = (1e-3 * torch.randn(64, 4096, generator=torch.Generator().manual_seed(1))).half().requires_grad_()
    block_codes._signed_loss(outputs.float()).backward()
    assert outputs.grad is not None
    assert float((outputs.grad.sign() == outputs.detach().sign()).float().mean()) > 0.99
    exact = outputs.detach().float().requires_grad_()
    block_codes._signed_loss(exact).backward()
    assert exact.grad is not None
    ratio = exact.grad / (2 * exact.detach() / exact.numel())
    assert set(ratio[exact.detach() != 0].log2().unique().tolist()) == {11.0}


def test_a_smaller_drift_moves_fewer_codes(bench: Bench, usual: Refined, store: ResultStore) -> None:
    """Only those that were as near to their boundary."""
    fewer = refined_by(bench, store, replace(OPTIONS, code_drift=0.02))
    assert 0 < sum(map(len, fewer.moves.values())) < sum(map(len, usual.moves.values())) / 2


def test_codes_that_moved_are_read_whatever_is_tuned_after_them(
    bench: Bench, usual: Refined, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rate, passes, tokens of a step and parts have no say in where codes move."""
    monkeypatch.setattr(moving, "move_codes", lambda *_: pytest.fail("codes were moved again"))
    tuned = replace(OPTIONS, rate=1e-3, passes=2, batch_tokens=32, parts=("norms",))
    again = refined_by(bench, ResultStore(Paths(home).results), tuned)
    assert tiny.same_bits(usual.moves, again.moves)


def test_codes_that_are_no_nearer_on_what_is_held_back_stay(
    bench: Bench, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved for outputs that are wrong on purpose: the block is nearer to them, the model is not, and it is said so."""
    real = codes.QuantizedPrefix.follow

    def shifted(prefix: codes.QuantizedPrefix, block: object) -> None:
        real(prefix, block)  # type: ignore[arg-type]
        for passage in prefix._passages:
            passage.full = passage.full + 3.0

    monkeypatch.setattr(codes.QuantizedPrefix, "follow", shifted)
    refined = refined_by(bench, store)
    told = refined.refinement.moves
    assert told is not None
    assert told.share > 0
    assert not told.kept
    assert not refined.moves
    assert refined.refinement.before == told.before
    assert refined.refinement.sentence().endswith("codes, group scales, norms and biases are as they were")


def test_killed_between_blocks_and_gone_on_with_it_gives_the_same_bytes(
    bench: Bench, usual: Refined, store: ResultStore, tmp_path: Path
) -> None:
    """What was learned of a block is read, and nothing of it is left when it is forgotten."""

    with pytest.raises(Killed):
        refine(bench, PLAN, TEXT, OPTIONS, store, killing_at("moving codes"))
    assert list(tmp_path.glob("home/results/*codes*"))
    learned: list[str] = []
    real = codes.learn

    def counted(prefix: object, block: object, *others: object) -> object:
        learned.append(str(block))
        return real(prefix, block, *others)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "learn", counted)
        again = refined_by(bench, store)
    assert len(learned) == len(bench.blocks) - 1
    assert tiny.same_bits({**usual.moves, **usual.scales}, {**again.moves, **again.scales})
    assert usual.refinement == again.refinement
    forget_begun(bench, PLAN, TEXT, OPTIONS, store)
    assert not list(tmp_path.glob("home/results/*codes*"))


def test_a_time_that_ends_between_blocks_keeps_those_that_were_reached(
    bench: Bench, usual: Refined, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called again without a limit it ends as if there had been none."""
    seconds: Iterator[int] = iter(range(100_000))
    monkeypatch.setattr(codes, "monotonic", lambda: float(next(seconds)))
    short = refined_by(bench, store, replace(OPTIONS, timeout=2.0))
    assert 0 < len(short.moves) < len(usual.moves)
    assert short.refinement.steps == 0
    assert short.refinement.after < short.refinement.before
    assert short.key != usual.key
    assert tiny.same_bits(usual.moves, refined_by(bench, store).moves)


def test_a_time_that_is_less_than_a_block_is_refused(bench: Bench, store: ResultStore) -> None:
    """With the remedy, and the model as it was."""
    before = tiny.state(bench.model.module)
    with pytest.raises(InputError, match=r"less than moving the codes of one of 2 blocks takes .* --refine-codes 0"):
        refined_by(bench, store, replace(OPTIONS, timeout=1e-9))
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert not any(parameter.requires_grad for parameter in bench.model.module.parameters())


def test_a_state_that_is_damaged_is_begun_anew(
    bench: Bench, usual: Refined, store: ResultStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said so, and the result is the same."""

    with pytest.raises(Killed):
        refine(bench, PLAN, TEXT, OPTIONS, store, killing_at("moving codes"))
    [path] = tmp_path.glob("home/results/*codes*")
    path.write_bytes(path.read_bytes()[:-100])
    assert tiny.same_bits(usual.moves, refined_by(bench, store).moves)
    assert any("codes are moved anew" in record.message for record in caplog.records)


def test_codes_of_a_mixture_of_experts_are_refused_with_the_remedy(tmp_path: Path) -> None:
    """Which experts a token reaches changes with the codes; without moving codes it is refined."""
    bench = tiny.bench(tiny.model(tiny.MIXTURES["mixtral"](), dtype=torch.bfloat16), tmp_path / "home")
    store = ResultStore(Paths(tmp_path / "home").results)
    with pytest.raises(InputError, match="mixture of experts cannot be followed; use --refine-codes 0"):
        refined_by(bench, store)
    fixed = refined_by(bench, store, replace(OPTIONS, code_steps=0))
    assert fixed.refinement.moves is None


def test_the_same_small_time_given_again_and_again_ends(
    bench: Bench, usual: Refined, store: ResultStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Every call does at least one block or one step, and the codes are those of one call without a limit."""
    short = replace(OPTIONS, timeout=1e-9)
    with pytest.raises(TooLittleTimeError):
        refined_by(bench, store, short)
    calls, refined = 1, refined_by(bench, store, short)
    while not is_finished(refined, store):
        calls, refined = calls + 1, refined_by(bench, store, short)
        assert calls < 10
    assert calls >= len(OPTIONS.steps(TEXT.training))
    assert tiny.same_bits(usual.moves, refined.moves)
    assert usual.refinement.moves == refined.refinement.moves


def test_codes_that_all_moved_are_read_without_following_the_text(
    bench: Bench, usual: Refined, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is scored for them again either, so that another rate begins with its first step."""

    with pytest.raises(Killed):
        refine(bench, PLAN, TEXT, OPTIONS, store, killing_at("refining"))
    for module in (codes, block_codes):
        monkeypatch.setattr(module, "QuantizedPrefix", lambda *_: pytest.fail("followed again"))
    monkeypatch.setattr(moving, "score_all", lambda *_: pytest.fail("scored again"))
    again = refined_by(bench, store, replace(OPTIONS, rate=2e-9))
    assert tiny.same_bits(usual.moves, again.moves)
    assert usual.refinement.moves == again.refinement.moves


def test_moves_of_other_codes_are_not_applied(
    bench: Bench, usual: Refined, store: ResultStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Quantizing may give other codes by another number of threads: they are moved anew, and it is said so."""

    with pytest.raises(Killed):
        refine(bench, PLAN, TEXT, OPTIONS, store, killing_at("moving codes"))
    [path] = tmp_path.glob("home/results/*codes*")
    record, moves = store.load(path.stem)
    store.save(path.stem, {**record, "codes": "others"}, {name: -places for name, places in moves.items()})
    assert tiny.same_bits(usual.moves, refined_by(bench, store).moves)
    assert any("quantizing gave other codes than before" in message for message in caplog.messages)


def test_memory_that_runs_out_halves_what_is_run_at_a_time(
    bench: Bench,
    store: ResultStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Codes move as before it did, with fewer tokens to a step."""
    real = codes.QuantizedPrefix.difference

    def narrow(prefix: codes.QuantizedPrefix, block: Block, number: int) -> torch.Tensor:
        if len(prefix._passages[number].full) > 2:
            raise torch.OutOfMemoryError("not enough")
        return real(prefix, block, number)

    monkeypatch.setattr(codes.QuantizedPrefix, "difference", narrow)
    refined = refined_by(bench, store)
    assert refined.moves
    assert any("moving codes by 32 tokens at a time from here on" in message for message in caplog.messages)
    fewer = refined_by(bench, ResultStore(Paths(tmp_path / "other").results), replace(OPTIONS, code_batch_tokens=32))
    assert tiny.same_bits(refined.moves, fewer.moves)


@pytest.mark.parametrize("code_steps", [20, 0], ids=["codes", "scales"])
def test_a_model_whose_gradients_do_not_fit_is_refused_with_the_remedy(
    bench: Bench, store: ResultStore, monkeypatch: pytest.MonkeyPatch, code_steps: int
) -> None:
    """After batches were halved down to one sequence; the model is as it was."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("not enough")

    monkeypatch.setattr(codes.QuantizedPrefix, "difference", full)
    monkeypatch.setattr(course, "pull_back", full)
    before = tiny.state(bench.model.module)
    with pytest.raises(InputError, match=r"refining tiny ran out of memory on cpu; give shorter sequences"):
        refined_by(bench, store, replace(OPTIONS, code_steps=code_steps))
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    assert not any(parameter.requires_grad for parameter in bench.model.module.parameters())
