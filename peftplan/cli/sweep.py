"""`peftplan sweep MODEL --over FIELD=VALUES …`: a grid of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftplan.cli.grid import axes_from
from peftplan.cli.options import flag_of, model_names, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar, read_data
from peftplan.cli.spec import Argument, Command, Option, switch
from peftplan.errors import EXIT_OK, BadInput

if TYPE_CHECKING:
    from peftplan.request import Request
    from peftplan.sweeps import SweepReport

CHARTS = (".svg", ".html", ".png")
# Points that are answered in about a second, with a replay of every block and without.
_WHOLE_IN_A_SECOND, _EXTRAPOLATED_IN_A_SECOND = 20, 400
WHOLE_FORMS = ("markdown", "plain")  # whose tables hold every point


def run(given: dict[str, Any]) -> int:
    """Answer every point of the grid."""
    if given.get("json_schema"):
        return write_schema(_schema())
    form = chosen_form(given)
    axes = axes_from(given.get("over", []))
    request = _common_request(given, axes)
    writers = list(_writers(given))
    from peftplan.render.sweep import SHOWN_AT_MOST, sweep_blocks, sweep_csv
    from peftplan.sweeps import sweep

    read_data(request)
    with progress_bar("answering", _takes_long(axes, given.get("every_block"))) as progress:
        report = sweep(
            request,
            axes,
            every_block=given.get("every_block"),
            breakdown=bool(given.get("breakdown")),
            progress=progress,
        )
    for write in writers:
        write(report)
    shown = None if form in WHOLE_FORMS else SHOWN_AT_MOST
    emit(form, report.model_dump_json, lambda: sweep_blocks(report, shown), lambda: sweep_csv(report))
    return EXIT_OK


def _common_request(given: dict[str, Any], axes: dict[str, list[Any]]) -> Request:
    """What all points have in common; a field that is varied is set there and nowhere else."""
    twice = next((name for name in axes if name in given and name != "model"), None)
    if twice is not None:
        raise BadInput(f"{flag_of(twice)} and --over {twice} set the same; leave one of the two out")
    if "model" not in given and "model" not in axes:
        raise BadInput("a sweep needs a model; give MODEL, or --over model=NAME,NAME")
    return request_from({"model": axes["model"][0], **given} if "model" in axes else given)


def _takes_long(axes: dict[str, list[Any]], every_block: bool | None) -> bool:
    """Whether a sweep is likely to take more than a second."""
    total = prod(len(values) for values in axes.values())
    whole = every_block if every_block is not None else total <= replayed_up_to()
    return total > (_WHOLE_IN_A_SECOND if whole else _EXTRAPOLATED_IN_A_SECOND)


def _writers(given: dict[str, Any]) -> Iterator[Callable[[SweepReport], None]]:
    """What writes each file that is asked for; a place that cannot be written to is refused before the work."""
    from peftplan.measure.files import check_target

    if "out" in given:
        from peftplan.render.sweep_files import check_end

        out = Path(given["out"]).expanduser()
        check_end(out, "--out")
        check_target(out, "--out")
        yield lambda report: _write_rows(report, out)
    if "chart" in given:
        chart = Path(given["chart"]).expanduser()
        if chart.suffix.lower() not in CHARTS:
            raise BadInput(
                f"--chart {given['chart']!r}: the name's end says what is drawn; it must be {_either(CHARTS)}"
            )
        check_target(chart, "--chart")
        if chart.suffix.lower() == ".png":
            from peftplan.render.timeline import require_png

            require_png()
        yield lambda report: _write_chart(report, chart)


def _write_rows(report: SweepReport, path: Path) -> None:
    from peftplan.measure.files import write_whole
    from peftplan.render.sweep_files import content

    write_whole(path, content(report, path), "--out")


def _write_chart(report: SweepReport, path: Path) -> None:
    from peftplan.measure.files import write_whole
    from peftplan.render.sweep_chart import sweep_html, sweep_png, sweep_svg

    kind = path.suffix.lower()
    if kind == ".png":
        picture = sweep_png(report)
    else:
        picture = (sweep_html if kind == ".html" else sweep_svg)(report).encode()
    write_whole(path, picture, "--chart")


def replayed_up_to() -> int:
    """Points of a grid up to which every block is replayed."""
    from peftplan.sweeps import EVERY_BLOCK_UP_TO

    return EVERY_BLOCK_UP_TO


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _schema() -> dict[str, Any]:
    from peftplan.cli.estimate import with_request_schema
    from peftplan.sweeps import SweepReport

    return with_request_schema(SweepReport.model_json_schema(mode="serialization"))


COMMAND = Command(
    run,
    (
        Argument(
            "model",
            "a model as for `estimate`; may be left out where --over model=... lists several",
            required=False,
            complete=model_names,
        ),
    ),
    (
        Option(
            "over",
            ("--over",),
            lambda: (
                "a field and the values it takes: rank=8,16,32; whole numbers also as seq_len=512:8192:512 "
                "(first, last, step) or rank=4..256 (doubling); names of one list joined by +: "
                "targets=q_proj+v_proj,all-linear; `default` leaves a field open. Several --over make a grid"
            ),
            metavar="FIELD=VALUES",
            many=True,
        ),
        *request_options(without=("engine",)),
        Option(
            "out",
            ("--out",),
            lambda: "write all points to a file as well; the name ends in .parquet, .csv, .json or .md",
            metavar="FILE",
        ),
        Option(
            "chart",
            ("--chart",),
            lambda: "draw memory, time and cost over the varied fields; the name ends in .svg, .html or .png",
            metavar="FILE",
        ),
        Option(
            "every_block",
            ("--every-block",),
            lambda: (
                "what is reserved: replayed for every block, as `estimate` does (10 to 100 ms a point), or "
                f"extrapolated (1 to 2 ms); default: replayed up to {replayed_up_to()} points"
            ),
            switch=True,
            off="--no-every-block",
        ),
        switch("breakdown", "with --json: the parts of every point's peak too"),
        *output_options(),
    ),
    "The JSON holds request, over, notes and rows: for each point its varied fields (those called as a part of the "
    "answer in `point` only, which holds all), memory, method, gpu, time, cost, notes, and the error where the "
    "point is refused.",
)
