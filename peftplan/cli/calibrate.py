"""`peftplan calibrate`: a user's own records refine estimates on their machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.spec import Command, Option, switch
from peftplan.errors import EXIT_OK, BadInput, NotFound

if TYPE_CHECKING:
    from peftplan.catalog.calibration import Calibration
    from peftplan.render.blocks import Block

COLUMNS = ("gpu", "num_runs", "context_bytes", "reserved_ratio", "power_w")


def run(given: dict[str, Any]) -> int:
    """Make, show or remove the calibration."""
    if given.get("json_schema"):
        from peftplan.catalog.calibration import Calibration

        return write_schema(Calibration.model_json_schema(mode="serialization"))
    form = chosen_form(given)
    if given.get("show") and given.get("remove"):
        raise BadInput("--show and --remove exclude each other; choose one")
    if given.get("remove"):
        return _remove(form)
    calibration = _shown() if given.get("show") else _made(given.get("folder"))
    from peftplan.render.table_csv import rows_csv

    rows = [(key, *(getattr(gpu, name) for name in COLUMNS[1:])) for key, gpu in calibration.gpus.items()]
    emit(form, calibration.model_dump_json, lambda: _blocks(calibration), lambda: rows_csv(COLUMNS, rows))
    return EXIT_OK


def _made(name: str | None) -> Calibration:
    from peftplan.catalog.profiles import user_folder
    from peftplan.measure.profile.calibrate import calibrate, store
    from peftplan.measure.profile.records import read_folder

    folder = Path(name).expanduser() if name is not None else user_folder()
    if name is not None and not folder.is_dir():
        raise NotFound(f"--from {name} is no folder; give one that holds records of `peftplan profile`")
    calibration = calibrate((found for _, found in read_folder(folder)), str(folder))
    store(calibration)
    return calibration


def _shown() -> Calibration:
    from peftplan.catalog.calibration import calibration_file, read_calibration

    calibration = read_calibration()
    if calibration is None:
        raise NotFound(f"there is no calibration at {calibration_file()}; `peftplan calibrate` makes one")
    return calibration


def _remove(form: str) -> int:
    import json

    from peftplan.catalog.calibration import calibration_file
    from peftplan.measure.profile.calibrate import remove
    from peftplan.render.blocks import Text

    found = remove()
    text = f"{'Removed' if found else 'There was no calibration at'} {calibration_file()}"
    emit(form, lambda: json.dumps({"removed": found}), lambda: [Text(text)], lambda: f"removed\n{found}\n")
    return EXIT_OK


def _blocks(calibration: Calibration) -> Iterator[Block]:
    from peftplan.catalog.calibration import calibration_file
    from peftplan.render.blocks import Column, Table, Text
    from peftplan.units import format_bytes

    rows = tuple(
        (
            key,
            str(gpu.num_runs),
            "-" if gpu.context_bytes is None else format_bytes(gpu.context_bytes),
            "-" if gpu.reserved_ratio is None else f"{gpu.reserved_ratio:.3f}",
            "-" if gpu.power_w is None else f"{gpu.power_w:.0f} W",
        )
        for key, gpu in calibration.gpus.items()
    )
    columns = (
        Column("GPU"),
        Column("runs", right=True),
        Column("outside the allocator", right=True),
        Column("reserved, measured / predicted", right=True),
        Column("draw", right=True),
    )
    yield Table(f"Calibration of {calibration.date}", columns, rows)
    yield Text(
        f"From {calibration.source}; kept in {calibration_file()}. Answers that use it say so in their notes."
    )


COMMAND = Command(
    run,
    (),
    (
        Option("folder", ("--from",), lambda: "folder of records; default the user's data folder", metavar="DIR"),
        switch("show", "show the calibration in use, and change nothing"),
        switch("remove", "remove it: estimates are general again"),
        *output_options(),
    ),
    "The JSON holds schema_version, date, source and gpus, which have by key num_runs, context_bytes, "
    "reserved_ratio and power_w.",
)
