"""Every kind of source gives its documents, and everything that can be wrong with one has its own line."""

import gzip
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from objectives.bundled.text import held_out
from objectives.errors import InputError
from objectives.text import sources as text
from objectives.text.sources import read_documents

TEXTS = ["The first text.\nIt has two lines.", "Größe: 3 × 4, and 1 = 1.", "The last text."]
WIKITEXT = (
    "\n = Robert Boulter = \n\n Robert Boulter is an actor . \n\n = = Career = = \n\n = = = 2000 = = = \n"
    " In 2000 Boulter had a role . \n\n = Du Fu = \n\n Du Fu was a poet : 1 = 1 . \n"
)


def refusal(source: str | Path) -> str:
    """The one line with which a source is refused."""
    with pytest.raises(InputError) as caught:
        read_documents(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


def lines_of(rows: list[object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


# Files


def test_plain_text_is_paragraphs_between_blank_lines(tmp_path: Path) -> None:
    """A .txt file holds one document per paragraph; a blank line may hold blanks, and ends may be Windows ones."""
    path = tmp_path / "some.txt"
    path.write_bytes("\n \t\n".join(TEXTS).replace("\n", "\r\n").encode() + b"\n\n\n  \n")
    documents = read_documents(str(path))
    assert [document.strip() for document in documents] == TEXTS


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """The mark that some editors put at the beginning of a file is not part of the first document."""
    plain, lines = tmp_path / "some.txt", tmp_path / "some.jsonl"
    plain.write_text("\n\n".join(TEXTS), encoding="utf-8-sig")
    lines.write_bytes(b"\xef\xbb\xbf" + lines_of([{"text": text} for text in TEXTS]))
    assert read_documents(str(plain)) == read_documents(str(lines)) == TEXTS


@pytest.mark.parametrize("suffix", ["raw", "txt"])
def test_wikitext_headings_make_articles(tmp_path: Path, suffix: str) -> None:
    """A file with WikiText headings holds one document per article, sections and blank lines included."""
    path = tmp_path / f"wiki.{suffix}"
    path.write_text(WIKITEXT)
    documents = read_documents(str(path))
    assert [document.split("\n")[0] for document in documents] == [" = Robert Boulter = ", " = Du Fu = "]
    assert "".join(documents) == WIKITEXT.removeprefix("\n")
    assert " = = = 2000 = = = " in documents[0]


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_json_lines_are_documents(tmp_path: Path, name: str) -> None:
    """Every line of a .jsonl file is one document, compressed or not; blank lines and other fields are skipped."""
    rows = [{"text": text, "url": 1} for text in TEXTS]
    data = lines_of(rows[:2]) + b"\n  \n" + lines_of(rows[2:])
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_documents(str(path)) == TEXTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_rows_are_documents(tmp_path: Path, kind: pa.DataType) -> None:
    """The column `text` of a .parquet file holds one document per row, over batches and row groups."""
    texts = [f"{number}: {text}" for number in range(300) for text in TEXTS]
    path = tmp_path / "some.parquet"
    table = pa.table({"url": ["x"] * len(texts), "text": pa.array(texts, kind)})
    pa.parquet.write_table(table, path, row_group_size=100)
    assert read_documents(str(path)) == texts


def test_no_more_is_read_than_represents_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops after the first `POOL` documents: what is broken behind them is not seen."""
    monkeypatch.setattr(text, "POOL", 2)
    path = tmp_path / "some.jsonl"
    path.write_bytes(lines_of([{"text": text} for text in TEXTS]) + b"{broken")
    assert read_documents(str(path)) == TEXTS[:2]


@pytest.mark.parametrize("name", ["docstrings", "topics"])
def test_bundled_text_is_the_held_out_split(name: str) -> None:
    """`bundled:...` reads what the bundled model was not trained on, in its own order."""
    assert read_documents(f"bundled:{name}") == held_out(name)


# The hub


class Rows:
    """Stands for `datasets.load_dataset`: checks the call against the real signature and gives rows."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.rows = rows
        self.read = 0
        self.call: dict[str, Any] = {}

    def __call__(self, *args: object, **kwargs: object) -> Iterator[dict[str, object]]:
        self.call = inspect.signature(REAL_LOAD).bind(*args, **kwargs).arguments
        for row in self.rows:
            self.read += 1
            yield row


REAL_LOAD = datasets.load_dataset
FakeLoad = Callable[[list[dict[str, object]]], Rows]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> FakeLoad:
    def install(rows: list[dict[str, object]]) -> Rows:
        fake = Rows(rows)
        monkeypatch.setattr(datasets, "load_dataset", fake)
        return fake

    return install


@pytest.mark.parametrize(
    ("source", "repository", "config", "split", "column"),
    [
        ("c4", "allenai/c4", "en", "validation", "text"),
        ("hub:org/name", "org/name", None, "validation", "text"),
        ("hub:org/name:config", "org/name", "config", "validation", "text"),
        ("hub:org/name::test", "org/name", None, "test", "text"),
        ("hub:org/name:config:train", "org/name", "config", "train", "text"),
        ("hub:org/name:config:split:column", "org/name", "config", "split", "column"),
    ],
)
def test_hub_sources_are_streamed_from_where_they_say(
    load: FakeLoad, source: str, repository: str, config: str | None, split: str, column: str
) -> None:
    """Repository, configuration, split and column reach `datasets`, with their defaults, and rows become documents."""
    fake = load([{column: text, "other": 0} for text in TEXTS])
    assert read_documents(source) == TEXTS
    assert fake.call == {"path": repository, "name": config, "split": split, "streaming": True}


def test_wikitext2_rows_become_articles(load: FakeLoad) -> None:
    """WikiText-2 comes line by line from its test split, and its lines are put together to articles."""
    fake = load([{"text": line} for line in WIKITEXT.splitlines(keepends=True)])
    assert "".join(read_documents("wikitext2")) == WIKITEXT.removeprefix("\n")
    assert len(read_documents("wikitext2")) == 2
    assert fake.call == {
        "path": "Salesforce/wikitext",
        "name": "wikitext-2-raw-v1",
        "split": "test",
        "streaming": True,
    }


def test_a_stream_is_not_read_further_than_needed(load: FakeLoad, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large data set only the first `POOL` rows are fetched."""
    monkeypatch.setattr(text, "POOL", 3)
    fake = load([{"text": f"text {number}"} for number in range(100)])
    assert len(read_documents("c4")) == 3
    assert fake.read == 3


@pytest.mark.parametrize("source", ["hub:", "hub::config", "hub:a/b:c:d:e:f"])
def test_a_malformed_hub_name_is_refused(load: FakeLoad, source: str) -> None:
    """A hub source without a repository or with too many parts is refused with its form, and nothing is fetched."""
    fake = load([])
    assert "hub:org/name[:config[:split[:column]]]" in refusal(source)
    assert fake.call == {}


def test_a_hub_column_that_is_absent_is_refused_with_those_there_are(load: FakeLoad) -> None:
    """A missing column names the data set and its columns."""
    load([{"content": "x", "url": "y"}])
    message = refusal("hub:org/name:en:train:body")
    assert "hub:org/name:en:train:body row 1 has no column 'body'; it has content, url" in message


# Bad input


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    """A path that is no file is refused with its name and everything that may be given."""
    for path in (tmp_path / "absent.txt", tmp_path):
        message = refusal(path)
        assert f"{path} is not a file" in message
        assert all(kind in message for kind in ("bundled:docstrings", "c4", "hub:org/name", *text.SUFFIXES))


def test_the_allowed_kinds_are_those_that_are_read() -> None:
    """The error message lists every suffix for which there is a reader, and no other."""
    assert set(text.SUFFIXES) == set(text._READERS)


@pytest.mark.parametrize("name", ["some.csv", "some", "some.xml", "some.txt.gz", "some.parquet.bak"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    """A file of another kind is refused with the kinds that may be given."""
    path = tmp_path / name
    path.write_text("text")
    message = refusal(path)
    assert "of an unknown kind" in message
    assert ".jsonl.gz" in message


@pytest.mark.parametrize("name", ["some.txt", "some.raw", "some.jsl", "some.jsonl.gz", "some.parquet"])
def test_a_file_without_text_is_refused(tmp_path: Path, name: str) -> None:
    """An empty file, and one with nothing but blank text, is refused by name whatever its kind."""
    blank = lines_of([{"text": " \n\t "}, {"text": ""}])
    empty, path = b"", tmp_path / name
    contents = {"txt": [empty, b"\n \n\n\t\n"], "raw": [empty, b" \n"], "jsonl": [empty, b"\n\n", blank]}
    contents["gz"] = [gzip.compress(content) for content in contents["jsonl"]]
    for content in contents.get(path.suffix[1:], []):
        path.write_bytes(content)
        assert f"{path} has no text" in refusal(path)
    if path.suffix == ".parquet":
        for texts in ([], ["", "  "]):
            pa.parquet.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
            assert f"{path} has no text" in refusal(path)


@pytest.mark.parametrize("name", ["some.txt", "some.raw", "some.jsonl", "some.jsonl.gz"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, name: str) -> None:
    """Latin-1 is not guessed: the file is refused with the place of the first byte that is not UTF-8."""
    path = tmp_path / name
    data = '{"text": "Größe"}'.encode("latin-1")
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    message = refusal(path)
    assert f"{path} cannot be read as {path.suffix}" in message
    assert "utf-8" in message
    assert message.endswith("convert it to UTF-8, as with `iconv -t utf-8`")


@pytest.mark.parametrize("damage", ["no header", "cut off", "changed"])
def test_a_broken_archive_is_refused(tmp_path: Path, damage: str) -> None:
    """Text that is not compressed, or whose compressed bytes are missing or changed, is refused by name."""
    whole = bytearray(gzip.compress(lines_of([{"text": f"{number} {text}"} for number in range(99) for text in TEXTS])))
    path = tmp_path / "some.jsonl.gz"
    if damage == "changed":
        whole[30:40] = b"\xff" * 10
    path.write_bytes({"no header": lines_of([{"text": "x"}]), "cut off": whole[: len(whole) // 2]}.get(damage, whole))
    assert f"{path} cannot be read as .gz" in refusal(path)


def test_broken_parquet_is_refused(tmp_path: Path) -> None:
    """Bytes that are not a Parquet file, or only the first half of one, are refused by name."""
    path = tmp_path / "some.parquet"
    pa.parquet.write_table(pa.table({"text": TEXTS}), path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1 nothing", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert f"{path} cannot be read as .parquet" in refusal(path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operating system says about a file is reported in one line."""
    path = tmp_path / "some.txt"
    path.write_text("text")

    def denied(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("{broken", "line 3 is not JSON"),
        ('"a text"', "line 3 is not an object with a field 'text' or 'messages'"),
        ("[1, 2]", "line 3 is not an object"),
        ("null", "line 3 is not an object"),
        ('{"content": "x", "url": "y"}', "line 3 has no column 'text' or 'messages'; it has content, url"),
        ('{"text": 3}', "line 3 holds int in 'text', not text"),
        ('{"text": null}', "line 3 holds NoneType in 'text', not text"),
        ('{"text": ["x"]}', "line 3 holds list in 'text', not text"),
    ],
)
@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_a_bad_json_line_is_refused_with_its_number(tmp_path: Path, name: str, second: str, said: str) -> None:
    """The number counts every line of the file, blank ones included."""
    data = f'{{"text": "good"}}\n\n{second}\n'.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert f"{path} {said}" in refusal(path)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"content": ["x"], "url": ["y"]}, "has no column 'text' or 'messages'; it has content, url"),
        ({"text": [1, 2]}, "row 1 holds int in 'text', not text"),
        ({"text": ["x", None]}, "row 2 holds NoneType in 'text', not text"),
        ({"text": [{"inner": "x"}]}, "row 1 holds dict in 'text', not text"),
    ],
)
def test_a_bad_parquet_column_is_refused(tmp_path: Path, columns: dict[str, list[object]], said: str) -> None:
    """A missing column is refused with those there are, and one of another type with what it holds."""
    path = tmp_path / "some.parquet"
    pa.parquet.write_table(pa.table(columns), path)
    assert f"{path} {said}" in refusal(path)


