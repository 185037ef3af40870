"""The screen of a comparison: runs as columns, parts of the peak as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.methods import ranking
from peftplan.render.time_cost import hours, shown_s
from peftplan.render.words import moment_label, percent
from peftplan.report import Comparison, Report
from peftplan.units import format_bytes, format_count, format_usd

T = TypeVar("T", int, float)
LEAST, MOST = "<", ">"
MOST_COLUMNS = 8  # of runs side by side; more are rows


def compare_blocks(comparison: Comparison) -> Iterator[Block]:
    """Columns side by side: the terms that sum to each peak, other figures, and fields that differ."""
    columns = comparison.columns
    names = column_names(columns)
    yield Text(_title(columns), "title")
    if len(columns) > MOST_COLUMNS:
        yield ranking(columns, names)
        return
    terms = [(term.name, term.bytes) for term in comparison.terms]
    terms.append(("peak allocated", tuple(c.memory.peak_allocated_bytes for c in columns)))
    heads = (Column("part of the peak"), *(Column(name, right=True) for name in _spaced(names)))
    if _by_two_engines(columns):
        yield _bytes_table(terms, names)
    else:
        yield Table(
            "Memory at each run's own peak",
            heads,
            tuple((name, *_marked(sizes, format_bytes)) for name, sizes in terms),
            frozenset({len(terms) - 1}),
            f"{LEAST} smallest, {MOST} largest of the row" if len(columns) > 1 else "",
        )
    yield Table("Other figures", (Column(""), *heads[1:]), tuple(_figures(columns)))
    if comparison.differences:
        yield _differences(comparison, names)
    fields = differing_fields(columns)
    if fields:
        plain_heads = (Column(name, right=True) for name in names)
        yield Table("Where the requests differ", (Column("field"), *plain_heads), tuple(fields))
    shared = [note for note in columns[0].notes if all(note in c.notes for c in columns)]
    if shared:
        yield Notes("Notes", tuple(shared))


def column_names(columns: Sequence[Report]) -> list[str]:
    """A short name for each column: its method, its model, or its number where those repeat."""
    methods = [column.method.kind for column in columns]
    if len(set(methods)) == len(columns):
        return methods
    engines = [str(column.request["engine"]) for column in columns]
    if len(set(engines)) == len(columns) and len(set(methods)) == 1:
        return engines
    both = [f"{method} {engine}" for method, engine in zip(methods, engines)]
    if len(set(both)) == len(columns):
        return both
    models = [column.model.id.rpartition("/")[2] for column in columns]
    if len(set(models)) == len(columns):
        return models
    return [f"{number}: {method}" for number, method in enumerate(methods, start=1)]


def _by_two_engines(columns: Sequence[Report]) -> bool:
    """Whether these are one run, answered twice."""
    return len(columns) == 2 and [field for field, *_ in differing_fields(columns)] == ["engine"]


def _bytes_table(terms: Sequence[tuple[str, tuple[int, ...]]], names: Sequence[str]) -> Table:
    """Parts to the byte, and by how much the second engine's differ."""
    return Table(
        "Bytes at the peak",
        (
            Column("part of the peak"),
            *(Column(name, right=True) for name in names),
            Column("difference", right=True),
        ),
        tuple((name, f"{a:,}", f"{b:,}", f"{b - a:+,}" if b != a else "0") for name, (a, b) in terms),
        frozenset({len(terms) - 1}),
    )


def _differences(comparison: Comparison, names: Sequence[str]) -> Table:
    """Tensors that only one of two engines has at its peak."""
    rows = tuple(
        (
            one.name,
            ": ".join(part for part in (one.module, one.operation) if part),
            one.tensor,
            *(format_bytes(size) if size else "-" for size in one.bytes),
        )
        for one in comparison.differences
    )
    columns = (
        *(Column("part"), Column("made by"), Column("tensors")),
        *(Column(name, right=True) for name in names),
    )
    return Table("The largest differences, tensor by tensor", columns, rows)


def differing_fields(columns: Sequence[Report]) -> list[tuple[str, ...]]:
    """Fields of the requests that are not alike in all columns."""
    requests = [column.request for column in columns]
    return [
        (field, *(_value(request[field]) for request in requests))
        for field in requests[0]
        if any(request[field] != requests[0][field] for request in requests)
    ]


def _title(columns: Sequence[Report]) -> str:
    models = dict.fromkeys(f"{c.model.id}, {format_count(c.model.num_params)} parameters" for c in columns)
    cards = dict.fromkeys(c.gpu.name for c in columns if c.gpu is not None)
    return " against ".join(models) + (f" on {' and '.join(cards)}" if cards else "")


def _figures(columns: Sequence[Report]) -> Iterator[tuple[str, ...]]:
    yield "peak moment", *_spaced(moment_label(c.memory.peak_moment) for c in columns)
    yield "reserved", *_marked([c.memory.peak_reserved_bytes for c in columns], format_bytes)
    yield "device", *_marked([c.memory.device_bytes for c in columns], format_bytes)
    yield "evaluation", *_marked([c.memory.evaluation_peak_bytes or 0 for c in columns], format_bytes)
    yield "trained", *_marked([c.method.num_trainable_params for c in columns], format_count)
    yield "share trained", *_spaced(percent(c.method.trainable_frac) for c in columns)
    yield "adapter file", *_marked([c.method.adapter_checkpoint_bytes for c in columns], format_bytes)
    if any(c.gpu is not None for c in columns):
        yield "fits", *_spaced(_fits(c) for c in columns)
    times = [c.time for c in columns]
    if any(times):
        yield "step", *_marked([t.step_s if t else 0 for t in times], shown_s)
        yield "tokens/s", *_marked([t.tokens_per_s if t else 0 for t in times], lambda rate: f"{rate:,.0f}")
    costs = [c.cost for c in columns]
    if any(costs):
        yield "run", *_marked([c.hours if c else 0 for c in costs], hours)
        yield "cost", *_marked([c.usd if c else 0 for c in costs], format_usd)


def _spaced(texts: Iterable[str]) -> Iterable[str]:
    """Texts with the room that a mark takes in other rows."""
    return (f"{text}  " for text in texts)


def _fits(column: Report) -> str:
    gpu = column.gpu
    if gpu is None:
        return "-"
    word = "yes" if gpu.fits else "no"
    return word if gpu.certain else f"{word}?"


def _marked(values: Sequence[T], shown: Callable[[T], str]) -> list[str]:
    """Values as text, the smallest and the largest marked where they differ; room for a mark everywhere."""
    least, most = min((value for value in values if value), default=0), max(values)
    if least == most:
        most = 0
    marks = {least: f" {LEAST}", most: f" {MOST}"} if most else {}
    return [(shown(value) if value else "-") + marks.get(value, "  ") for value in values]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value in (None, []) else str(value)
