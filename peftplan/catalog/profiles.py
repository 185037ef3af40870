"""Where measured runs lie, those that travel with the package and a user's own; and their files' content."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from peftplan.errors import BadInput, NotFound, shown
from peftplan.units import MIB, format_bytes

MAX_FILE_BYTES = 64 * MIB
_PACKAGE = Path(__file__).parents[1]


def shipped_folder() -> Path:
    """The `profiles` folder: inside an installed package, beside the package in a checkout."""
    inside = _PACKAGE / "profiles"
    return inside if inside.is_dir() else _PACKAGE.parent / "profiles"


def user_folder() -> Path:
    """Where a user's own records are kept unless told otherwise, as the platform has it."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "peftplan" / "profiles"


def published_tables() -> list[Path]:
    """The tables of measurements that others published, by name."""
    return sorted((shipped_folder() / "published").glob("*.csv"))


def published_file(name: str) -> bytes:
    """A file that belongs to those tables: settings and assumptions of their rows."""
    return (shipped_folder() / "published" / name).read_bytes()


def record_files() -> list[Path]:
    """The records of real runs, JSON files: those shipped, then the user's."""
    found = [
        path for folder in (shipped_folder() / "records", user_folder()) for path in sorted(folder.glob("*.json"))
    ]
    return [path for path in found if path.is_file()]


def read_measurements(path: Path) -> bytes:
    """A file's content; what is no file, or too long for one of measurements, is refused in one line."""
    name = shown(str(path))
    try:
        status = path.stat()
        if path.is_dir():
            raise BadInput(f"{name} is a folder; give a file")
        if not path.is_file():
            raise BadInput(f"{name} is no ordinary file; give another")
        if status.st_size > MAX_FILE_BYTES:
            raise BadInput(
                f"{name} has {format_bytes(status.st_size)}, and a file of measurements at most "
                f"{format_bytes(MAX_FILE_BYTES)}; give one with fewer rows"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{name} does not exist; give a CSV file with the columns of memory.csv") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"{name} cannot be read ({reason}); give another") from None
