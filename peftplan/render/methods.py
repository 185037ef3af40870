"""The screens of `peftplan methods`, and the ranking of many columns of a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.time_cost import shown_s
from peftplan.render.words import percent
from peftplan.report import Report
from peftplan.units import format_bytes, format_count

Row = Mapping[str, Any]


def facts_blocks(rows: Sequence[Row], title: str) -> Iterator[Block]:
    """Names and what they stand for, and the options of those that have some."""
    yield Table(
        title,
        (Column("--method"), Column("what it does"), Column("recipe"), Column("base")),
        tuple(
            (
                row["name"],
                row["summary"],
                row["default_precision"],
                (row["default_quant"] or "frozen") if row["frozen_base"] else "trained",
            )
            for row in rows
        ),
    )
    options = tuple(f"{row['name']}: {option}" for row in rows for option in row["options"])
    if options:
        yield Notes("--method-option NAME=VALUE", options)


def model_table(rows: Sequence[Row], model: str) -> Iterator[Block]:
    """Every method on one model, those that need least first; why others do not run."""
    yield Text(f"methods on {model}", "title")
    timed = any(row["step_s"] for row in rows)
    yield Table(
        "By peak of allocated memory",
        (
            Column("--method"),
            Column("trains", right=True),
            Column("share", right=True),
            Column("adapter", right=True),
            Column("activations", right=True),
            Column("peak", right=True),
            *((Column("step", right=True),) if timed else ()),
        ),
        tuple(
            (
                row["name"],
                format_count(row["num_trainable_params"]),
                percent(row["trainable_frac"]),
                format_bytes(row["adapter_checkpoint_bytes"]) if row["adapter_checkpoint_bytes"] else "-",
                format_bytes(row["activations_bytes"]),
                format_bytes(row["peak_allocated_bytes"]),
                *((shown_s(row["step_s"]) if row["step_s"] else "-",) if timed else ()),
            )
            for row in rows
            if row["refused"] is None
        ),
    )
    yield Table(
        "After training",
        (Column("--method"), Column("merged"), Column("at inference"), Column("paper"), Column("peft")),
        tuple(
            (row["name"], row["merging"], row["inference"], _paper(row["paper"]), row["peft"] or "-")
            for row in rows
            if row["refused"] is None
        ),
    )
    first = [row for row in rows if row["refused"] is None and row["init_reads"] is not None]
    if first:
        yield _first(first)
    refused = tuple(f"{row['name']}: {row['refused']}" for row in rows if row["refused"] is not None)
    if refused:
        yield Notes("Not on this model, or not as asked", refused)


def _first(rows: Sequence[Row]) -> Table:
    """What is computed once before training; passes of the model and workspaces of solvers come beside it."""
    timed = any(row["init_least_s"] is not None for row in rows)
    return Table(
        "Once before training",
        (
            Column("--method"),
            Column("from"),
            Column("beside the model", right=True),
            Column("on disk", right=True),
            Column("flop", right=True),
            *((Column("no less than", right=True),) if timed else ()),
        ),
        tuple(
            (
                row["name"],
                row["init_reads"],
                format_bytes(row["init_beside_bytes"]),
                format_bytes(row["init_disk_bytes"]) if row["init_disk_bytes"] else "-",
                f"{row['init_num_flop']:.2g}",
                *((shown_s(row["init_least_s"]) if row["init_least_s"] is not None else "-",) if timed else ()),
            )
            for row in rows
        ),
    )


def _paper(text: str) -> str:
    """Its number in the archive; of what has none, that it is no paper."""
    found = re.search(r"arXiv:[0-9.]+[0-9]", text)
    return found[0] if found else "-"


def ranking(columns: Sequence[Report], names: Sequence[str]) -> Table:
    """Many runs, one a row, in the order given."""
    return Table(
        "By peak of allocated memory",
        (
            Column("run"),
            Column("trains", right=True),
            Column("share", right=True),
            Column("weights", right=True),
            Column("activations", right=True),
            Column("peak", right=True),
        ),
        tuple(
            (
                name,
                format_count(column.method.num_trainable_params),
                percent(column.method.trainable_frac),
                format_bytes(column.memory.resident.weights + column.memory.resident.adapters),
                format_bytes(column.memory.activations_bytes),
                format_bytes(column.memory.peak_allocated_bytes),
            )
            for name, column in zip(names, columns)
        ),
    )
