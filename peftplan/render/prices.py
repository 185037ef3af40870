"""The screens of `peftplan prices`: offers as a table, how old they are, and what an update took and left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftplan.render.blocks import Block, Column, Notes, Table, Text

_REASONS_SHOWN = 12
_LINES_SHOWN = 5


def price_blocks(rows: Sequence[Mapping[str, Any]], notes: Sequence[str], stale: str) -> Iterator[Block]:
    """Offers, the cheapest GPU-hour first; `stale` warns of old prices."""
    if stale:
        yield Text(stale, "warn")
    yield Table(
        f"{len(rows)} prices, USD per GPU and hour",
        (
            Column("--gpu"),
            Column("GPUs", right=True),
            Column("on demand", right=True),
            Column("spot", right=True),
            Column("date", right=True),
            Column("where"),
        ),
        tuple(
            (
                row["gpu"] or f"({row['listed']})",
                str(row["gpu_count"]),
                _usd(row["usd_per_gpu_hour"]),
                _usd(row["spot_usd_per_gpu_hour"]),
                row["date"] + ("?" if row["confidence"] == "low" else " "),
                _where(row),
            )
            for row in rows
        ),
        below="; ".join(_legend(rows)),
    )
    if notes:
        yield Notes("Notes", tuple(notes))


def update_blocks(answer: Mapping[str, Any]) -> Iterator[Block]:
    """What an update added, and what it skipped line by line."""
    whose = f"prices of {', '.join(answer['providers'])} of {answer['date']}"
    if answer["added"]:
        yield Text(f"{answer['added']:,} {whose} added to {answer['file']}", "good")
    else:
        yield Text(f"The {whose} are in {answer['file']} already; nothing was added")
    yield Text(
        f"Read as {answer['kind']}: {answer['rows']:,} rows, {answer['without_gpu']:,} without a GPU, "
        f"{answer['num_skipped']:,} skipped; {answer['unchanged']:,} prices were known already."
    )
    skipped = answer["skipped"]
    if skipped:
        yield Table(
            "Skipped",
            (Column("rows", right=True), Column("why"), Column("lines")),
            tuple((f"{one['rows']:,}", one["reason"], _lines(one)) for one in skipped[:_REASONS_SHOWN]),
            below=f"and {len(skipped) - _REASONS_SHOWN} more reasons" if len(skipped) > _REASONS_SHOWN else "",
        )


def _legend(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the marks of the table mean, where it has them."""
    if any(row["confidence"] == "low" for row in rows):
        yield "? of low confidence"
    if any(not row["gpu"] for row in rows):
        yield "in brackets: a GPU that the catalogue does not have"


def _where(row: Mapping[str, Any]) -> str:
    machine = "" if row["instance"] == row["listed"] else f": {row['instance']}"
    region = f" ({row['region']})" if row["region"] not in ("", "all") else ""
    return f"{row['provider']}{machine}{region}"


def _lines(one: Mapping[str, Any]) -> str:
    shown = ", ".join(map(str, one["lines"][:_LINES_SHOWN]))
    return shown + (", ..." if one["rows"] > _LINES_SHOWN else "")


def _usd(price: float | None) -> str:
    return "-" if price is None else f"{price:.4g}" if price < 0.1 else f"{price:.2f}"
