"""The screen of a traced run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peftplan.breakdown import Node
from peftplan.measure.trace.recording import ADAPTER, BUFFER, PARAMETER
from peftplan.measure.trace.report import PhasePeak, TraceReport
from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.estimate import peak_split, settings_line, title_line
from peftplan.render.words import moment_label, percent, verdict
from peftplan.units import format_bytes

# What peft puts before every module's name.
WRAPPER = "base_model.model."
_DEEPEST = 3  # levels of the module tree that are shown
_LEAST_SHOWN = 0.01  # of the peak: smaller branches of the tree are left out
SHORT_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# Of these the operation says nothing: they stand where the model was loaded.
STANDING = (PARAMETER, BUFFER, ADAPTER)
_ABOUT = {
    "fake-cuda": "fake CUDA tensors: shapes and types, no GPU, no weights",
    "meta": "meta tensors",
    "fake-cpu": "fake CPU tensors",
}


def trace_blocks(report: TraceReport) -> Iterator[Block]:
    """What a trace found, most wanted first."""
    yield Text(title_line(report), "title")
    yield Text(settings_line(report))
    yield Text(_how(report))
    if report.gpu is not None:
        yield Text(*verdict(report))
    yield peak_split(report)
    yield _phases(report)
    yield _totals(report)
    yield _largest(report)
    yield _tree(report)
    yield Notes("Notes", report.notes)
    yield Text("Traced with " + ", ".join(f"{name} {version}" for name, version in report.libraries.items()))


def chart_title(report: TraceReport) -> str:
    """The heading of a chart."""
    asked = report.request
    return f"{report.model.id}, {report.method.kind}, {asked['micro_batch']} x {asked['seq_len']} tokens"


def chart_facts(report: TraceReport) -> list[tuple[str, str]]:
    """Figures for the line below a chart's heading."""
    return [
        ("Reserved", format_bytes(report.totals.reserved_bytes)),
        ("With expandable segments", format_bytes(report.totals.reserved_expandable_bytes)),
        ("On the device", format_bytes(report.memory.device_bytes)),
    ]


def module_name(path: str) -> str:
    """A module's path as the model itself has it; empty for the model as a whole."""
    return "" if path == WRAPPER[:-1] else path.removeprefix(WRAPPER)


def operation_name(name: str) -> str:
    """`aten::add.Tensor` as people say it."""
    return name.removeprefix("aten::").partition(".")[0]


def _how(report: TraceReport) -> str:
    kernels = f"; attention runs as {' and '.join(report.attention_kernels)}" if report.attention_kernels else ""
    return f"Traced on {_ABOUT[report.mode]}; {report.phases[-1].step + 1} steps{kernels}."


def _phases(report: TraceReport) -> Table:
    """The peaks of the last step's phases."""
    last = report.phases[-1].step
    peaks: dict[str, PhasePeak] = {}
    for phase in report.phases:
        before = peaks.get(phase.name)
        if phase.step == last and (before is None or phase.peak_allocated_bytes > before.peak_allocated_bytes):
            peaks[phase.name] = phase
    rows = tuple(
        (
            moment_label(phase.name) + (" (peak)" if phase.name == report.memory.peak_moment else ""),
            format_bytes(phase.peak_allocated_bytes),
            _said(phase.module, phase.operation),
        )
        for phase in peaks.values()
    )
    columns = (Column("phase"), Column("most allocated", right=True), Column("reached in"))
    return Table("Phases of a step", columns, rows)


def _said(module: str, operation: str) -> str:
    """Where and by what a tensor was made."""
    return ": ".join(part for part in (module_name(module), operation_name(operation)) if part) or "the model"


def _totals(report: TraceReport) -> Table:
    totals, memory = report.totals, report.memory
    interval = memory.interval
    between = f"{format_bytes(interval.low_bytes)} to {format_bytes(interval.high_bytes)}"
    rows = (
        ("requested", totals.requested_bytes, "by tensors and kernels"),
        ("allocated", totals.allocated_bytes, "torch.cuda.max_memory_allocated()"),
        ("in blocks", totals.blocks_bytes, "with rests that were not split off"),
        ("reserved", totals.reserved_bytes, "torch.cuda.max_memory_reserved()"),
        ("reserved, expandable", totals.reserved_expandable_bytes, "with expandable_segments:True"),
        ("device", memory.device_bytes, f"nvidia-smi; {interval.coverage:.0%} within {between}"),
    )
    return Table(
        "Totals",
        (Column(""), Column("size", right=True), Column("as seen by")),
        tuple((name, format_bytes(size), seen) for name, size, seen in rows),
    )


def _largest(report: TraceReport) -> Table:
    rows = tuple(
        (
            format_bytes(one.num_bytes),
            _said(one.module, "" if one.category in STANDING else one.operation),
            f"{SHORT_TYPES.get(one.dtype, one.dtype)}[{', '.join(map(str, one.shape))}]",
            one.category,
        )
        for one in report.largest
    )
    columns = (Column("size", right=True), Column("made by"), Column("tensor"), Column("category"))
    return Table(f"The {len(rows)} largest tensors at the peak", columns, rows)


def _tree(report: TraceReport) -> Table:
    whole = report.tree.bytes
    rows = [
        (
            f"{'. ' * depth}{_part(node)}",
            node.formula if node.children else "",
            format_bytes(node.bytes),
            percent(share),
        )
        for depth, node in _branches(report.tree.children)
        if (share := node.bytes / whole) >= _LEAST_SHOWN
    ]
    return Table(
        "The peak by module",
        (Column("module"), Column(""), Column("size", right=True), Column("of peak", right=True)),
        tuple(rows),
        below=f"branches of at least {_LEAST_SHOWN:.0%} of the peak",
    )


def _branches(nodes: Iterable[Node]) -> Iterator[tuple[int, Node]]:
    """The upper levels of a tree; what peft wraps around the model is no level of it."""
    for node in nodes:
        if node.name == WRAPPER[:-1]:
            yield from _branches(node.children)
        else:
            yield from ((depth, below) for depth, below in node.walk() if depth < _DEEPEST)


def _part(node: Node) -> str:
    """A module's name, or the category and operation of what it holds itself."""
    category, colon, operation = node.name.partition(": ")
    return f"{category}: {operation_name(operation)}" if colon else module_name(node.name)
