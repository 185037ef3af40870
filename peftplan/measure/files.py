"""Files that a command writes: checked before the work begins, and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from peftplan.errors import BadInput, shown


def check_target(path: Path, option: str) -> Path:
    """Refuse a path that no file can be written to, in one line that begins with the option's name.

    Returned is the file itself where the path is a link to it.
    """
    try:
        target = path.resolve()
        folder = target.parent
        if target.is_dir():
            problem = "is a folder; name a file in it"
        elif target.exists() and not target.is_file():
            problem = "is no ordinary file; name another"
        elif not folder.is_dir():
            problem = f"lies in {shown(str(folder))}, which is no folder; create it, or name another file"
        elif not os.access(folder, os.W_OK | os.X_OK):
            problem = f"lies in {shown(str(folder))}, where you may not write; name another file"
        else:
            return target
    except (OSError, RuntimeError, ValueError) as error:
        raise _unwritable(path, option, error) from None
    raise BadInput(f"{option}: {shown(str(path))} {problem}")


def write_whole(path: Path, content: bytes, option: str) -> None:
    """Write a file beside its place and move it there, so that nobody ever sees half of it."""
    target = check_target(path, option)
    beside = target.with_name(f".{target.name[:100]}.{os.getpid()}")
    try:
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, option, error) from None


def _unwritable(path: Path, option: str, error: Exception) -> BadInput:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return BadInput(f"{option}: {shown(str(path))} cannot be written ({reason}); name another file")
