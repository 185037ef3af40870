"""`peftplan explain MODEL`: every figure with its formula, the numbers put in, and its source."""

from __future__ import annotations

from typing import Any

from peftplan.cli.options import model_argument, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Command


def run(given: dict[str, Any]) -> int:
    """Explain one answer."""
    from peftplan.render.explain import Explanation, Figure, explain, explain_blocks

    if given.get("json_schema"):
        return write_schema(Explanation.model_json_schema(mode="serialization"))
    form = chosen_form(given)
    request = request_from(given)
    from peftplan.engines import estimate
    from peftplan.render.table_csv import rows_csv

    with progress_bar("tracing", request.engine == "trace") as progress:
        report = estimate(request, progress)
    header = list(Figure.model_fields)
    emit(
        form,
        lambda: explain(report).model_dump_json(),
        lambda: explain_blocks(report),
        lambda: rows_csv(header, ([getattr(f, name) for name in header] for f in explain(report).figures)),
    )
    return 0


COMMAND = Command(
    run,
    (model_argument(),),
    (*request_options(), *output_options()),
    "The JSON holds figures (group, name, bytes, meaning, formula, source), conventions and sources.",
)
