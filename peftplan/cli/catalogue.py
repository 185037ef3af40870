"""What the commands over the catalogues share: a filter, rows as JSON, CSV or a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from peftplan.catalog.names import normalise
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.spec import Argument, Command
from peftplan.errors import NotFound

Row = dict[str, Any]


def matching(rows: Sequence[Row], text: str, names: Callable[[Row], Sequence[str]]) -> list[Row]:
    """Rows of which a name holds the filter, case, spaces, dashes and underscores apart."""
    wanted = normalise(text)
    return [row for row in rows if any(wanted in normalise(name) for name in names(row))]


def answer(
    given: dict[str, Any],
    rows: Callable[[], list[Row]],
    names: Callable[[Row], Sequence[str]],
    table: Callable[[list[Row]], Any],
    described: dict[str, str],
) -> int:
    """Print the rows that the filter leaves; none is an error that names the filter."""
    if given.get("json_schema"):
        return write_schema(rows_schema(described))
    form = chosen_form(given)
    found = matching(rows(), given.get("filter", ""), names)
    if not found:
        raise NotFound(f"nothing matches {given['filter']!r}; leave the filter out to see everything")
    emit(form, lambda: rows_as_json(found), lambda: [table(found)], lambda: rows_as_csv(found))
    return 0


def catalogue_command(run: Callable[[dict[str, Any]], int], described: dict[str, str]) -> Command:
    """A command that lists rows, with an optional filter."""
    return Command(
        run,
        (Argument("filter", "show only what has this in its name", required=False),),
        output_options(),
        f"The JSON holds rows; each has {', '.join(described)}.",
    )


def rows_as_json(rows: list[Row]) -> str:
    """Rows as JSON under the key `rows`."""
    import json

    return json.dumps({"rows": rows}, ensure_ascii=False)


def rows_as_csv(rows: list[Row]) -> str:
    """Rows as CSV; lists joined with semicolons."""
    from peftplan.render.table_csv import rows_csv

    return rows_csv(
        list(rows[0]),
        (["; ".join(map(str, v)) if isinstance(v, (list, tuple)) else v for v in row.values()] for row in rows),
    )


def rows_schema(described: dict[str, str]) -> dict[str, Any]:
    """The JSON schema of rows whose fields are described."""
    properties = {name: {"description": text} for name, text in described.items()}
    row = {"type": "object", "properties": properties, "required": list(described)}
    return {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": row}},
        "required": ["rows"],
    }
