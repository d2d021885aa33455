"""Documents become token sequences by two protocols, and are dealt to parts that share none of them."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from objectives.errors import InputError
from objectives.model.loading import Model
from objectives.text.dealing import SHARES, deal
from objectives.text.sequences import Sequences, TextPlan, prepare_text, tokenize
from objectives.text.sources import read_documents

PARTS = ("calibration", "tuning", "confirmation")
WORDS = ["the", "scale", "of", "a", "group", "is", "its", "largest", "weight", "divided", "by", "seven", "and", "bits"]


def plan(**changes: Any) -> TextPlan:
    return replace(TextPlan(source="some.txt", part="tuning", count=1000, length=16), **changes)


def prose(count: int, seed: int = 0, words: tuple[int, int] = (5, 60)) -> list[str]:
    """Documents of random length, no two alike."""
    dice = random.Random(seed)
    return [
        f"{number} " + " ".join(dice.choices(WORDS, k=dice.randint(*words))).capitalize() + "."
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def merging() -> Any:
    """A byte-pair tokenizer whose merges cross the end of a text: `.` and the newlines after it are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\w+|\W+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["\n\n".join(prose(200))], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert len(wrapped(".\n\n").input_ids) == 1
    return wrapped


@pytest.fixture(scope="module")
def framing() -> Any:
    """A tokenizer of whole words that puts `<s>` before and `</s>` behind every text."""
    tokenizer = Tokenizer(
        models.WordLevel({"<s>": 0, "</s>": 1, "?": 2, **{w: 3 + i for i, w in enumerate(WORDS)}}, "?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def joined(sequences: Sequences) -> list[int]:
    return [int(token) for ids in sequences.ids for token in ids]


# Packed


@pytest.mark.parametrize("documents", [3, 40, 700])
@pytest.mark.parametrize("count", [1, 7, 50, 10_000])
def test_packed_blocks_are_the_joined_text_cut_up(merging: Any, documents: int, count: int) -> None:
    """Blocks of exactly `length` tokens are those of the whole text joined by two newlines; the rest is dropped."""
    texts = prose(documents)
    whole = merging("\n\n".join(texts), add_special_tokens=False).input_ids
    sequences = tokenize(texts, merging, plan(count=count))
    assert len(sequences) == min(count, len(whole) // 16)
    assert {len(ids) for ids in sequences.ids} == {16}
    assert joined(sequences) == whole[: 16 * len(sequences)]


@pytest.mark.parametrize("count", [1, 40, 90])
def test_packed_blocks_of_text_with_few_tokens(framing: Any, count: int) -> None:
    """Where a token takes far more characters than usual, more documents are read until there are enough."""
    texts = [text.replace(" ", " " * 50) for text in prose(60)]
    whole = framing("\n\n".join(texts), add_special_tokens=False).input_ids
    sequences = tokenize(texts, framing, plan(count=count, bos="never"))
    assert len(sequences) == count
    assert joined(sequences) == whole[: 16 * count]


def test_every_token_of_a_block_but_the_first_is_scored(merging: Any) -> None:
    """The first token of a block has nothing to be predicted from."""
    for scored in tokenize(prose(50), merging, plan()).scored:
        assert scored.tolist() == [False] + [True] * 15


def test_packed_text_has_no_special_tokens(framing: Any) -> None:
    """What the tokenizer adds to single texts is left out of joined text, but for what begins a block."""
    sequences = tokenize(prose(50), framing, plan(bos="never"))
    assert len(sequences) > 10
    assert not {0, 1} & set(joined(sequences))
    begun = tokenize(prose(50), framing, plan())
    assert all(ids[0] == 0 and not {0, 1} & set(ids[1:].tolist()) for ids in begun.ids)


@pytest.mark.parametrize("length", [2, 16, 50])
def test_the_cluster_of_a_block_is_the_document_with_most_of_its_tokens(merging: Any, length: int) -> None:
    """Clusters agree with a count of where each token's first character lies; newlines belong to what precedes."""
    texts = prose(300, words=(1, 20))
    owner_of = [index for index, text in enumerate(texts) for _ in text + "\n\n"]
    encoded = merging("\n\n".join(texts), return_offsets_mapping=True)
    owners = [owner_of[start] for start, _ in encoded.offset_mapping]
    sequences = tokenize(texts, merging, plan(length=length))
    for number, cluster in enumerate(sequences.clusters):
        counted = Counter(owners[number * length : (number + 1) * length])
        assert counted[cluster] == max(counted.values())
    assert len(set(sequences.clusters)) > 50


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    texts=st.lists(st.text("ab .é\n", min_size=1, max_size=60), min_size=1, max_size=12),
    length=st.integers(2, 9),
    count=st.integers(1, 30),
)
@example(texts=["a"], length=2, count=1)
def test_packing_any_text(merging: Any, texts: list[str], length: int, count: int) -> None:
    """Whatever the documents look like, blocks are a prefix of the joined text's tokens, and clusters exist."""
    whole = merging("\n\n".join(texts)).input_ids
    sequences = tokenize(texts, merging, plan(length=length, count=count))
    assert joined(sequences) == whole[: length * min(count, len(whole) // length)]
    assert set(sequences.clusters) <= set(range(len(texts)))


# Documents


def test_documents_are_truncated_and_short_ones_skipped(merging: Any) -> None:
    """Each text is a sequence of its first tokens, at most `length`; texts of under 100 characters give none."""
    texts = ["x" * 99, "y" * 100, *prose(300, words=(10, 60)), " ".join(WORDS * 9)]
    sequences = tokenize(texts, merging, plan(protocol="documents", length=40))
    kept = [index for index, text in enumerate(texts) if len(text) >= 100]
    assert list(sequences.clusters) == kept
    assert 0 not in kept
    for index, ids in zip(sequences.clusters, sequences.ids, strict=True):
        assert ids.tolist() == merging(texts[index]).input_ids[:40]
    assert len(sequences.ids[-1]) == 40
    assert min(map(len, sequences.ids)) < 40


def test_special_tokens_are_added_but_never_scored(framing: Any) -> None:
    """`documents` keeps what the tokenizer adds, truncation included, and counts only the text as targets."""
    texts = [" ".join(WORDS * 2), " ".join(WORDS * 9)]
    sequences = tokenize(texts, framing, plan(protocol="documents", length=60))
    for ids, scored in zip(sequences.ids, sequences.scored, strict=True):
        assert ids[0] == 0
        assert ids[-1] == 1
        assert scored.tolist() == [False] + [True] * (len(ids) - 2) + [False]
    assert [len(ids) for ids in sequences.ids] == [2 * len(WORDS) + 2, 60]


def test_the_first_token_is_not_scored_without_special_tokens(merging: Any) -> None:
    """A text's own first token has nothing to be predicted from either."""
    for scored in tokenize(prose(20, words=(30, 60)), merging, plan(protocol="documents")).scored:
        assert scored.tolist() == [False] + [True] * (len(scored) - 1)


def test_a_document_without_targets_is_no_sequence(framing: Any) -> None:
    """A text of one token between special ones is kept, one of nothing but special tokens is not."""
    sequences = tokenize([" " * 120, "the" + " " * 120], framing, plan(protocol="documents"))
    assert sequences.clusters == (1,)
    assert sequences.ids[0].tolist() == [0, 3, 1]


# Both protocols


@pytest.mark.parametrize("protocol", ["packed", "documents"])
def test_fewer_sequences_are_a_prefix_of_more(merging: Any, protocol: Any) -> None:
    """What the first sequences are does not depend on how many are asked for."""
    texts = prose(400, words=(30, 60))
    most = tokenize(texts, merging, plan(protocol=protocol, count=200))
    for count in (1, 16, 33, 128):
        fewer = tokenize(texts, merging, plan(protocol=protocol, count=count))
        assert len(fewer) == count
        assert fewer.fingerprint() == most[:count].fingerprint()
        assert fewer.clusters == most.clusters[:count]


def test_the_fingerprint_changes_with_any_token_target_or_boundary() -> None:
    """Every token, every target, the order and the boundaries of sequences are in the fingerprint, names are not."""
    ids = (torch.tensor([1, 2, 3]), torch.tensor([4, 5]))
    scored = (torch.tensor([False, True, True]), torch.tensor([False, True]))
    base = Sequences(source="a", ids=ids, scored=scored, clusters=(0, 1))
    variants = [base, base[:1], Sequences(source="a", ids=ids[::-1], scored=scored[::-1], clusters=(0, 1))]
    for row, position in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        for field in ("ids", "scored"):
            changed = [tensor.clone() for tensor in getattr(base, field)]
            changed[row][position] = 9 if field == "ids" else not changed[row][position]
            variants.append(replace(base, **{field: tuple(changed)}))
    moved = (torch.tensor([1, 2]), torch.tensor([3, 4, 5]))
    variants.append(replace(base, ids=moved, scored=scored[::-1]))
    assert len({variant.fingerprint() for variant in variants}) == len(variants) == 14
    assert replace(base, source="b", clusters=(7, 7)).fingerprint() == base.fingerprint()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "chat"}, "protocol 'chat' is unknown; choose documents or packed"),
        ({"length": 1}, "1000 sequences of 1 tokens"),
        ({"count": 0}, "0 sequences of 16 tokens"),
        ({"count": -4}, "at least 1 of at least 2"),
    ],
)
def test_an_impossible_plan_is_refused(changes: dict[str, Any], said: str) -> None:
    """A plan that no text could fulfil is refused when it is made."""
    with pytest.raises(InputError) as caught:
        plan(**changes)
    assert said in str(caught.value)


