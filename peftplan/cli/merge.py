"""`peftplan merge MODEL`: merging an adapter into its base, and what lies on disk."""

from __future__ import annotations

from typing import Any

from peftplan.cli.options import model_argument, options_from, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Command
from peftplan.merging.options import Merging, is_merged
from peftplan.request import Request


def run(given: dict[str, Any]) -> int:
    """Answer for one adapter."""
    if given.get("json_schema"):
        return write_schema(_schema())
    form = chosen_form(given)
    request, merging = request_from(given), options_from(given, Merging)
    from peftplan.engines import merge
    from peftplan.render.merge import merge_blocks, merge_csv

    with progress_bar("tracing", request.engine == "trace") as progress:
        report = merge(request, merging, progress)
    emit(form, report.model_dump_json, lambda: merge_blocks(report), lambda: merge_csv(report))
    return 0


def _schema() -> dict[str, Any]:
    from peftplan.merging.answers import MergeReport

    schema = MergeReport.model_json_schema(mode="serialization")
    schema["$defs"]["Merging"] = Merging.model_json_schema(mode="serialization")
    schema["properties"]["merging"] = {"$ref": "#/$defs/Merging"}
    return schema


COMMAND = Command(
    run,
    (model_argument(),),
    (
        *request_options(of=Merging),
        *request_options(without=[name for name in Request.model_fields if not is_merged(name)]),
        *output_options(),
    ),
    "The JSON holds request, merging, model, method, how, adapter_params, ways (each with its moments, files and "
    "time, or why it is refused), recommended (a place in ways) and why, rates, disk, versions and notes.",
)
