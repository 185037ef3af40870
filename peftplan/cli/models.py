"""`peftplan models [FILTER]`: the models known by name."""

from __future__ import annotations

from typing import Any

from peftplan.catalog import all_models
from peftplan.cli.catalogue import Row, answer, catalogue_command

FIELDS = {
    "id": "name on the Hub",
    "aliases": "other names it is found by",
    "architecture": "model_type of its config",
    "num_params": "parameters, tied ones once",
    "note": "what is particular, or empty",
    "source": "where the config comes from",
    "date": "when it was read",
}


def run(given: dict[str, Any]) -> int:
    """List the models."""
    return answer(given, _rows, lambda row: [row["id"], *row["aliases"], row["architecture"]], _table, FIELDS)


def _rows() -> list[Row]:
    return [
        {
            "id": record.id,
            "aliases": list(record.aliases),
            "architecture": str(record.config.get("model_type", "")),
            "num_params": record.num_params,
            "note": record.note,
            "source": record.source,
            "date": record.date,
        }
        for record in all_models()
    ]


def _table(rows: list[Row]) -> Any:
    from peftplan.render.blocks import Column, Table
    from peftplan.units import format_count

    return Table(
        f"{len(rows)} models",
        (Column("model"), Column("parameters", right=True), Column("type"), Column("also called")),
        tuple((r["id"], format_count(r["num_params"]), r["architecture"], ", ".join(r["aliases"])) for r in rows),
    )


COMMAND = catalogue_command(run, FIELDS)
