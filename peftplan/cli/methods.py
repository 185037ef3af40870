"""`peftplan methods [FILTER]`: the fine-tuning methods."""

from __future__ import annotations

from typing import Any

from peftplan.cli.catalogue import Row, answer, catalogue_command
from peftplan.methods import METHODS

FIELDS = {
    "name": "name to give to --method",
    "summary": "what it does",
    "frozen_base": "whether the base's weights stay as they are",
    "default_precision": "its recipe unless another is asked for",
    "default_quant": "how it stores the frozen linears, or null",
    "source": "key of its source",
}


def run(given: dict[str, Any]) -> int:
    """List the methods."""
    return answer(given, _rows, lambda row: [row["name"], row["summary"]], _table, FIELDS)


def _rows() -> list[Row]:
    return [{name: getattr(method, name) for name in FIELDS} for method in METHODS.values()]


def _table(rows: list[Row]) -> Any:
    from peftplan.render.blocks import Column, Table

    return Table(
        f"{len(rows)} methods",
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


COMMAND = catalogue_command(run, FIELDS)