# Dealing

TEXTS = st.lists(st.text("abcdefgh ", min_size=1, max_size=12), max_size=40)


@settings(deadline=None, derandomize=True)
@given(texts=TEXTS, seed=st.integers(0, 2**32), count=st.integers(1, 3))
def test_parts_divide_the_documents(texts: list[str], seed: int, count: int) -> None:
    """Every document is in exactly one part, once, and the same call gives the same parts in the same order."""
    dealt = deal(texts, PARTS[:count], seed)
    assert list(dealt) == list(PARTS[:count])
    assert sorted(text for part in dealt.values() for text in part) == sorted(set(texts))
    assert deal(texts, PARTS[:count], seed) == dealt
    assert deal(texts[::-1] + texts, PARTS[:count], seed) == dealt


@settings(deadline=None, derandomize=True)
@given(texts=TEXTS, more=TEXTS, seed=st.integers(0, 2**32))
def test_adding_documents_moves_no_other(texts: list[str], more: list[str], seed: int) -> None:
    """A longer file keeps every document of the shorter one in its part and in its order."""
    before, after = deal(texts, PARTS, seed), deal(more + texts, PARTS, seed)
    for part in before:
        assert [text for text in after[part] if text in set(texts)] == before[part]


@settings(deadline=None, derandomize=True)
@given(texts=TEXTS, seed=st.integers(0, 2**32))
def test_copies_that_differ_in_outer_blanks_stay_together(texts: list[str], seed: int) -> None:
    """A copy of a document with other blanks around it never lands in another part."""
    dealt = deal(texts + [f"\n {text} " for text in texts], PARTS, seed)
    cores = [{text.strip() for text in part} for part in dealt.values()]
    assert sum(map(len, cores)) == len(set.union(*cores))