@pytest.mark.parametrize("source", ["bundled:", "bundled:c4", "bundled:Topics"])
def test_an_unknown_bundled_name_is_refused(source: str) -> None:
    """The error lists the bundled texts there are."""
    message = refusal(source)
    assert f"{source} is unknown" in message
    assert "bundled:docstrings, bundled:topics" in message


def test_a_python_without_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python was installed without its sources, the bundled text's own remedy is what one sees."""

    def no_sources(name: str) -> list[str]:
        raise FileNotFoundError("no Python sources; give your own --calib-data and --eval-data")

    monkeypatch.setattr(text.bundled, "held_out", no_sources)
    assert "give your own --calib-data" in refusal("bundled:topics")


@pytest.mark.parametrize("name", ["c4-validation.00000-of-00008.json.gz", "c4-train.00000.json"])
def test_c4s_own_file_names_are_json_lines(tmp_path: Path, name: str) -> None:
    """Files as C4 has them are read as they are."""
    path = tmp_path / name
    data = lines_of([{"text": "one", "url": "x"}, {"text": "two", "url": "y"}])
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_documents(str(path)) == ["one", "two"]


def test_halves_of_characters_are_replaced_counted_and_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A text that was cut inside an emoji is read; the warning has the first line's number."""
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "whole \\ud83d\\ude00"}\n\n{"text": "\\ud83d half \\ude00"}\n{"text": "\\udc00"}\n')
    assert read_documents(str(path)) == ["whole \U0001f600", "\ufffd half \ufffd", "\ufffd"]
    assert caplog.messages == [f"{path}: 3 halves of characters were replaced, the first in line 3"]


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"text": ' + "[" * 100_000, "line 1 is nested too deeply"), ('{"a": ' + "1" * 5000 + "}", "line 1 is not JSON")],
)
def test_json_that_no_parser_takes_is_one_line(line: str, said: str, tmp_path: Path) -> None:
    """Neither a recursion nor a number without end is a traceback."""
    path = tmp_path / "deep.jsonl"
    path.write_text(line)
    assert said in refusal(path)
