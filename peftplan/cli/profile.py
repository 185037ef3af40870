"""`peftplan profile MODEL`: real steps on the local GPU, recorded and held against their prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftplan.cli.estimate import with_request_schema
from peftplan.cli.options import (
    counted,
    given_fields,
    model_names,
    request_from,
    request_options,
    validated,
)
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Argument, Command, Option, switch
from peftplan.errors import EXIT_DOES_NOT_FIT, EXIT_MACHINE_LACKS, EXIT_OK, BadInput

if TYPE_CHECKING:
    from peftplan.measure.profile.grid import Entry
    from peftplan.measure.profile.report import ProfileReport
    from peftplan.measure.profile.session import Done, Wanted

DEVICES = ("cuda", "cpu")
WEIGHTS = ("random", "real")
TINY_OF = "llama-2-7b"  # whose tiny likeness is trained where --device cpu is given alone
_DRY_COLUMNS = ("run", "predicted_allocated_bytes", "predicted_reserved_bytes", "predicted_device_bytes", "fits")


def run(given: dict[str, Any]) -> int:
    """Carry out one run, or the runs of a grid."""
    if given.get("json_schema"):
        from peftplan.measure.profile.report import ProfileReport

        return write_schema(with_request_schema(ProfileReport.model_json_schema(mode="serialization")))
    form = chosen_form(given)
    device = _one_of(given, "device", DEVICES)
    _one_of(given, "weights", WEIGHTS)
    if "grid" in given:
        return _run_grid(given, form, device)
    if given.get("dry_run"):
        return _dry_run([partial(_wanted, given, device)], form, device)
    return _run_one(given, form, device)


def _run_one(given: dict[str, Any], form: str, device: str) -> int:
    wanted = _wanted(given, device)
    tolerance = _tolerance(given)
    from peftplan.measure.profile.records import record_folder
    from peftplan.measure.profile.session import Session
    from peftplan.render.profile import profile_blocks

    folder = record_folder(given.get("out"))
    with progress_bar("profiling") as progress, Session(device, folder, tolerance) as session:
        report = session.run(wanted, progress)
    emit(form, report.model_dump_json, lambda: profile_blocks(report), lambda: _csv(report))
    return EXIT_OK if report.within_tolerance else EXIT_DOES_NOT_FIT


def _run_grid(given: dict[str, Any], form: str, device: str) -> int:
    entries = _entries(given)
    tolerance = _tolerance(given)
    if given.get("dry_run"):
        return _dry_run([partial(_placed, entry, given, _dry_gpu(device)) for entry in entries], form, device)
    from peftplan.measure.profile.records import record_folder
    from peftplan.measure.profile.session import Session
    from peftplan.render.profile import COLUMNS, grid_blocks, grid_rows
    from peftplan.render.table_csv import rows_csv

    folder = record_folder(given.get("out"))
    with progress_bar("profiling") as progress, Session(device, folder, tolerance) as session:
        gpu = _gpu_key(session.hardware()["gpu"])
        runs = list(session.run_all([partial(_placed, entry, given, gpu) for entry in entries], progress))
    emit(form, lambda: _grid_json(runs), lambda: grid_blocks(runs), lambda: rows_csv(COLUMNS, grid_rows(runs)))
    if any(done.report is not None and not done.report.within_tolerance for done in runs):
        return EXIT_DOES_NOT_FIT
    return EXIT_MACHINE_LACKS if any(done.report is None for done in runs) else EXIT_OK


def _dry_run(runs: list[Callable[[], Wanted]], form: str, device: str) -> int:
    """Say what would run and what is predicted of it."""
    import json

    from peftplan.measure.profile.session import foresee
    from peftplan.render.profile import dry_blocks
    from peftplan.render.table_csv import rows_csv
    from peftplan.units import format_bytes

    shown: list[tuple[str, ...]] = []
    values: list[tuple[object, ...]] = []
    for number, place in enumerate(runs, 1):
        planned, report, error = foresee(place, device)
        if planned is None or report is None:
            shown.append((f"run {number}", "-", "-", "-", error))
            values.append((f"run {number}", None, None, None, error))
            continue
        memory = report.memory
        sizes = (memory.peak_allocated_bytes, memory.peak_reserved_bytes, memory.device_bytes)
        fits = (
            "-" if report.gpu is None else ("yes" if report.gpu.fits else "no") + ("?" * (not report.gpu.certain))
        )
        shown.append((planned.name, *map(format_bytes, sizes), fits))
        values.append((planned.name, *sizes, fits))
    emit(
        form,
        lambda: json.dumps({"rows": [dict(zip(_DRY_COLUMNS, row)) for row in values]}),
        lambda: dry_blocks(shown),
        lambda: rows_csv(_DRY_COLUMNS, values),
    )
    return EXIT_OK


# ---- what was asked for


def _wanted(given: dict[str, Any], device: str) -> Wanted:
    from peftplan.measure.profile.session import Wanted
    from peftplan.measure.profile.shrink import shrunk

    tiny = bool(given.get("shrink"))
    if "model" not in given:
        if device != "cpu":
            raise BadInput("MODEL is missing: name a model, or a list of runs with --grid FILE (see --help)")
        given, tiny = {**given, "model": TINY_OF}, True
    request = request_from(given)
    return Wanted(shrunk(request) if tiny else request, **_counts(given))


def _entries(given: dict[str, Any]) -> list[Entry]:
    from peftplan.measure.profile.grid import read_grid

    def make(fields: Mapping[str, Any], where: str) -> Any:
        return validated(fields, where)

    return read_grid(Path(given["grid"]).expanduser(), given_fields(given), make)


def _placed(entry: Entry, given: Mapping[str, Any], gpu: str | None) -> Wanted:
    """A run of a grid on the card at hand, or the one that was named."""
    from dataclasses import replace

    wanted = entry.tiny() if given.get("shrink") else entry.on(gpu)
    counts = {name: value for name, value in _counts(given).items() if value is not None}
    return replace(wanted, **counts)


def _dry_gpu(device: str) -> str | None:
    from peftplan.resolve import REFERENCE_GPU

    return None if device == "cpu" else REFERENCE_GPU


def _gpu_key(name: str) -> str | None:
    from peftplan.catalog import find_gpu

    record = find_gpu(name)
    return None if record is None else record.key


def _counts(given: Mapping[str, Any]) -> dict[str, Any]:
    from peftplan.measure.profile.task import MAX_STEPS

    found: dict[str, Any] = {
        "num_steps": counted("--steps", given.get("steps"), MAX_STEPS),
        "num_warmup": counted("--warmup", given.get("warmup"), MAX_STEPS),
    }
    if "weights" in given:
        found["weights"] = given["weights"]
    return found


def _tolerance(given: Mapping[str, Any]) -> float | None:
    text = given.get("tolerance")
    if text is None:
        return None
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise BadInput(f"--tolerance {text} is not allowed; give percent, a number from 0 to 100")
    return percent / 100


def _one_of(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    word = str(given.get(name, choices[0]))
    if word not in choices:
        raise BadInput(f"--{name} {word} is not allowed; give one of {', '.join(choices)}")
    return word


# ---- how it is printed


def _csv(report: ProfileReport) -> str:
    from peftplan.measure.profile.report import ComparedRow
    from peftplan.render.table_csv import rows_csv

    return rows_csv(list(ComparedRow.model_fields), (list(row.model_dump().values()) for row in report.rows))


def _grid_json(runs: list[Done]) -> str:
    import json

    rows = [
        {
            "name": done.name,
            "error": done.error,
            "was_recorded": done.was_recorded,
            "report": None if done.report is None else json.loads(done.report.model_dump_json()),
        }
        for done in runs
    ]
    return json.dumps({"rows": rows})


COMMAND = Command(
    run,
    (
        Argument(
            "model",
            "a model as for `estimate`; may be left out with --grid, or with --device cpu, which takes a tiny one",
            required=False,
            complete=model_names,
        ),
    ),
    (
        *request_options(),
        Option("grid", ("--grid",), lambda: "carry out a list of runs: YAML, JSON or JSON lines", metavar="FILE"),
        Option(
            "out",
            ("--out",),
            lambda: "folder for the records; default the user's data folder",
            metavar="DIR",
        ),
        Option(
            "device",
            ("--device",),
            lambda: "cuda, or cpu: a real run held against its trace on the CPU's own kernels; default cuda",
            metavar="[cuda|cpu]",
            complete=lambda: DEVICES,
        ),
        Option(
            "weights",
            ("--weights",),
            lambda: "random, or real: from a local folder or the Hub cache; default random",
            metavar="[random|real]",
            complete=lambda: WEIGHTS,
        ),
        Option("steps", ("--steps",), lambda: "timed steps; default 5", metavar="INTEGER"),
        Option("warmup", ("--warmup",), lambda: "steps before anything is measured; default 2", metavar="INTEGER"),
        Option(
            "tolerance",
            ("--tolerance",),
            lambda: "percent that a prediction may be off; default 3 allocated, 4 reserved, 5 device",
            metavar="PERCENT",
        ),
        switch("shrink", "the same runs with tiny models, to try them out on the CPU"),
        switch("dry_run", "say what would run and what is predicted of it; carry nothing out"),
        *output_options(),
    ),
    "The JSON holds what an estimate's does, measured beside memory's and method's figures, rows, outcome, "
    "within_tolerance, and measured, the whole record. Exit status: 0 within tolerance, 1 outside, 5 no GPU.",
)
