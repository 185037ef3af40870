"""Scores of measurements for the page: each file is scored once by a server, others are answered in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from explorer.answers import ONE_AT_A_TIME
from peftplan.catalog.profiles import published_tables, read_measurements, record_files
from peftplan.errors import BadInput
from peftplan.evidence.scoring import Evidence, score
from peftplan.evidence.tables import parse_table
from peftplan.measured import read_record
from peftplan.scores import Score

Progress = Callable[[float, str], None]


def files() -> list[Path]:
    """Every file of measurements that is at hand: published ones, recorded runs, the user's own."""
    return [*published_tables(), *record_files()]


def evidence_of(content: bytes, name: str) -> Evidence:
    """A file's content as evidence; what it is shows in its name and its columns."""
    if name.lower().endswith(".json"):
        return Evidence(records=((name, read_record(content, name)),))
    if not name.lower().endswith(".csv"):
        raise BadInput(
            f"{name} is neither CSV nor JSON; give a table of measurements, or a record or trace in JSON"
        )
    return Evidence(tables=(parse_table(content, name),))


def scores_of(path: Path, progress: Progress) -> list[Score]:
    """The scores of one file, from the last time if it has not changed since."""
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size)
    if key not in _KNOWN:
        _KNOWN[key] = scored(evidence_of(read_measurements(path), str(path)), progress)
    return _KNOWN[key]


_KNOWN: dict[tuple[str, int, int], list[Score]] = {}  # few: as many as there are files


def scored(evidence: Evidence, progress: Progress) -> list[Score]:
    """Scores by the closed form; between two rows whoever else waits for the planner has a turn."""

    def between(done: float, label: str) -> None:
        progress(done, label)
        ONE_AT_A_TIME.release()
        ONE_AT_A_TIME.acquire()

    with ONE_AT_A_TIME:
        return score(evidence, ["closed"], between)
