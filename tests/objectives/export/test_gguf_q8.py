"""GGUF with embeddings and head in Q8_0: what ships is what is scored, and what that changes is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from objectives.bundled.text import MODEL_DIRECTORY
from objectives.errors import InputError, RunError
from objectives.export.formats import Export, Proof, find_format
from objectives.export.gguf_q8 import GgufQ8
from objectives.export.manifest import Manifest
from objectives.export.reading import GGUF, load_directory
from objectives.export.writing import write_model
from objectives.progress import silent
from objectives.trial import Bench
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny

gguf = pytest.importorskip("gguf")
PLAN = Plan.uniform(Setting(method="gw-awq", group_size=32, n_calib=8, n_grid=5))
TEXT = tiny.sequences([20] * 10, seed=2)


def made(tmp_path: Path, tied: bool = False) -> Bench:
    config = tiny.LAYOUTS["llama"]()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    config.vocab_size, config.tie_word_embeddings = len(tokenizer), tied
    model = replace(tiny.model(config, dtype=torch.bfloat16), tokenizer=tokenizer)
    # So sure of itself that rounding its head shows.
    model.module.lm_head.weight.mul_(20)
    return tiny.bench(model, tmp_path / "home")


def write(bench: Bench, target: Path) -> dict[str, Manifest]:
    directories = {name: target / name for name in ("gguf", "gguf-q8")}
    proof = Proof(text=TEXT, perplexity=None)
    return write_model(Export(bench=bench, plan=PLAN, directories=directories, proof=proof), silent)


@pytest.mark.slow
@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("tied", [True, False])
def test_the_proof_measures_what_ships(tied: bool, tmp_path: Path) -> None:
    """Embeddings of the file are in the model that is scored, which is restored; a note has both numbers."""
    bench = made(tmp_path, tied)
    before = tiny.state(bench.model.module)
    manifests = write(bench, tmp_path)
    assert tiny.same_bits(before, tiny.state(bench.model.module))
    plain, rounded = manifests["gguf"].proof, manifests["gguf-q8"].proof
    assert plain is not None
    assert rounded is not None
    assert rounded.measured != plain.measured
    assert rounded.packed == pytest.approx(rounded.measured, rel=1e-6)
    assert manifests["gguf"].notes == ()
    assert manifests["gguf-q8"].notes == (
        f"embeddings and head are rounded, which no trial measured: perplexity {rounded.measured:.4f}, and "
        f"{plain.measured:.4f} with them as they were ({rounded.measured / plain.measured - 1:+.3%})",
    )
    kinds = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "gguf-q8" / "model.gguf").tensors
    }
    assert {kinds.get(name, "Q8_0") for name in ("token_embd.weight", "output.weight")} == {"Q8_0"}
    assert ("output.weight" in kinds) is not tied
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    sizes = [(tmp_path / name / "model.gguf").stat().st_size for name in ("gguf", "gguf-q8")]
    matrices = 1 if tied else 2
    assert sizes[0] - sizes[1] == matrices * 4096 * 64 * (16 - 8.5) / 8
    read = load_directory(GGUF, tmp_path / "gguf-q8", torch.bfloat16)
    parts = find_format("gguf-q8").rounded(bench, PLAN, {})
    assert parts is not None
    with parts.in_place:
        assert torch.equal(read.lm_head.weight, bench.model.module.lm_head.weight)
        assert torch.equal(read.model.embed_tokens.weight, bench.model.module.model.embed_tokens.weight)


@pytest.mark.usefixtures("same_process")
def test_embeddings_that_are_not_those_of_the_file_fail_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if what was scored were the trial: the numbers of this model are not those of the file."""
    monkeypatch.setattr(GgufQ8, "rounded", lambda *_: None)
    with pytest.raises(
        RunError, match=r"2 of 21 tensors .* of the gguf-q8 model are not .*first: model\.embed_tokens.*nothing was"
    ):
        write(made(tmp_path), tmp_path / "models")


def test_embeddings_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    """In one line with the format that holds them."""
    model = tiny.complete()
    model.module.config.vocab_size = len(model.tokenizer)
    model.module.resize_token_embeddings(len(model.tokenizer))
    bench = tiny.bench(model, tmp_path)
    find_format("gguf-q8").require_holds(PLAN, bench)
    model.module.set_input_embeddings(torch.nn.Embedding(len(model.tokenizer), 48))
    with pytest.raises(InputError, match="Q8_0 has blocks of 32, and the embeddings have 48 values; use --format gguf"):
        find_format("gguf-q8").require_holds(PLAN, bench)
