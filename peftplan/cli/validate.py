"""`peftplan validate`: predictions against recorded runs and published measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Command, Option
from peftplan.errors import EXIT_DOES_NOT_FIT, EXIT_OK, BadInput

if TYPE_CHECKING:
    from peftplan.evidence.scoring import Evidence
    from peftplan.scores import Validation

PLOTS = (".svg", ".html")
ENGINES = ("closed", "trace")


def run(given: dict[str, Any]) -> int:
    """Score every measurement at hand, or those of one file."""
    if given.get("json_schema"):
        from peftplan.scores import Validation

        return write_schema(Validation.model_json_schema(mode="serialization"))
    form = chosen_form(given)
    names = _engines(given.get("engine"))
    plot = _plot_target(given.get("plot"))
    from peftplan.evidence.scoring import score
    from peftplan.render.validate import validation_blocks, validation_csv
    from peftplan.scores import validation

    evidence = _evidence(given.get("data"))
    with progress_bar("scoring") as progress:
        answer = validation(score(evidence, names, progress))
    if plot is not None:
        _write_plot(answer, plot)
    emit(
        form,
        answer.model_dump_json,
        lambda: validation_blocks(answer),
        lambda: validation_csv(answer),
    )
    return EXIT_OK if answer.within_tolerance else EXIT_DOES_NOT_FIT


def _engines(text: str | None) -> list[str]:
    """The engines to score, in the order given; one or several with commas."""
    names = [name.strip().lower() for name in (text or ENGINES[0]).split(",")]
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        raise BadInput(f"--engine {text} is not allowed; give {' or '.join(ENGINES)}, or both with a comma")
    return list(dict.fromkeys(names))


def _evidence(name: str | None) -> Evidence:
    """The file asked for, or all that travels with the package and the user's own records."""
    from peftplan.catalog.profiles import published_tables, record_files
    from peftplan.evidence.scoring import Evidence
    from peftplan.evidence.tables import read_table

    if name is not None:
        path = Path(name).expanduser()
        if path.suffix.lower() == ".json":
            return Evidence(records=(_record(path),))
        return Evidence(tables=(read_table(path),))
    evidence = Evidence(
        tables=tuple(read_table(path) for path in published_tables()),
        records=tuple(_record(path) for path in record_files()),
    )
    if not evidence.tables and not evidence.records:
        raise BadInput("no measurements are installed; reinstall peftplan, or give a file with --data")
    return evidence


def _record(path: Path) -> Any:
    from peftplan.catalog.profiles import read_measurements
    from peftplan.measured import read_record

    return str(path), read_record(read_measurements(path), str(path))


def _plot_target(name: str | None) -> Path | None:
    if name is None:
        return None
    from peftplan.measure.files import check_target

    path = Path(name).expanduser()
    if path.suffix.lower() not in PLOTS:
        raise BadInput(f"--plot {name!r}: the name's end says what is drawn; it must be {' or '.join(PLOTS)}")
    return check_target(path, "--plot")


def _write_plot(answer: Validation, path: Path) -> None:
    from peftplan.measure.files import write_whole
    from peftplan.render.score_plot import scores_html, scores_svg

    draw = scores_html if path.suffix.lower() == ".html" else scores_svg
    write_whole(path, draw(answer).encode(), "--plot")


COMMAND = Command(
    run,
    (),
    (
        Option(
            "data",
            ("--data",),
            lambda: (
                "score this file only: a table with the columns of memory.csv, throughput.csv or "
                "oom_outcomes.csv, or one record; default: all that is installed, and your own records"
            ),
            metavar="FILE",
        ),
        Option(
            "engine",
            ("--engine",),
            lambda: "closed, trace, or both with a comma; default closed",
            metavar="NAMES",
            complete=lambda: ENGINES,
        ),
        Option(
            "plot",
            ("--plot",),
            lambda: "draw predicted against measured, and the errors; the name ends in .svg or .html",
            metavar="FILE",
        ),
        *output_options(),
    ),
    "The JSON holds summary, tolerance, groups, apart, excluded (reasons and how often) and rows: one entry for "
    "each data row and engine, used or with its reason. Exit status 1: outside the tolerance.",
)
