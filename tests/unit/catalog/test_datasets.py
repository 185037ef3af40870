"""Training sets: lengths from their files, broken lines by number, hostile content as data, bounds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peftplan.catalog import datasets
from peftplan.catalog.datasets import read_lengths
from peftplan.errors import BadInput, MachineLacks, NotFound
from peftplan.specs.lengths import Lengths


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Writes a file and gives its name."""

    def write(content: str | bytes, name: str = "set.jsonl") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def lines(*examples: object) -> str:
    return "".join(json.dumps(example) + "\n" for example in examples)


# ---- what is counted


def test_token_ids_are_counted(written: Callable[..., str]) -> None:
    """A column of token ids tells the length exactly, whatever text stands beside it."""
    found = read_lengths(written(lines({"input_ids": [1, 2, 3], "text": "x" * 99}, {"input_ids": [1]})))
    assert found.counts == ((1, 1), (3, 1))
    assert (found.basis, found.low_frac, found.high_frac) == ("counted by input_ids", 1.0, 1.0)


def test_a_column_of_lengths_is_taken(written: Callable[..., str]) -> None:
    """A length that is stated needs no text."""
    assert read_lengths(written(lines({"num_tokens": 7}, {"num_tokens": 7}))).counts == ((7, 2),)


def test_text_is_estimated_from_its_characters(written: Callable[..., str]) -> None:
    """Four characters a token, a range for it, and only the columns of text."""
    found = read_lengths(written(lines({"instruction": "a" * 40, "output": "b" * 60, "id": "c" * 1000})))
    assert found.counts == ((25, 1),)
    assert found.low_frac < 1 < found.high_frac
    assert "4 a token" in found.basis


def test_a_stated_ratio_is_used_as_it_is(written: Callable[..., str]) -> None:
    """--chars-per-token leaves no range."""
    found = read_lengths(written(lines({"text": "a" * 30})), 3.0)
    assert found.counts == ((10, 1),)
    assert (found.low_frac, found.high_frac) == (1.0, 1.0)


def test_scripts_without_spaces_have_fewer_characters_a_token(written: Callable[..., str]) -> None:
    """A Chinese character is most of a token, a Latin one a quarter."""
    assert read_lengths(written(lines({"text": "你好" * 6 + "ab cd ef"}))).counts == ((12, 1),)


def test_messages_are_read_whatever_their_nesting(written: Callable[..., str]) -> None:
    """A conversation's length is that of all its texts."""
    message = {"role": "user", "content": [{"type": "text", "text": "x" * 32}]}
    assert read_lengths(written(lines({"messages": [message, message]}))).num_tokens == 20


def test_columns_that_nobody_knows_are_read_as_text(written: Callable[..., str]) -> None:
    """Where no column has a known name, all texts count."""
    assert read_lengths(written(lines({"frage": "a" * 20, "antwort": "b" * 20}))).num_tokens == 10


def test_a_json_array_is_a_set_too(written: Callable[..., str]) -> None:
    """Alpaca and its like are one array of objects."""
    assert read_lengths(written(json.dumps([{"text": "abcd"}] * 3), "set.json")).num_examples == 3


def test_csv_is_read_by_its_columns(written: Callable[..., str]) -> None:
    """Quoted line breaks belong to a cell; ids and lengths in cells are counted as in JSON."""
    assert read_lengths(written('id,text\n1,"abcd\nefgh"\n', "a.csv")).counts == ((2, 1),)
    assert read_lengths(written('input_ids\n"[1, 2, 3]"\n', "b.csv")).counts == ((3, 1),)
    assert read_lengths(written("tokens\n512\n", "c.csv")).counts == ((512, 1),)


