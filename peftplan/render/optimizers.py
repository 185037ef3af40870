"""The screens of `peftplan optimizers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.time_cost import shown_s
from peftplan.units import format_bytes

Row = Mapping[str, Any]


def facts_blocks(rows: Sequence[Row], title: str) -> Iterator[Block]:
    """Names and what they stand for, and the options of those that have some."""
    yield Table(
        title,
        (Column("--optimizer"), Column("what it keeps, and what a step holds"), Column("also called")),
        tuple((row["name"], row["summary"], ", ".join(row["aliases"])) for row in rows),
    )
    options: dict[str, list[str]] = {}
    for row in rows:
        for option in row["options"]:
            options.setdefault(option, []).append(row["name"])
    if options:
        told = tuple(f"{option} ({', '.join(names)})" for option, names in options.items())
        yield Notes("--optimizer-option NAME=VALUE", told)


def model_blocks(rows: Sequence[Row], model: str, method: str) -> Iterator[Block]:
    """Every optimizer on one model, those that need least first; why others do not run."""
    yield Text(f"optimizers on {model}" + (f", --method {method}" if method else ""), "title")
    timed = any(row["step_s"] for row in rows)
    runs = [row for row in rows if row["refused"] is None]
    paged = any(row["optimizer_paged_bytes"] for row in runs)
    host = any(row["optimizer_host_bytes"] for row in runs)
    yield Table(
        "By peak of allocated memory",
        (
            Column("--optimizer"),
            Column("states", right=True),
            *((Column("in pages", right=True),) if paged else ()),
            *((Column("on the host", right=True),) if host else ()),
            Column("gradients", right=True),
            Column("peak", right=True),
            *((Column("step", right=True),) if timed else ()),
        ),
        tuple(
            (
                row["name"],
                _size(row["optimizer_states_bytes"]),
                *((_size(row["optimizer_paged_bytes"]),) if paged else ()),
                *((_size(row["optimizer_host_bytes"]),) if host else ()),
                _size(row["gradients_bytes"]),
                format_bytes(row["peak_allocated_bytes"]),
                *((shown_s(row["step_s"]) if row["step_s"] else "-",) if timed else ()),
            )
            for row in runs
        ),
    )
    refused = tuple(f"{row['name']}: {row['refused']}" for row in rows if row["refused"] is not None)
    if refused:
        yield Notes("Not on this model, or not as asked", refused)


def _size(num_bytes: int) -> str:
    return format_bytes(num_bytes) if num_bytes else "-"
