"""Records as files: one JSON a run, under a stable name, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from peftplan.catalog.profiles import user_folder
from peftplan.errors import BadInput, shown
from peftplan.measure.files import write_whole
from peftplan.measured import MeasuredRun, read_record

_RETRIED = ("failed", "interrupted")  # outcomes that a later run replaces


def record_folder(out: str | None) -> Path:
    """The folder for records, made if it is not there."""
    folder = Path(out).expanduser() if out is not None else user_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"--out: {shown(str(folder))} is no folder and cannot be made one ({error.strerror})"
        ) from None
    return folder


def write_record(folder: Path, name: str, run: MeasuredRun) -> Path:
    """Write a record; one of the same name is replaced."""
    path = folder / f"{name}.json"
    write_whole(path, run.model_dump_json(indent=1).encode() + b"\n", "--out")
    return path


def recorded(folder: Path, name: str) -> MeasuredRun | None:
    """The run that is recorded under a name; None where there is none, or none that counts."""
    run = _read(folder / f"{name}.json")
    return None if run is None or run.outcome in _RETRIED else run


def read_folder(folder: Path) -> list[tuple[Path, MeasuredRun]]:
    """Every record of a folder; files that are none are passed over."""
    found = ((path, _read(path)) for path in sorted(folder.glob("*.json")))
    return [(path, run) for path, run in found if run is not None]


def _read(path: Path) -> MeasuredRun | None:
    try:
        return read_record(path.read_bytes(), str(path))
    except (OSError, BadInput):
        return None
