"""What a run leaves on disk, as figures of an explanation."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.errors import PeftplanError
from peftplan.merging.service import checkpoints
from peftplan.report import Report
from peftplan.request import Request
from peftplan.units import format_bytes

GROUP = "On disk"
# By the name of a file: where it comes from.
_SOURCES = {
    "adapter": "peft-save",
    "training checkpoint": "transformers-trainer-checkpoint",
    "trained model": "transformers-save",
}


def disk_figures(report: Report) -> Iterator[tuple[str, int, str, str, str]]:
    """Name, bytes of one task, what it is, what a thousand tasks take, source; nothing of what is not modelled."""
    try:
        disk = checkpoints(Request(**report.request))
    except PeftplanError:  # a traced method or architecture that the closed form does not know
        return
    for file in disk.files:
        formula = "" if file.shared else f"{disk.tasks:,} tasks: {format_bytes(file.tasks_bytes)}"
        yield file.name, file.bytes, file.what, formula, _SOURCES.get(file.name, "")