@pytest.mark.parametrize("parts", [PARTS, PARTS[:2], PARTS[1:], PARTS[:1]])
def test_shares_are_those_stated(parts: Sequence[Any]) -> None:
    """Parts get documents in the proportion of their shares, all of them when one part reads the source."""
    texts = [f"document {number}" for number in range(10_000)]
    total = sum(SHARES[part] for part in parts)
    for part, dealt in deal(texts, parts, 3).items():
        assert len(dealt) / len(texts) == pytest.approx(SHARES[part] / total, abs=0.015)


def test_the_seed_changes_parts_and_order() -> None:
    """Another seed gives another division, and another order of what is in no other part."""
    texts = [f"document {number}" for number in range(200)]
    first, second = deal(texts, PARTS, 0), deal(texts, PARTS, 1)
    assert set(first["tuning"]) != set(second["tuning"])
    alone, again = deal(texts, ["tuning"], 0)["tuning"], deal(texts, ["tuning"], 1)["tuning"]
    assert sorted(alone) == sorted(again)
    assert alone != again
    assert alone != texts


def test_the_division_is_the_same_in_every_version() -> None:
    """Stored studies rely on where documents go: this division was written down once and must not change."""
    dealt = deal([f"document {number}" for number in range(10)], PARTS, 0)
    order = {part: [int(text.removeprefix("document ")) for text in texts] for part, texts in dealt.items()}
    assert order == {"calibration": [6, 4, 7, 3], "tuning": [1, 2], "confirmation": [8, 5, 0, 9]}


