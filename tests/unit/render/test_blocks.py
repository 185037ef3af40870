"""Blocks and how they are drawn: bars without drift, tables that keep to the width."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peftplan.render.blocks import (
    Column,
    Gauge,
    Notes,
    Part,
    Split,
    Table,
    Text,
    cell_widths,
    cut_to_width,
    lettered,
)
from peftplan.render.markdown import markdown
from peftplan.render.plain import plain, split_bar
from peftplan.render.table_csv import rows_csv

SIZES = st.lists(st.integers(0, 10**12), min_size=1, max_size=10)


def parts_of(sizes: list[int]) -> tuple[Part, ...]:
    return lettered((f"part {number}", size) for number, size in enumerate(sizes))


@given(SIZES, st.integers(1, 200))
def test_a_bar_is_as_long_as_what_it_shows(sizes, width):
    """The parts of a full bar take all of its width, however they are rounded."""
    cells = cell_widths(parts_of(sizes), sum(sizes), width)
    assert all(count >= 0 for count in cells)
    assert sum(cells) == (width if sum(sizes) else 0)


@given(SIZES, st.integers(0, 10**12), st.integers(20, 200))
def test_a_split_bar_has_the_width_of_the_screen(sizes, spare, width):
    """A bar with room to spare is filled with dots, one with a limit has its mark."""
    end = sum(sizes) + spare
    legend = Table("", (Column("part"),), ())
    bar = split_bar(Split("", parts_of(sizes), end, legend, mark=end // 2), width)
    assert len(bar) == width
    assert "|" in bar or not end


def test_letters_are_distinct():
    """No two parts of a bar share a letter."""
    parts = lettered((name, 1) for name in ("adapters", "activations", "allocator rounding", "a", "a"))
    assert len({part.letter for part in parts}) == len(parts)


@given(st.lists(st.text("ab c", max_size=40), min_size=1, max_size=5), st.integers(30, 120))
def test_a_plain_table_keeps_to_the_width(words, width):
    """Words are wrapped, numbers are not, and no line is too long."""
    table = Table(
        "A title of some length, which wraps",
        (Column("word"), Column("size", right=True), Column("more words")),
        tuple((word, "12.34 GiB", word) for word in words),
    )
    assert all(len(line) <= width for line in plain([table], width).splitlines())


def test_columns_of_numbers_are_cut_into_several_tables():
    """A table too wide for the screen becomes several with the same first column."""
    columns = (Column("name"), *(Column(f"run {number}", right=True) for number in range(5)))
    table = Table("Runs", columns, (("weights", *["12.34 GiB"] * 5),), below="a remark")
    tables = cut_to_width(table, 40)
    assert len(tables) == 2
    assert all(part.columns[0].name == "name" for part in tables)
    assert [part.below for part in tables] == ["", "a remark"]
    assert sum(len(part.columns) - 1 for part in tables) == 5


def test_markdown_escapes_what_it_would_read_as_signs():
    """Names with stars, bars and underscores come out as they are."""
    text = markdown([Table("", (Column("name"),), (("model.layers.*: _log|x",),))])
    assert r"model.layers.\*: \_log\|x" in text


def test_every_block_has_a_plain_and_a_markdown_form():
    """Text, tables, gauges, bars and notes are drawn by both."""
    legend = Table("", (Column("part"), Column("size", right=True)), (("weights", "1 B"),))
    blocks = [
        Text("A title", "title"),
        Table("T", (Column("a"), Column("")), (("x", Gauge(0.5)),), frozenset({0})),
        Split("Bar", lettered([("weights", 1)]), 1, legend),
        Notes("Notes", ("one", "two")),
    ]
    assert "############" in plain(blocks, 60)
    assert "50%" in markdown(blocks)


def test_csv_quotes_and_leaves_empty():
    """Commas are quoted, None is an empty cell."""
    assert rows_csv(["a", "b"], [["x,y", None]]) == 'a,b\n"x,y",\n'
