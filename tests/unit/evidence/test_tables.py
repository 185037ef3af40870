"""Files of measurements: read as one of the known tables, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftplan.catalog import profiles
from peftplan.errors import BadInput, NotFound
from peftplan.evidence.tables import parse_table, read_table

PUBLISHED = Path(__file__).parents[3] / "profiles" / "published"
MEMORY = (PUBLISHED / "memory.csv").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("memory", "memory", 905), ("oom_outcomes", "oom", 14), ("throughput", "throughput", 276)],
)
def test_the_shipped_tables_are_recognised_by_their_columns(name: str, kind: str, count: int) -> None:
    """Each file is read as what its columns say, whole."""
    table = read_table(PUBLISHED / f"{name}.csv")
    assert (table.kind, len(table.rows)) == (kind, count)


def test_more_columns_and_a_byte_order_mark_are_taken() -> None:
    """A file that a spreadsheet wrote, with columns of its own, is the same table."""
    text = "\ufeff" + "\r\n".join(line + ",mine" for line in MEMORY[:3]) + "\r\n\r\n"
    table = parse_table(text.encode(), "a.csv")
    assert (table.kind, len(table.rows)) == ("memory", 2)
    assert table.rows[0]["mine"] == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\xff\xfe\x00a", "no text in UTF-8"),
        (b"a,b\0,c\n1,2,3\n", "zero bytes"),
        (b"a,b,c\n1,2,3\n", "no known table"),
        (MEMORY[0].replace(",metric_norm,", ",").encode() + b"\n", "lacks columns of memory.csv: metric_norm"),
        (MEMORY[0].encode() + b"\n", "no rows"),
        ((MEMORY[0] + ",source\n").encode(), "twice"),
        ("\n".join([MEMORY[0], "1,2,3"]).encode(), "row 1: 3 cells"),
        ("\n".join([MEMORY[0], '"open']).encode(), "no CSV"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(content: bytes, said: str) -> None:
    """The file is named, and what is wrong with it."""
    with pytest.raises(BadInput, match=r"x\.csv") as caught:
        parse_table(content, "x.csv")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-1"])
def test_a_figure_that_is_no_number_from_zero_is_refused(text: str) -> None:
    """NaN, infinities and negative sizes are mistakes of the file; row and column are named."""
    header = MEMORY[0].split(",")
    cells = dict.fromkeys(header, "")
    cells["memory_gib"] = text
    with pytest.raises(BadInput, match="row 1: memory_gib"):
        parse_table("\n".join([MEMORY[0], ",".join(cells.values())]).encode(), "x.csv")


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder, and one too long to be a table."""
    with pytest.raises(NotFound, match="does not exist"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(BadInput, match="is a folder"):
        read_table(tmp_path)
    monkeypatch.setattr(profiles, "MAX_FILE_BYTES", 10)
    with pytest.raises(BadInput, match="at most"):
        read_table(PUBLISHED / "memory.csv")
