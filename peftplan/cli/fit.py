"""`peftplan fit MODEL --gpu G`: the most that fits, and what to change where nothing does."""

from __future__ import annotations

from typing import Any

from peftplan.cli.options import model_argument, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Command, Option
from peftplan.errors import EXIT_DOES_NOT_FIT, EXIT_OK


def run(given: dict[str, Any]) -> int:
    """Answer whether the request fits, and how far each axis goes."""
    if given.get("json_schema"):
        return write_schema(_schema())
    form = chosen_form(given)
    request = request_from(given)
    from peftplan.advice.fit import fit
    from peftplan.render.fit import fit_blocks, fit_csv

    axes = given.get("axis")
    chosen = None if axes is None else [name for name in axes.split(",") if name.strip()]
    with progress_bar("searching") as progress:
        report = fit(request, chosen, progress)
    emit(form, report.model_dump_json, lambda: fit_blocks(report), lambda: fit_csv(report))
    return EXIT_OK if report.fits else EXIT_DOES_NOT_FIT


def axis_names() -> tuple[str, ...]:
    """What the largest value can be searched for of."""
    from peftplan.advice.axes import AXES

    return AXES


def _schema() -> dict[str, Any]:
    from peftplan.answers import FitReport
    from peftplan.cli.estimate import with_request_schema

    return with_request_schema(FitReport.model_json_schema(mode="serialization"))


COMMAND = Command(
    run,
    (model_argument(),),
    (
        Option(
            "axis",
            ("--axis",),
            lambda: (
                f"what to have more of: one of {', '.join(axis_names())}, or two with a comma for their front; "
                "default micro_batch and seq_len, each alone"
            ),
            metavar="NAMES",
            complete=axis_names,
        ),
        *request_options(),
        *output_options(),
    ),
    "The JSON holds fits, request, estimate, changes (of the first set), axes, front, sets and notes. "
    "Exit status 1: the run does not fit as asked.",
)
