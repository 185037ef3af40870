"""The screen of a merge: the ways side by side, the moments of the advised one, what lies on disk."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.merging.answers import MergeReport, MergeWay, OnDisk
from peftplan.methods import METHODS
from peftplan.packing import is_packed
from peftplan.render.blocks import Block, Column, Gauge, Notes, Table, Text
from peftplan.render.table_csv import rows_csv
from peftplan.render.words import percent
from peftplan.units import format_bytes, format_count, format_duration

_NONE = "-"
_DEVICES = {"gpu": "GPU", "cpu": "CPU"}
_MOMENTS = {
    "loading": "base loading",
    "unpacking": "unpacking",
    "loaded": "base and adapter loaded",
    "adapter_loading": "adapter loading, its file beside it",
    "merging": "merging, the most",
}


def merge_blocks(report: MergeReport) -> Iterator[Block]:
    """The ways and the advice first, then how the advised one comes about, then files."""
    yield Text(_title(report), "title")
    yield Text(_settings(report))
    best = report.ways[report.recommended] if report.recommended is not None else None
    if best is not None:
        yield Text(f"Advised: {best.title}, on the {_DEVICES[best.device]} - {report.why}", "good")
    elif report.why:
        yield Text(report.why, "warn")
    yield _ways(report)
    told = {} if best is None else dict.fromkeys(f"{w.title}: {w.refused}" for w in report.ways if w.refused)
    yield from (Text(text, "warn") for text in told)
    if best is not None:
        yield _moments(best)
        yield _time(best, report)
    yield _disk(report.disk)
    yield Notes("Notes", report.notes)


def _title(report: MergeReport) -> str:
    model = report.model
    return (
        f"{model.id}, {format_count(model.num_params)} parameters - merging {report.method}, "
        f"{format_count(report.adapter_params)} trained"
    )


def _settings(report: MergeReport) -> str:
    asked = report.request
    text = f"base {asked['base_dtype']}"
    if is_packed(asked["quant"]):
        text += f", trained beside {asked['quant']} linears"
    text += f"; adapter {asked['adapter_dtype']}"
    if "rank" in METHODS[report.method].takes:
        text += f", rank {asked['rank']}"
    text += f"; {report.how}"
    return text + ("; peft looks for NaNs" if report.merging["safe_merge"] else "")


def _ways(report: MergeReport) -> Table:
    rows = []
    for way in report.ways:
        figures = (_size(way.device_bytes), _size(way.host_bytes), _size(way.written_bytes))
        fits = "" if way.fits is None else ("yes" if way.fits else "no")
        seconds = format_duration(way.time.s) if way.time is not None else _NONE
        name = f"{way.title} ({_DEVICES[way.device]})"
        rows.append((name, *figures, seconds, *((fits,) if _names_gpu(report) else ())))
    columns = (
        Column("into"),
        Column("GPU", right=True),
        Column("host", right=True),
        Column("written", right=True),
        Column("time", right=True),
        *((Column("fits", right=True),) if _names_gpu(report) else ()),
    )
    strong = frozenset() if report.recommended is None else frozenset({report.recommended})
    return Table("Ways to merge: the most that is held, and what is written", columns, tuple(rows), strong)


def _names_gpu(report: MergeReport) -> bool:
    return any(way.fits is not None for way in report.ways)


def _size(num_bytes: int | None) -> str:
    return _NONE if num_bytes is None else format_bytes(num_bytes)


def _moments(way: MergeWay) -> Table:
    assert way.moments is not None
    found = {name: size for name, size in way.moments.model_dump().items() if size is not None}
    most = max(found.values())
    rows = tuple(
        (_MOMENTS[name] + (" (peak)" if name == way.peak_moment else ""), format_bytes(size), Gauge(size / most))
        for name, size in found.items()
    )
    where = "allocated on the GPU" if way.device == "gpu" else "on the host"
    below = f"the most while {way.peak_layer} is merged" if way.peak_layer else ""
    return Table(
        f"Moments of the advised way, {where}",
        (Column("moment"), Column("size", right=True), Column("")),
        rows,
        frozenset(),
        below,
    )


def _time(way: MergeWay, report: MergeReport) -> Table:
    assert way.time is not None
    time, rates = way.time, report.rates
    per_s = {
        "read": rates.disk_bytes_per_s,
        "write": rates.disk_bytes_per_s,
        "to the GPU": rates.link_bytes_per_s,
        "to the host": rates.link_bytes_per_s,
        "merge": rates.device_bytes_per_s if way.device == "gpu" else rates.host_bytes_per_s,
    }
    basis = {"read": "disk", "write": "disk", "to the GPU": "link", "to the host": "link"}
    basis["merge"] = "device" if way.device == "gpu" else "host"
    rows = [
        (
            name,
            format_duration(seconds),
            percent(seconds / time.s),
            f"{format_bytes(round(per_s[name]))}/s, {rates.basis[basis[name]]}",
        )
        for name, seconds in time.terms.items()
    ]
    rows.append(("together", format_duration(time.s), percent(1.0), ""))
    flop = f"products: {format_count(way.num_flop)} flop" if way.num_flop else ""
    columns = (Column("part"), Column("time", right=True), Column("of it", right=True), Column("at"))
    return Table("Time of the advised way", columns, tuple(rows), frozenset({len(rows) - 1}), flop)


def _disk(disk: OnDisk) -> Table:
    rows = [
        (
            file.name,
            format_bytes(file.bytes),
            format_bytes(file.tasks_bytes),
            file.what,
        )
        for file in disk.files
    ]
    below = f"an adapter for each of {disk.tasks:,} tasks: {format_bytes(disk.kept_bytes)}, the base included"
    if not any(file.shared for file in disk.files):
        below = f"a model for each of {disk.tasks:,} tasks: {format_bytes(disk.kept_bytes)}"
    if disk.copies_bytes is not None:
        below += f"; a merged model for each: {format_bytes(disk.copies_bytes)}"
    columns = (
        Column("file"),
        Column("a task", right=True),
        Column(f"{disk.tasks:,} tasks", right=True),
        Column(""),
    )
    return Table("On disk", columns, tuple(rows), frozenset(), below)


def merge_csv(report: MergeReport) -> str:
    """One row for each way, its columns named as in the JSON."""
    header = [name for name in MergeWay.model_fields if name not in ("moments", "time")]
    moments = list(_MOMENTS)
    rows = []
    for way in report.ways:
        held = way.moments.model_dump() if way.moments is not None else {}
        rows.append(
            [
                *(getattr(way, name) for name in header),
                *(held.get(name) for name in moments),
                way.time.s if way.time is not None else None,
            ]
        )
    return rows_csv([*header, *(f"moments.{name}" for name in moments), "time.s"], rows)
