"""The screen of a server: what is held where, how fast tokens come, what a tenant costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peftplan.render.blocks import Block, Column, Notes, Split, Table, Text, lettered
from peftplan.render.serve_speed import money_blocks, speed_blocks
from peftplan.render.table_csv import rows_csv
from peftplan.render.words import percent
from peftplan.serving.answers import Cache, CacheRow, ServeReport
from peftplan.units import format_bytes, format_count


def serve_blocks(report: ServeReport) -> Iterator[Block]:
    """Memory first, then time, then money."""
    yield Text(_title(report), "title")
    yield Text(_settings(report))
    if report.gpu is not None:
        yield Text(*_verdict(report))
    yield _memory(report)
    yield _storage(report)
    yield _cache(report.cache)
    if report.gpu is not None:
        yield _limits(report)
    if report.speed is not None:
        yield from speed_blocks(report, report.speed)
    yield from money_blocks(report)
    yield Notes("Notes", report.notes)


def _title(report: ServeReport) -> str:
    model, adapter, storage = report.model, report.adapter, report.storage
    size = format_count(model.num_params)
    if model.num_active_params != model.num_params:
        size += f" ({format_count(model.num_active_params)} active)"
    each = f"{report.serving['adapters']:,} adapters ({adapter.method}, {format_bytes(adapter.bytes)} each)"
    return f"{model.id}, {size} parameters - {each}, {storage.hot:,} hot"


def _settings(report: ServeReport) -> str:
    asked, serving = report.request, report.serving
    new = serving["new_tokens"]
    packed = "" if asked["quant"] in (None, "none") else f"{asked['quant']}, the rest "
    base = packed + asked["base_dtype"]
    sequences = f"{serving['concurrency']:,} sequences of {asked['seq_len']:,} tokens"
    return (
        f"{sequences}, {new:,} of them generated; base {base}, "
        f"adapters {report.adapter.dtype}, cache {report.cache.dtype} in {report.cache.form}"
    )


def _verdict(report: ServeReport) -> tuple[str, str]:
    gpu = report.gpu
    assert gpu is not None
    room, usable = format_bytes(abs(gpu.headroom_bytes)), format_bytes(gpu.usable_bytes)
    doubt = "" if gpu.certain else " - uncertain: the CUDA context may be more or less"
    frac = report.serving["memory_frac"]
    share = "" if frac == 1 else f"{percent(frac)} of "
    if gpu.fits:
        text = f"{gpu.name}: fits, {room} of {share}{usable} to spare{doubt}"
        return text, "good" if gpu.certain else "warn"
    return (
        f"{gpu.name}: does not fit, {room} more than {share}its {usable}{doubt}",
        "bad" if gpu.certain else "warn",
    )


def _memory(report: ServeReport) -> Split:
    device, gpu = report.device, report.gpu
    sizes = [(node.name, node.bytes) for node in device.breakdown.children]
    rows = [(name, format_bytes(size), percent(size / device.device_bytes)) for name, size in sizes]
    rows.append(("one GPU", format_bytes(device.device_bytes), percent(1.0)))
    end, mark = device.device_bytes, None
    if gpu is not None:
        rows.append((f"usable on {gpu.name}", format_bytes(gpu.usable_bytes), ""))
        end, mark = max(end, gpu.usable_bytes), gpu.usable_bytes
    columns = (Column("part"), Column("size", right=True), Column("of it", right=True))
    legend = Table("", columns, tuple(rows), frozenset({len(sizes)}))
    return Split("GPU memory", lettered(sizes), end, legend, mark)


def _storage(report: ServeReport) -> Table:
    adapter, storage = report.adapter, report.storage
    count = report.serving["adapters"]
    trained = f"{format_count(adapter.num_params)} trained parameters, kept in {adapter.dtype}"
    computed = "as stated" if adapter.stated else trained
    rows = [
        ("one adapter", "1", format_bytes(adapter.bytes), computed),
        ("on disk", f"{count:,}", format_bytes(storage.adapters_disk_bytes), "all of them, as saved"),
        ("in host memory", f"{storage.resident:,}", format_bytes(storage.host_bytes), "ready to be copied"),
        ("hot, in GPU memory", f"{storage.hot:,}", format_bytes(storage.hot_bytes), _place(report)),
        ("base on disk", "1", format_bytes(storage.base_disk_bytes), "shared by all"),
        ("disk in all", "", format_bytes(storage.disk_bytes), ""),
    ]
    columns = (Column("adapters"), Column("number", right=True), Column("size", right=True), Column(""))
    return Table("Where adapters lie", columns, tuple(rows), frozenset({len(rows) - 1}))


def _place(report: ServeReport) -> str:
    adapter, slot = report.adapter, report.serving["slot_rank"]
    if slot is None or adapter.hot_bytes == adapter.bytes:
        return "each in a place of its own size"
    return f"each in a place of rank {slot}: {format_bytes(adapter.hot_bytes)}"


def _cache(cache: Cache) -> Table:
    rows = [
        (
            _kept(row),
            f"{row.layers:,}",
            f"{row.values_per_token:,}",
            f"{row.tokens:,}",
            format_bytes(row.bytes),
        )
        for row in cache.layers
    ]
    total = sum(row.layers for row in cache.layers)
    rows.append(("a full sequence", f"{total:,}", "", "", format_bytes(sum(row.bytes for row in cache.layers))))
    below = f"one more token takes {format_bytes(cache.bytes_per_token)}"
    if cache.sequence_bytes > sum(row.bytes for row in cache.layers):
        below += f"; behind the prompt it is {format_bytes(cache.sequence_bytes)}"
    if cache.expanded_bytes:
        made = format_bytes(cache.expanded_bytes)
        below += f"; whole keys and values of a layer, made anew at each token: {made}"
    return Table(
        "Keys and values of one sequence",
        (
            Column("layers that keep"),
            Column("layers", right=True),
            Column("numbers a token", right=True),
            Column("tokens", right=True),
            Column("size", right=True),
        ),
        tuple(rows),
        frozenset({len(rows) - 1}),
        below,
    )


def _kept(row: CacheRow) -> str:
    of = "latents of " if "latents" in row.kind else ""
    return of + ("every token" if row.window is None else f"a window of {row.window:,}")


def _limits(report: ServeReport) -> Table:
    limits, serving = report.limits, report.serving
    rows = [
        ("sequences at once", f"{serving['concurrency']:,}", _count(limits.max_concurrency)),
        ("hot adapters", f"{serving['hot']:,}", _count(limits.max_hot)),
        ("tokens in a sequence", f"{report.request['seq_len']:,}", _count(limits.max_seq_len)),
    ]
    if limits.cache_tokens is not None:
        held = serving["concurrency"] * report.request["seq_len"]
        rows.append(("tokens in the pool", f"{held:,}", _count(limits.cache_tokens)))
    columns = (Column(""), Column("asked", right=True), Column("at most", right=True))
    return Table("How far its memory goes, each alone", columns, tuple(rows))


def _count(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"


def serve_csv(report: ServeReport) -> str:
    """One server as one row, its columns named as in the JSON; parts of GPU memory as `device.breakdown.*`."""
    left_out = {"notes", "versions"}
    flat = dict(_flat(report.model_dump(exclude=left_out)))
    for part in report.device.breakdown.children:
        flat[f"device.breakdown.{part.name}"] = part.bytes
    return rows_csv(list(flat), [list(flat.values())])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key in ("breakdown", "layers", "mixed") or (value is None and key in ("gpu", "speed", "money")):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
