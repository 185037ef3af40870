"""`peftplan serve MODEL --adapters N`: one base and many adapters at inference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from peftplan.cli.options import model_argument, options_from, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.spec import Command, Option, switch
from peftplan.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_UNCERTAIN, BadInput
from peftplan.request import Request
from peftplan.serving.options import Serving, is_served


def run(given: dict[str, Any]) -> int:
    """Answer for one server."""
    if given.get("json_schema"):
        return write_schema(_schema())
    form = chosen_form(given)
    if given.get("adapters") is None:
        raise BadInput("--adapters says how many adapters share the base, and is missing; give --adapters N")
    request, serving = request_from(given), options_from(given, Serving)
    if given.get("check") and request.gpu is None:
        raise BadInput("--check asks whether the server fits a GPU; name one with --gpu (see `peftplan gpus`)")
    from peftplan.render.serve import serve_blocks, serve_csv
    from peftplan.serving.service import serve

    report = serve(request, serving)
    emit(form, report.model_dump_json, lambda: serve_blocks(report), lambda: serve_csv(report))
    if not given.get("check"):
        return EXIT_OK
    assert report.gpu is not None
    if not report.gpu.certain:
        return EXIT_UNCERTAIN
    return EXIT_OK if report.gpu.fits else EXIT_DOES_NOT_FIT


def _schema() -> dict[str, Any]:
    from peftplan.serving.answers import ServeReport

    schema = ServeReport.model_json_schema(mode="serialization")
    serving = Serving.model_json_schema(mode="serialization")
    schema["$defs"]["Serving"] = serving
    schema["properties"]["serving"] = {"$ref": "#/$defs/Serving"}
    return schema


# What fields of a request mean to a server, where that is not what they mean to a run.
_WORDS = {
    "adapter_dtype": "format that adapters are served in; default that of the base",
    "attention": "attention implementation of --server transformers; default sdpa",
    "gpus": "number of GPUs, each with a server of its own (from 1 to 4,096); default 1",
    "seq_len": "tokens of a sequence, prompt and answer together; default 2048, or the model's limit if lower",
}


def _shared_options() -> Iterator[Option]:
    """Options of a request that mean something to a server, in its words."""
    for option in request_options(without=[name for name in Request.model_fields if not is_served(name)]):
        text = _WORDS.get(option.name)
        yield option if text is None else option._replace(help=partial(str, text))


COMMAND = Command(
    run,
    (model_argument(),),
    (
        *request_options(of=Serving),
        switch("check", "exit status says whether it fits: 0 fits, 1 does not, 3 uncertain"),
        *_shared_options(),
        *output_options(),
    ),
    "The JSON holds request, serving, model, adapter, storage, cache, device, gpu, limits, speed, copies, money, "
    "versions and notes; gpu, speed and money need --gpu.",
)
