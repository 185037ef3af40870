"""`peftplan trace MODEL`: the real transformers, peft and bitsandbytes step on fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftplan.cli.estimate import fit_status, with_request_schema
from peftplan.cli.options import counted, model_argument, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Command, Option, switch
from peftplan.errors import EXIT_OK, BadInput

if TYPE_CHECKING:
    from peftplan.engines import Traced

DEFAULT_TOP = 10
MAX_TOP = 1000
MAX_LAYERS = 10**5
CHARTS = (".html", ".svg", ".png")


def run(given: dict[str, Any]) -> int:
    """Trace one run."""
    if given.get("json_schema"):
        from peftplan.measure.trace.report import TraceReport

        return write_schema(with_request_schema(TraceReport.model_json_schema(mode="serialization")))
    form = chosen_form(given)
    request = request_from({**given, "engine": "trace"})
    if given.get("check") and request.gpu is None:
        raise BadInput("--check asks whether the run fits a GPU; name one with --gpu (see `peftplan gpus`)")
    top = counted("--top", given.get("top"), MAX_TOP) or DEFAULT_TOP
    layers = counted("--layers", given.get("layers"), MAX_LAYERS)
    files = _files(given)
    from peftplan.engines import trace

    with progress_bar("tracing") as progress:
        traced = trace(
            request,
            peft_config=_peft_config(given),
            layers=layers,
            fast=bool(given.get("fast")),
            top=top,
            progress=progress,
        )
    for write in files:
        write(traced)
    from peftplan.render.table_csv import report_csv
    from peftplan.render.trace import trace_blocks

    report = traced.report
    emit(form, report.model_dump_json, lambda: trace_blocks(report), lambda: report_csv(report))
    return fit_status(report) if given.get("check") else EXIT_OK


def _peft_config(given: dict[str, Any]) -> dict[str, Any] | None:
    name = given.get("peft_config")
    if name is None:
        return None
    from peftplan.measure.trace.peft_config import read_peft_config

    return read_peft_config(Path(name).expanduser())


def _files(given: dict[str, Any]) -> list[Callable[[Traced], None]]:
    """What writes each file that is asked for; a place that cannot be written to is refused before the work."""
    from peftplan.measure.files import check_target

    writers: list[Callable[[Traced], None]] = []
    if "snapshot" in given:
        snapshot = check_target(Path(given["snapshot"]).expanduser(), "--snapshot")
        writers.append(lambda traced: _write_snapshot(traced, snapshot))
    if "chart" in given:
        chart = Path(given["chart"]).expanduser()
        if chart.suffix.lower() not in CHARTS:
            raise BadInput(f"--chart {given['chart']!r}: the name's end says what is drawn; it must be {_ends()}")
        check_target(chart, "--chart")
        _check_charts(chart)
        writers.append(lambda traced: _write_chart(traced, chart))
    return writers


def _ends() -> str:
    return f"{', '.join(CHARTS[:-1])} or {CHARTS[-1]}"


def _check_charts(chart: Path) -> None:
    if chart.suffix.lower() == ".png":
        from peftplan.render.timeline import require_png

        require_png()


def _write_snapshot(traced: Traced, path: Path) -> None:
    from peftplan.measure.trace.snapshot import write_snapshot

    write_snapshot(traced.recording, path)


def _write_chart(traced: Traced, path: Path) -> None:
    from peftplan.measure.files import write_whole
    from peftplan.render.timeline import timeline_html, timeline_png, timeline_svg
    from peftplan.render.trace import chart_facts, chart_title

    report = traced.report
    title, kind = chart_title(report), path.suffix.lower()
    if kind == ".html":
        content = timeline_html(report.timeline, title, report.largest, chart_facts(report)).encode()
    elif kind == ".svg":
        content = timeline_svg(report.timeline, title).encode()
    else:
        content = timeline_png(report.timeline, title)
    write_whole(path, content, "--chart")


COMMAND = Command(
    run,
    (model_argument(),),
    (
        *request_options(without=("engine",)),
        Option(
            "peft_config",
            ("--peft-config",),
            lambda: "peft's adapter_config.json instead of the method's options",
            metavar="FILE",
        ),
        Option("snapshot", ("--snapshot",), lambda: "write a file for PyTorch's memory visualiser", metavar="FILE"),
        Option(
            "chart",
            ("--chart",),
            lambda: f"draw memory over the run; the name ends in {_ends()}",
            metavar="FILE",
        ),
        switch("fast", "trace few blocks and add the others: seconds for the largest models"),
        Option("top", ("--top",), lambda: f"largest tensors to list; default {DEFAULT_TOP}", metavar="INTEGER"),
        Option("layers", ("--layers",), lambda: "trace the model's first blocks only", metavar="INTEGER"),
        *output_options(),
        switch("check", "exit with 0 if it fits the GPU, 1 if not, 3 if the interval straddles the limit"),
    ),
    "The JSON holds what an estimate's does, and engine, mode, totals, phases, largest, categories, tree, "
    "timeline, attention_kernels, libraries and seconds. It needs the libraries: pip install 'peftplan[trace]'.",
)
