"""`peftplan gpus [FILTER]`: the GPUs known by name."""

from __future__ import annotations

from typing import Any

from peftplan.catalog import all_gpus
from peftplan.cli.catalogue import Row, answer, catalogue_command

FIELDS = {
    "key": "name to give to --gpu",
    "name": "full name",
    "aliases": "other names it is found by",
    "vendor": "who makes it",
    "architecture": "its generation",
    "compute_capability": "CUDA's number of the generation, or null",
    "memory_kind": "HBM or GDDR",
    "sold_bytes": "memory as sold",
    "driver_bytes": "memory as nvidia-smi shows it",
    "usable_bytes": "memory that torch can hand out",
    "capacity_basis": "where these come from",
    "mem_bytes_per_s": "memory bandwidth",
    "bf16_flop_per_s": "dense bf16 rate, or null",
    "note": "what is particular, or empty",
    "date": "when the record was made",
}


def run(given: dict[str, Any]) -> int:
    """List the GPUs."""
    return answer(given, _rows, lambda row: [row["key"], row["name"], *row["aliases"]], _table, FIELDS)


def _rows() -> list[Row]:
    rows = [{name: getattr(record, name) for name in FIELDS} for record in all_gpus()]
    for row in rows:
        row["aliases"] = list(row["aliases"])
        capability = row["compute_capability"]
        row["compute_capability"] = ".".join(map(str, capability)) if capability else None
    return rows


def _table(rows: list[Row]) -> Any:
    from peftplan.render.blocks import Column, Table
    from peftplan.units import GB, format_bytes

    return Table(
        f"{len(rows)} GPUs",
        (
            Column("--gpu"),
            Column("name"),
            Column("sold", right=True),
            Column("driver", right=True),
            Column("usable", right=True),
        ),
        tuple(
            (
                row["key"],
                row["name"],
                f"{row['sold_bytes'] / GB:g} GB",
                format_bytes(row["driver_bytes"]),
                format_bytes(row["usable_bytes"]),
            )
            for row in rows
        ),
    )


COMMAND = catalogue_command(run, FIELDS)