# Preparing


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, documents: Sequence[str]) -> str:
        path = tmp_path / name
        path.write_text("\n\n".join(documents))
        return str(path)

    return write


def test_parts_of_one_source_share_no_document(write: Any, merging: Any) -> None:
    """Calibration, tuning and confirmation text of one file is disjoint, and its order is the plans'."""
    source = write("all.txt", prose(300, words=(40, 60)))
    plans = [plan(source=source, part=part, count=40, protocol="documents", length=64) for part in PARTS[::-1]]
    prepared = prepare_text(plans, merging)
    texts = [{merging.decode(ids) for ids in sequences.ids} for sequences in prepared]
    assert [len(part) for part in texts] == [40, 40, 40]
    assert len(set.union(*texts)) == 120
    assert [sequences.source for sequences in prepared] == [source] * 3


def test_what_refining_reads_is_left_over_by_the_others_and_moves_none_of_them(write: Any, merging: Any) -> None:
    """Of documents that no other sequence takes anything from, in calibration's share: more evaluation meets none."""
    # Every word of a document names it.
    source = write("all.txt", [" ".join([f"d{number}x"] * 30) for number in range(200)])
    plans = [plan(source=source, part=part, count=20) for part in PARTS]
    left = [plan(source=source, part=part, count=200, minimum=4) for part in ("refinement", "validation")]
    alone = prepare_text(plans, merging)
    *others, refinement, validation = prepare_text([*plans, *left], merging)
    assert [part.fingerprint() for part in others] == [part.fingerprint() for part in alone]
    more = prepare_text([replace(plans[0]), *(replace(other, count=1000, minimum=1) for other in plans[1:])], merging)

    def numbers(sequences: Sequences) -> set[int]:
        """The documents that blocks take something from."""
        text = " ".join(merging.decode(ids) for ids in sequences.ids)
        return {int(number) for number in re.findall(r"d(\d+)x", text)}

    read = [numbers(part) for part in (*more, refinement, validation)]
    assert all(len(part) > 2 for part in read)
    assert sum(map(len, read)) == len(set.union(*read))


def test_of_a_source_on_which_nothing_is_measured_refining_reads_all_that_calibration_leaves(
    write: Any, merging: Any
) -> None:
    """Not a share of it; calibration's sequences are those that they were."""
    source = write("calibration.txt", prose(300))
    calibration = plan(source=source, part="calibration", count=20)
    left = [plan(source=source, part=part, count=10_000, minimum=1) for part in ("refinement", "validation")]
    (alone,) = prepare_text([calibration], merging)
    beside, refinement, validation = prepare_text([calibration, *left], merging)
    assert beside.fingerprint() == alone.fingerprint()
    whole = len(tokenize(read_documents(source), merging, plan(count=10_000)))
    assert 0.9 * whole < len(beside) + len(refinement) + len(validation) <= whole


def test_a_source_that_refining_alone_reads_is_all_its_own(write: Any, merging: Any) -> None:
    """Nine parts in ten are learned from."""
    source = write("own.txt", prose(300))
    plans = [plan(source=source, part=part, count=10_000, minimum=1) for part in ("refinement", "validation")]
    refinement, validation = prepare_text(plans, merging)
    whole = len(tokenize(read_documents(source), merging, plan(count=10_000)))
    assert whole - 3 <= len(refinement) + len(validation) <= whole
    assert 0.8 * whole < len(refinement) < 0.97 * whole


