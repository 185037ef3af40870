"""Evidence: predictions against what was measured, what could not be compared, and a file of the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from explorer.answers import asked, refuse, told
from explorer.curves import scatter
from explorer.picks import pick, pick_many
from explorer.scored import evidence_of, files, scored, scores_of
from explorer.sharing import as_markdown, share
from explorer.state import FILES, METRICS, SOURCES, VIEW
from explorer.tables import draw, literal
from peftplan import estimate
from peftplan.catalog.profiles import MAX_FILE_BYTES
from peftplan.cli.options import validated
from peftplan.errors import BadInput
from peftplan.measured import BYTE_METRICS
from peftplan.measured import METRICS as KNOWN_METRICS
from peftplan.render.blocks import Column, Table
from peftplan.render.validate import validation_blocks, validation_csv
from peftplan.render.words import moment_label
from peftplan.scores import Score, Validation, validation
from peftplan.units import GIB, MIB, format_bytes

_UNITS = {"tokens_per_s": "tokens/s of one GPU", "step_s": "s"}
_MOST_POINTS = 2000
AT_HAND = "shipped"
PLACES = {AT_HAND: "Measurements at hand", "own": "A file of your own"}


def show() -> None:
    """Draw the page."""
    st.caption(
        "Predictions of the closed form against runs that were carried out. Metrics: allocated and reserved are "
        "torch's peaks, device is nvidia-smi's for the process, tokens/s those of one GPU."
    )
    if pick("Measured where", VIEW, PLACES) == AT_HAND:
        _at_hand()
    else:
        _own_file()


def _at_hand() -> None:
    paths = {path.name: path for path in files()}
    if not paths:
        refuse("no measurements are installed; reinstall peftplan, or give a file of your own")
        return
    chosen = pick_many("Files", FILES, list(paths)) or list(paths)
    bar = st.progress(0.0, "scoring, once for as long as this server runs")
    rows: list[Score] = []
    for number, name in enumerate(chosen):
        rows += told(partial(_scores, paths[name], bar, number, len(chosen))) or []
    bar.empty()
    known = [str(name) for name in KNOWN_METRICS if any(row.metric == name for row in rows)]
    metrics = pick_many("Metrics", METRICS, known) or known
    rows = [row for row in rows if row.metric in metrics]
    by = sorted({row.source for row in rows})
    sources = pick_many("Sources", SOURCES, by) or by
    kept = [row for row in rows if row.source in sources]
    if not kept:
        st.info("Nothing is left: choose another file, metric or source.")
        return
    answer = validation(kept)
    _draw(answer)
    whole = set(chosen) == set(paths) and len(kept) == len(rows)
    note = "" if whole else "  # all files; --data FILE scores one"
    share(
        "peftplan validate" + note,
        "from peftplan.catalog.profiles import published_tables\n"
        "from peftplan.evidence.scoring import Evidence, score\n"
        "from peftplan.evidence.tables import read_table\n"
        "from peftplan.scores import validation\n\n"
        "tables = tuple(read_table(path) for path in published_tables())\n"
        'print(validation(score(Evidence(tables), ["closed"])).summary)',
        "validate",
        {
            "json": lambda: answer.model_dump_json() + "\n",
            "csv": lambda: validation_csv(answer),
            "md": as_markdown(lambda: validation_blocks(answer)),
        },
    )


def _scores(path: Path, bar: Any, number: int, count: int) -> list[Score]:
    return scores_of(path, lambda done, label: _advance(bar, (number + done) / count, label))


def _advance(bar: Any, done: float, label: str) -> None:
    bar.progress(min(done, 1.0), f"scoring {label}")


def _draw(answer: Validation) -> None:
    """One chart for sizes and one for each metric of speed, then the tables of the command line."""
    used = [row for row in answer.rows if row.used and row.outcome == "completed"]
    sizes = [row for row in used if row.metric in BYTE_METRICS]
    if sizes:
        st.markdown("##### Memory, predicted against measured")
        _scatter(sizes, GIB, "GiB (2^30)")
    for metric, unit in _UNITS.items():
        timed = [row for row in used if row.metric == metric]
        if timed:
            st.markdown(f"##### {metric.replace('_', ' ')}, predicted against measured")
            _scatter(timed, 1, unit)
    draw(validation_blocks(answer))


def _scatter(rows: Sequence[Score], unit_size: int, unit: str) -> None:
    points = [_point(row, unit_size) for row in rows[:_MOST_POINTS] if row.predicted and row.measured]
    if points:
        inside = sum(bool(row.inside_interval) for row in rows)
        words = (
            f"{len(rows)} measurements from {len({row.source for row in rows})} sources, {inside} in their interval"
        )
        scatter(points, unit, words)
        st.caption(f"{words}. On the dashed line prediction and measurement agree.")


def _point(row: Score, unit_size: int) -> dict[str, Any]:
    assert row.predicted is not None
    assert row.measured is not None
    return {
        "measured": row.measured / unit_size,
        "predicted": row.predicted / unit_size,
        "source": row.source,
        "file": row.file,
        "row": str(row.row),
        "model": row.model,
        "method": row.method,
        "metric": row.metric,
        "prediction": _shown(row.predicted, row.metric),
        "measurement": _shown(row.measured, row.metric),
        "error": "-" if row.error_frac is None else f"{row.error_frac:+.1%}",
        "in interval": "yes" if row.inside_interval else "no",
    }


def _shown(value: float, metric: str) -> str:
    return format_bytes(round(value)) if metric in BYTE_METRICS else f"{value:,.4g} {_UNITS.get(metric, '')}"


# ---- a file of the user's own


def _own_file() -> None:
    file = st.file_uploader(
        "A record of `peftplan profile`, an answer of `peftplan trace --json`, or a table of measurements (CSV)",
        max_upload_size=MAX_FILE_BYTES // MIB,
        key="evidence.file",
        help="Read as data and never executed; it is held against the prediction and not kept.",
    )
    if file is None:
        return
    if file.size > MAX_FILE_BYTES:
        most = format_bytes(MAX_FILE_BYTES)
        refuse(
            f"{file.name} has {format_bytes(file.size)}, and a file of measurements at most {most}; give a shorter"
        )
        return
    content = file.getvalue()
    traced = _traced(content) if file.name.lower().endswith(".json") else None
    if traced is not None:
        _beside_prediction(traced, file.name)
        return
    bar = st.progress(0.0, "scoring")
    rows = told(lambda: scored(evidence_of(content, file.name), lambda done, label: _advance(bar, done, label)))
    bar.empty()
    if rows is not None:
        answer = validation(rows)
        _draw(answer)
        st.code(f"peftplan validate --data {file.name}", language="bash", wrap_lines=True)


def _traced(content: bytes) -> dict[str, Any] | None:
    """An answer as `trace --json` and `estimate --json` write it; None for anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    keys = {"request", "memory", "schema_version"}
    return value if isinstance(value, dict) and keys <= value.keys() and "measured" not in value else None