def test_parquet_is_read_by_pyarrow(written: Callable[..., str], tmp_path: Path) -> None:
    """Only the columns that are needed are read, in pieces."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "set.parquet"
    parquet.write_table(arrow.table({"text": ["a" * 8, "a" * 40], "meta": ["x" * 99] * 2}), path)
    assert read_lengths(str(path)).counts == ((2, 1), (10, 1))


def test_parquet_without_pyarrow_says_what_is_missing(
    written: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra that reads it is named."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MachineLacks, match="pip install pyarrow"):
        read_lengths(written(b"PAR1restPAR1", "set.parquet"))


# ---- what is broken

BROKEN = {
    "no JSON": "{oops",
    "half an object": '{"text": "abc"',
    "a number": "7",
    "a list": "[1, 2]",
    "no UTF-8": b'{"text": "\xff\xfe"}',
    "deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a number of many digits": '{"num_tokens": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_is_skipped_and_counted(written: Callable[..., str], kind: str) -> None:
    """The lines around it count; its number is told."""
    broken = BROKEN[kind]
    middle = broken if isinstance(broken, bytes) else broken.encode()
    good = b'{"text": "abcdefgh"}\n'
    found = read_lengths(written(good + middle + b"\n" + good))
    assert (found.num_examples, found.num_broken, found.broken_lines) == (2, 1, (2,))


def test_broken_rows_of_csv_are_counted(written: Callable[..., str]) -> None:
    """A row with other columns, or a length that is none, is skipped with its line."""
    assert read_lengths(written("text,x\nabcd,1\nabcd\nabcd,1\n", "a.csv")).broken_lines == (3,)
    assert read_lengths(written("num_tokens\n5\n-1\nnan\n6\n", "b.csv")).broken_lines == (3, 4)


def test_empty_examples_are_counted_apart(written: Callable[..., str]) -> None:
    """An example without text is no broken line and no example."""
    found = read_lengths(written(lines({"text": "abcd"}, {"text": ""}) + "\n\n"))
    assert (found.num_examples, found.num_empty, found.num_broken) == (1, 1, 0)


def test_a_line_beyond_the_bound_is_skipped(written: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that no example has is passed over without being held."""
    monkeypatch.setattr(datasets, "MAX_LINE_BYTES", 64)
    found = read_lengths(written(lines({"text": "a" * 8}, {"text": "a" * 500}, {"text": "a" * 8})))
    assert (found.counts, found.broken_lines) == (((2, 2),), (2,))


REFUSED = {
    "plain.txt": (b"just words\nand more\n", "is neither JSONL, Parquet nor a CSV"),
    "empty.jsonl": (b"", "is empty"),
    "set.jsonl.gz": (b"\x1f\x8brest", "is packed by gzip; unpack it"),
    "set.zip": (b"PK\x03\x04rest", "is packed by zip"),
    "all_broken.jsonl": (b"{\n{\n", "holds no example with text or tokens (2 broken"),
    "half.json": (b'[{"text": "a"}', "begins as a JSON array and is none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_training_set_is_refused(written: Callable[..., str], name: str) -> None:
    """One line: what it is, and what to give."""
    content, words = REFUSED[name]
    with pytest.raises(BadInput) as refused:
        read_lengths(written(content, name))
    assert words in str(refused.value)


def test_paths_that_are_no_file_are_refused(tmp_path: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(NotFound, match="does not exist"):
        read_lengths(str(tmp_path / "nope.jsonl"))
    with pytest.raises(BadInput, match="is a folder"):
        read_lengths(str(tmp_path))


# ---- large files


def test_a_long_file_is_read_in_pieces_that_stand_for_it(
    written: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound a share is read, spread over the file: examples and tokens come out near the truth."""
    examples = [{"text": "a" * (4 * (1 + number % 50))} for number in range(20_000)]
    name = written(lines(*examples))
    whole = read_lengths(name)
    monkeypatch.setattr(datasets, "MAX_READ_BYTES", Path(name).stat().st_size // 5)
    monkeypatch.setattr(datasets, "_KEPT", {})
    found = read_lengths(name)
    assert 0.15 < found.sampled_frac < 0.4
    assert found.num_broken == 0
    assert found.num_examples == pytest.approx(whole.num_examples, rel=0.05)
    assert found.num_tokens == pytest.approx(whole.num_tokens, rel=0.05)


def test_progress_is_told_and_a_file_read_once(written: Callable[..., str]) -> None:
    """The second reader finds it read; a changed file is read again."""
    name = written(lines(*({"text": "a"} for _ in range(9000))))
    told: list[float] = []
    first = read_lengths(name, None, lambda done, _: told.append(done))
    assert told
    assert told == sorted(told)
    assert read_lengths(name, None, lambda *_: pytest.fail("read again")) is first
    written(lines({"text": "a"}))
    assert read_lengths(name).num_examples == 1


def test_quantiles_are_lengths_that_exist() -> None:
    """Half of the examples are no longer than the median."""
    found = Lengths(((1, 5), (10, 4), (100, 1)), "")
    assert (found.quantile(0.5), found.quantile(0.51), found.quantile(1.0), found.longest) == (1, 10, 100, 100)