def test_prepared_text_is_the_same_for_everyone_who_asks(write: Any, merging: Any) -> None:
    """The same plans and seed give the same tokens; another seed gives others."""
    source = write("all.txt", prose(100))
    plans = [plan(source=source, part=part, count=20) for part in PARTS]

    def prints(seed: int) -> list[str]:
        return [sequences.fingerprint() for sequences in prepare_text(plans, merging, seed)]

    assert prints(5) == prints(5)
    assert not set(prints(5)) & set(prints(6))


def test_two_sources_are_both_read_whole(write: Any, merging: Any) -> None:
    """A source that one part reads is all its own."""
    first, second = write("one.txt", prose(30, seed=1)), write("two.txt", prose(30, seed=2))
    everything = len(tokenize(read_documents(first), merging, plan()))
    plans = [plan(source=first, part="calibration", count=everything), plan(source=second, count=1)]
    assert [len(sequences) for sequences in prepare_text(plans, merging)] == [everything, 1]


@pytest.mark.parametrize("protocol", ["packed", "documents"])
def test_too_little_text_is_refused_with_numbers(write: Any, merging: Any, protocol: Any) -> None:
    """The error names the source, the part, how many sequences there are, and how many were asked for."""
    source = write("few.txt", prose(12, words=(40, 60)))
    there = len(tokenize(read_documents(source), merging, plan(protocol=protocol, length=32)))
    with pytest.raises(InputError) as caught:
        prepare_text([plan(source=source, count=999, protocol=protocol, length=32)], merging)
    expected = f"{source} has tuning text for {there} sequences of 32 tokens, not for 999; "
    assert str(caught.value).startswith(expected)


def test_a_part_without_any_document_is_refused(write: Any, merging: Any) -> None:
    """One document cannot serve two parts."""
    source = write("one.txt", prose(1))
    with pytest.raises(InputError, match="text for 0 sequences of 16 tokens, not for 1;"):
        prepare_text([plan(source=source, part=part, count=1) for part in PARTS[:2]], merging)


@pytest.mark.parametrize(
    ("protocol", "length", "count"),
    [("packed", 32, 48), ("packed", 64, 24), ("packed", 128, 12), ("documents", 64, 18), ("documents", 128, 18)],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_file_cut_from_another_is_refused(
    write: Any, bundled: Model, protocol: Any, length: int, count: int, swapped: bool
) -> None:
    """Text that two sources share is found although no document of the one is a document of the other."""
    texts = [" ".join(text.split())[:600] for text in read_documents("bundled:topics")[:40]]
    whole, cut = write("whole.txt", texts), write("cut.txt", [text[21:500] for text in texts[:20]])
    sources = (cut, whole) if swapped else (whole, cut)
    plans = [
        plan(source=source, part=part, count=count, protocol=protocol, length=length)
        for source, part in zip(sources, PARTS, strict=False)
    ]
    with pytest.raises(InputError) as caught:
        prepare_text(plans, bundled.tokenizer)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in (whole, cut, f"of {count}", "repeat", "give texts that do not overlap"))


def test_one_file_under_two_names_is_refused(write: Any, bundled: Model, tmp_path: Path) -> None:
    """Calibrating on a copy of the evaluation text is found."""
    texts = read_documents("bundled:docstrings")[:30]
    first, second = write("first.txt", texts), write("second.txt", texts)
    plans = [
        plan(source=first, part="calibration", count=8, length=64),
        plan(source=second, part="tuning", count=8, length=64),
    ]
    with pytest.raises(InputError, match="8 of 8 tuning sequences"):
        prepare_text(plans, bundled.tokenizer)


def test_data_sets_of_one_part_may_repeat_each_other(write: Any, bundled: Model) -> None:
    """Scoring on two data sets that share text is odd, but leaks nothing."""
    texts = read_documents("bundled:topics")[:20]
    sources = [write("first.txt", texts), write("second.txt", texts)]
    plans = [plan(source=source, part="tuning", count=8, length=64) for source in sources]
    first, second = prepare_text(plans, bundled.tokenizer)
    assert first.fingerprint() == second.fingerprint()