def _beside_prediction(traced: dict[str, Any], name: str) -> None:
    """A traced run beside the closed form's answer to the same request."""
    report = asked(lambda: estimate(_request(traced, name)))
    if report is None:
        return
    try:
        moments = {moment: int(size) for moment, size in traced["memory"]["moments"].items()}
        totals = {figure: int(traced["memory"][figure]) for figure in _TOTALS}
    except (KeyError, TypeError, ValueError, AttributeError):
        refuse(f"{name} holds no figures of memory; give what `peftplan trace MODEL --json` writes")
        return
    rows = [_row(label, totals[figure], getattr(report.memory, figure)) for figure, label in _TOTALS.items()]
    rows += [
        _row(f"moment: {moment_label(moment)}", size, report.memory.moments[moment])
        for moment, size in moments.items()
        if moment in report.memory.moments
    ]
    heads = (Column(""), *(Column(n, right=True) for n in ("in the file", "closed form", "difference")))
    draw([Table(f"{literal(name)} beside the prediction", heads, tuple(rows))])


_TOTALS = {
    "peak_allocated_bytes": "peak allocated (torch)",
    "peak_reserved_bytes": "peak reserved (torch)",
    "device_bytes": "device (nvidia-smi)",
}


def _request(traced: dict[str, Any], name: str) -> Any:
    fields = traced["request"]
    if not isinstance(fields, dict) or isinstance(fields.get("data"), str):
        raise BadInput(f"{name} holds no request; give what `peftplan trace MODEL --json` writes")
    return validated({**fields, "engine": "closed"}, f"{name}: ")


def _row(label: str, given: int, predicted: int) -> tuple[str, ...]:
    frac = f" ({predicted / given - 1:+.2%})" if given else ""
    return label, format_bytes(given), format_bytes(predicted), f"{predicted - given:+,} B{frac}"
