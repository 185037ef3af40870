"""The screen of one estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftplan.render.blocks import Block, Column, Gauge, Notes, Split, Table, Text, lettered
from peftplan.render.time_cost import time_cost_blocks
from peftplan.render.words import (
    BEYOND_TENSORS,
    RESIDENT,
    moment_label,
    peak_owner,
    percent,
    verdict,
)
from peftplan.report import Change, Report
from peftplan.specs.style import NEXT_TOKEN
from peftplan.units import format_bytes, format_count


def estimate_blocks(report: Report, changes: Sequence[Change] = ()) -> Iterator[Block]:
    """Everything a person wants to know about one run, most wanted first."""
    yield Text(title_line(report), "title")
    yield Text(settings_line(report))
    if report.gpu is not None:
        yield Text(*verdict(report))
    yield peak_split(report)
    yield Text(_peak(report))
    yield _totals(report)
    yield _resident(report)
    yield _moments(report)
    yield from time_cost_blocks(report)
    if report.recipes:
        yield _recipes(report)
    if report.gpu is not None and not report.gpu.fits:
        yield from change_blocks(changes)
    yield Notes("Notes", report.notes)


def title_line(report: Report) -> str:
    """Model and method, and how many parameters each has."""
    model, method = report.model, report.method
    size = format_count(model.num_params)
    if model.num_active_params != model.num_params:
        size += f" ({format_count(model.num_active_params)} active)"
    return (
        f"{model.id}, {size} parameters - {method.kind}: {format_count(method.num_trainable_params)} train "
        f"({percent(method.trainable_frac)})"
    )


def _loss(asked: Mapping[str, Any]) -> str:
    """The loss of the next token, or the style that has another."""
    style = asked.get("style", NEXT_TOKEN)
    if style == NEXT_TOKEN:
        text = f"{asked['loss']} loss"
        return f"{text}, without padding" if asked.get("padding_free") else text
    return f"{style} against reference {asked['reference']}" if asked.get("reference") else f"{style}"


def settings_line(report: Report) -> str:
    """The run in one line."""
    asked = report.request
    text = f"{asked['micro_batch']} x {asked['seq_len']} tokens, {asked['precision']}, {asked['optimizer']}"
    text += ", checkpointing" if asked["checkpointing"] else ", no checkpointing"
    text += f", {asked['attention']} attention, {_loss(asked)}"
    if asked["gpus"] > 1:
        text += f", on each of {asked['gpus']} GPUs"
    if asked["grad_accum"] > 1:
        text += f", {asked['grad_accum']} micro-batches a step"
    if report.method.adapter_checkpoint_bytes:
        text += f"; rank {asked['rank']}, adapter file {format_bytes(report.method.adapter_checkpoint_bytes)}"
    return text


def peak_split(report: Report) -> Split:
    """The peak, part by part; with a card, up to what the card can give."""
    memory, gpu = report.memory, report.gpu
    sizes = [(node.name, node.bytes) for node in memory.breakdown.children]
    peak = memory.peak_allocated_bytes
    rows = [(name, format_bytes(size), percent(size / peak)) for name, size in sizes]
    rows.append(("peak allocated", format_bytes(peak), percent(1.0)))
    strong, end, mark = {len(rows) - 1}, peak, None
    if gpu is not None:
        needed = gpu.usable_bytes - gpu.headroom_bytes
        sizes.append((BEYOND_TENSORS, needed - peak))
        rows.append((BEYOND_TENSORS, format_bytes(needed - peak), ""))
        rows.append(("must be held", format_bytes(needed), ""))
        rows.append((f"usable on {gpu.name}", format_bytes(gpu.usable_bytes), ""))
        strong.add(len(rows) - 2)
        end, mark = max(needed, gpu.usable_bytes), gpu.usable_bytes
    columns = (Column("part"), Column("size", right=True), Column("of peak", right=True))
    return Split(
        f"Memory at the peak ({moment_label(memory.peak_moment)})",
        lettered(sizes),
        end,
        Table("", columns, tuple(rows), frozenset(strong)),
        mark,
    )


def _peak(report: Report) -> str:
    name, num_bytes, detail = peak_owner(report)
    text = (
        f"The peak comes in the {moment_label(report.memory.peak_moment)} phase; beside the training state, "
        f"its largest part is {name} with {format_bytes(num_bytes)}"
    )
    return text + (f" (most of it {detail})." if detail else ".")


def _totals(report: Report) -> Table:
    memory = report.memory
    interval = memory.interval
    between = f"{format_bytes(interval.low_bytes)} to {format_bytes(interval.high_bytes)}"
    return Table(
        "Three totals",
        (Column(""), Column("size", right=True), Column("as seen by")),
        (
            ("allocated", format_bytes(memory.peak_allocated_bytes), "torch.cuda.max_memory_allocated()"),
            ("reserved", format_bytes(memory.peak_reserved_bytes), "torch.cuda.max_memory_reserved()"),
            (
                "device",
                format_bytes(memory.device_bytes),
                f"nvidia-smi; {interval.coverage:.0%} within {between}",
            ),
        ),
    )


def _resident(report: Report) -> Table:
    sizes = report.memory.resident.model_dump()
    rows = [(RESIDENT[name][0], format_bytes(size)) for name, size in sizes.items() if size]
    rows.append(("together", format_bytes(sum(sizes.values()))))
    strong = frozenset({len(rows) - 1})
    for name, size in (
        ("beside it, optimizer states in pages", report.memory.optimizer_paged_bytes),
        ("on the host, of the optimizer", report.memory.optimizer_host_bytes),
    ):
        if size:
            rows.append((name, format_bytes(size)))
    return Table(
        "What the training state takes",
        (Column(""), Column("size", right=True)),
        tuple(rows),
        strong,
    )


def _moments(report: Report) -> Table:
    memory = report.memory
    peak = memory.peak_moment
    sizes = [
        (moment_label(name) + (" (peak)" if name == peak else ""), size) for name, size in memory.moments.items()
    ]
    if memory.evaluation_peak_bytes is not None:
        sizes.append(("evaluation pass", memory.evaluation_peak_bytes))
    if memory.load is not None:
        sizes.append(("loading, on the device", memory.load.device_peak_bytes))
        sizes.append(("loading, on the host", memory.load.host_peak_bytes))
    longest = max(size for _, size in sizes)
    return Table(
        "Moments",
        (Column("moment"), Column("allocated", right=True), Column("")),
        tuple((name, format_bytes(size), Gauge(size / longest)) for name, size in sizes),
    )


def _recipes(report: Report) -> Table:
    """An unstated recipe is where tools disagree, so all of them are shown."""
    chosen = report.request["precision"]
    return Table(
        "The same run under other precision recipes",
        (Column("recipe"), Column("peak allocated", right=True), Column("bytes a parameter", right=True)),
        tuple(
            (
                f"{row.precision} (this run)" if row.precision == chosen else row.precision,
                format_bytes(row.peak_allocated_bytes),
                f"{row.bytes_per_param:.2f}",
            )
            for row in report.recipes
        ),
    )


def change_blocks(changes: Sequence[Change]) -> Iterator[Block]:
    """Single changes that make a run fit; if none does, those that save most."""
    enough = [change for change in changes if change.fits]
    if not changes:
        yield Text("No single change of the usual kind lowers this run's peak; choose a larger GPU.", "warn")
        return
    yield Table(
        "Each of these alone makes it fit" if enough else "No single change is enough; the largest savings",
        (Column("change"), Column("saves", right=True)),
        tuple((change.change, format_bytes(change.saves_bytes)) for change in (enough or changes[:5])),
        below="" if enough else "`peftplan fit` looks for several that are enough together",
    )
