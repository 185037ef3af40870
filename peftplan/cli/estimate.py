"""`peftplan estimate MODEL`: memory of one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from peftplan.cli.options import model_argument, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar, read_data
from peftplan.cli.spec import Command, switch
from peftplan.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_UNCERTAIN, BadInput

if TYPE_CHECKING:
    from peftplan.render.blocks import Block
    from peftplan.report import Report
    from peftplan.request import Request


GUIDANCE = switch("guidance", "add what papers and practitioners advise for such a run; no figure rests on it")


def run(given: dict[str, Any]) -> int:
    """Answer one request."""
    if given.get("json_schema"):
        return write_schema(report_schema())
    form = chosen_form(given)
    request = request_from(given)
    if given.get("check") and request.gpu is None:
        raise BadInput("--check asks whether the run fits a GPU; name one with --gpu (see `peftplan gpus`)")
    read_data(request)
    from peftplan.engines import estimate

    with progress_bar("tracing", request.engine == "trace") as progress:
        report = estimate(request, progress)
    explained, guided = bool(given.get("explain")), bool(given.get("guidance"))
    emit(
        form,
        lambda: _json(report, explained, guided),
        lambda: _blocks(request, report, explained, guided),
        lambda: _csv(report),
    )
    return fit_status(report) if given.get("check") else EXIT_OK


def fit_status(report: Report) -> int:
    """Exit status of a check: fits, does not fit, or too near to tell."""
    gpu = report.gpu
    assert gpu is not None
    if not gpu.certain:
        return EXIT_UNCERTAIN
    return EXIT_OK if gpu.fits else EXIT_DOES_NOT_FIT


def report_schema() -> dict[str, Any]:
    """The schema of an answer."""
    from peftplan.report import Report

    schema = with_request_schema(Report.model_json_schema(mode="serialization"))
    schema["properties"]["guidance"] = _GUIDANCE_SCHEMA
    return schema


def with_request_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an answer with its request described field by field."""
    from peftplan.request import Request

    request = Request.model_json_schema(mode="serialization")
    schema["$defs"].update(request.pop("$defs", {}))
    schema["$defs"]["Request"] = request
    schema["properties"]["request"] = {"$ref": "#/$defs/Request"}
    return schema


_GUIDANCE_SCHEMA: dict[str, Any] = {
    "description": "with --guidance: advice that bears on the run, which no figure rests on",
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            name: {"type": "string"} for name in ("topic", "text", "evidence", "source", "title", "where")
        },
    },
}


def _json(report: Report, explained: bool, guided: bool) -> str:
    if not explained and not guided:
        return report.model_dump_json()
    import json

    from peftplan.guidance import as_fields, guidance_for
    from peftplan.render.explain import explain

    answer = report.model_dump(mode="json")
    if explained:
        answer["explanation"] = explain(report).model_dump(mode="json")
    if guided:
        answer["guidance"] = [as_fields(one) for one in guidance_for(report.request, report.model.num_params)]
    return json.dumps(answer)


def _blocks(request: Request, report: Report, explained: bool, guided: bool) -> Iterable[Block]:
    from peftplan.planner import suggest_changes
    from peftplan.render.estimate import estimate_blocks

    unfit = report.gpu is not None and not report.gpu.fits
    yield from estimate_blocks(report, suggest_changes(request, report) if unfit else ())
    if guided:
        from peftplan.render.guidance import guidance_block

        yield guidance_block(report)
    if explained:
        from peftplan.render.explain import explain_blocks

        yield from explain_blocks(report)


def _csv(report: Report) -> str:
    from peftplan.render.table_csv import report_csv

    return report_csv(report)


COMMAND = Command(
    run,
    (model_argument(),),
    (
        *request_options(),
        *output_options(),
        switch("explain", "say how every figure comes about"),
        GUIDANCE,
        switch("check", "exit with 0 if it fits the GPU, 1 if not, 3 if the interval straddles the limit"),
    ),
    "The JSON holds request, model, method, memory, gpu, time, cost, recipes, versions and notes.",
)