def test_different_texts_on_one_subject_are_accepted(bundled: Model) -> None:
    """Common phrases are no overlap: the bundled families quote each other and the same licence."""
    plans = [
        plan(source="bundled:docstrings", part="calibration", count=64, length=64),
        plan(source="bundled:topics", part="tuning", count=64, length=64),
        plan(source="bundled:docstrings", part="tuning", count=64, length=64),
    ]
    assert [len(sequences) for sequences in prepare_text(plans, bundled.tokenizer)] == [64, 64, 64]


# Tokenizers in Python


class Letters(PreTrainedTokenizer):
    """A token for every character, between `<s>` and `</s>`, in Python: it knows no offsets."""

    vocab_files_names: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="?")

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": 1, "</s>": 2, "?": 3} | {chr(number): number for number in range(4, 128)}

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 3)

    def _convert_id_to_token(self, index: int) -> str:
        return {number: token for token, number in self.get_vocab().items()}[index]


@pytest.mark.parametrize("protocol", ["packed", "documents"])
def test_a_tokenizer_in_python_works_in_both_protocols(protocol: Any) -> None:
    """Without offsets the owner of a block is still known, and the joined text is the same."""
    documents = prose(40, words=(30, 60))
    made = tokenize(documents, Letters(), plan(protocol=protocol, length=50))
    text = "\n\n".join(documents)
    if protocol == "packed":
        assert joined(made) == [ord(letter) if ord(letter) > 3 else 3 for letter in text[: 50 * (len(text) // 50)]]
        for number, owner in enumerate(made.clusters):
            assert documents[owner].split()[0] in text[max(0, number * 50 - 800) : number * 50 + 50]
    else:
        assert made.clusters == tuple(range(len(documents)))
        assert [bytes(ids.tolist()).decode() for ids in made.ids] == [document[:50] for document in documents]


# How sequences begin


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_packed_blocks_begin_with_what_the_tokenizer_puts_before_a_text(framing: Any, bos: Any) -> None:
    """Unscored, within the length; what follows is the text without a gap, and the first token after it is scored."""
    documents = prose(60, words=(30, 60))
    made = tokenize(documents, framing, plan(length=20, bos=bos, count=10))
    prefix = [] if bos == "never" else [0]
    assert made.prefix == tuple(prefix)
    assert all(ids[: len(prefix)].tolist() == prefix and len(ids) == 20 for ids in made.ids)
    assert all(scored.tolist() == [False] + [True] * 19 for scored in made.scored)
    text = framing("\n\n".join(documents), add_special_tokens=False).input_ids
    assert [token for ids in made.ids for token in ids[len(prefix) :].tolist()] == text[: 10 * (20 - len(prefix))]


def test_always_puts_a_beginning_where_the_tokenizer_puts_none(merging: Any) -> None:
    """In both protocols, unscored; a tokenizer without such a token is refused."""
    with pytest.raises(InputError, match="no token that begins a text; use --bos auto"):
        tokenize(prose(9), merging, plan(bos="always"))
    begun = PreTrainedTokenizerFast(tokenizer_object=merging.backend_tokenizer, bos_token="!")
    number = begun.bos_token_id
    for protocol in ("packed", "documents"):
        usual = tokenize(prose(40, words=(40, 60)), begun, plan(protocol=protocol))
        made = tokenize(prose(40, words=(40, 60)), begun, plan(protocol=protocol, bos="always", length=17))
        assert [ids.tolist() for ids in made.ids] == [[number, *ids.tolist()] for ids in usual.ids]
        assert all(scored.tolist() == [False] + [True] * 16 for scored in made.scored)
    never = tokenize(prose(9, words=(40, 60)), begun, plan(protocol="documents", bos="never"))
    assert number not in joined(never)


def test_documents_never_begin_where_that_is_asked_for(framing: Any) -> None:
    """Neither beginning nor end is put around a text."""
    made = tokenize(prose(9, words=(40, 60)), framing, plan(protocol="documents", bos="never"))
    assert set(joined(made)).isdisjoint({0, 1})
    assert all(scored.tolist() == [False] + [True] * 15 for scored in made.scored)
