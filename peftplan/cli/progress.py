"""How far a long run is, drawn on stderr where that is a terminal, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftplan.request import Request

Report = Callable[[float, str], None]


@contextmanager
def progress_bar(title: str, wanted: bool = True) -> Iterator[Report | None]:
    """Yields what to call with (0..1, what is being done); None where nothing is to be drawn."""
    if not wanted or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def report(done: float, label: str) -> None:
            bar.update(task, completed=done, description=f"{title}: {label}")

        yield report


def read_data(request: Request) -> None:
    """Read a request's training set while saying how far it is; what comes after finds it read."""
    if request.data is None:
        return
    from peftplan.catalog.datasets import read_lengths

    with progress_bar("reading data") as progress:
        read_lengths(request.data, request.chars_per_token, progress)
