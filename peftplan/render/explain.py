"""Every figure of a report with what it means, its formula, the numbers put in, and its source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.cost_explained import cost_quantities
from peftplan.render.disk_explained import GROUP, disk_figures
from peftplan.render.formulas import derive
from peftplan.render.quantities import Quantity
from peftplan.render.time_explained import time_quantities
from peftplan.render.words import MOMENTS, RESIDENT, verdict
from peftplan.report import SCHEMA_VERSION, Report
from peftplan.sources import SOURCES
from peftplan.units import GB, format_bytes, format_count

# How an answer is reached whatever the request: said once, where people look for it.
CONVENTIONS = (
    (
        "A plain training loop over the versions named in the answer: labels given to the model, outputs "
        "dropped before backward, gradients set to None after each step, no clipping, unpadded batch, second "
        "and later steps."
    ),
    (
        "Three totals are never mixed: allocated is the sum of live tensors after rounding, reserved what "
        "the allocator holds for them in segments, device what the process takes on the card."
    ),
    "The peak is the most that is alive at one moment, not a sum of everything that is ever alive.",
)
QUANT_CONVENTION = (
    "qlora means NF4 with double quantisation. bitsandbytes' own config defaults to FP4 without it: a "
    "BitsAndBytesConfig(load_in_4bit=True) and nothing more is --quant fp4 --no-double-quant."
)
BASE_CONVENTION = (
    "The frozen base is loaded in {base}. A stock TRL config that names no dtype loads it in fp32 "
    "(--base-dtype fp32), which doubles what is not quantised."
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Frozen):
    """One figure: `formula` has its numbers put in; `source` is a key of `sources`, or empty."""

    group: str
    name: str
    bytes: int
    meaning: str = ""
    formula: str = ""
    source: str = ""

    @classmethod
    def of(cls, group: str, name: str, num_bytes: int, meaning: str, formula: str, source: str) -> Figure:
        """A figure from its parts."""
        return cls(group=group, name=name, bytes=num_bytes, meaning=meaning, formula=formula, source=source)


class Citation(_Frozen):
    """Where a formula comes from."""

    title: str
    where: str
    version: str


class Explanation(_Frozen):
    """The answer of `explain`: figures in the order of the estimate's screen."""

    schema_version: int
    request: dict[str, Any]
    figures: tuple[Figure, ...]
    quantities: tuple[Quantity, ...]  # of time, money and energy, where there are any
    conventions: tuple[str, ...]
    sources: dict[str, Citation]


def explain(report: Report) -> Explanation:
    """Every figure of a report, explained."""
    figures = (*_figures(report), *(Figure.of(GROUP, *figure) for figure in disk_figures(report)))
    quantities = (*time_quantities(report), *cost_quantities(report))
    keys = dict.fromkeys([figure.source for figure in figures] + [quantity.source for quantity in quantities])
    return Explanation.model_construct(
        schema_version=SCHEMA_VERSION,
        request=report.request,
        figures=figures,
        quantities=quantities,
        conventions=tuple(_conventions(report)),
        sources={
            key: Citation.model_construct(
                title=SOURCES[key].title, where=SOURCES[key].where, version=SOURCES[key].version
            )
            for key in keys
            if key in SOURCES
        },
    )


def explain_blocks(report: Report) -> Iterator[Block]:
    """The explanation as a screen: one table for each group of figures, conventions, sources."""
    explanation = explain(report)
    method, model = report.method, report.model
    yield Text(f"How {model.id} with {method.kind} comes to its figures", "title")
    yield Text(
        f"{format_count(method.num_trainable_params)} of {format_count(model.num_params)} parameters train: "
        f"{method.num_trainable_params:,} / ({model.num_params:,} and what the method adds) = "
        f"{method.trainable_frac:.4%}"
    )
    if report.gpu is not None:
        yield Text(*verdict(report))
    groups: dict[str, list[Figure]] = {}
    for figure in explanation.figures:
        groups.setdefault(figure.group, []).append(figure)
    for group, figures in groups.items():
        yield Table(
            group,
            (Column("figure"), Column("size", right=True), Column("how it comes about")),
            tuple((f.name, format_bytes(f.bytes), _how(f)) for f in figures),
        )
    for group in dict.fromkeys(quantity.group for quantity in explanation.quantities):
        yield Table(
            group,
            (Column("figure"), Column("value", right=True), Column("how it comes about")),
            tuple((q.name, q.shown(), _how(q)) for q in explanation.quantities if q.group == group),
        )
    yield Notes("Conventions", explanation.conventions)
    yield Notes(
        "Sources",
        tuple(f"[{key}] {s.title}: {s.where} ({s.version})" for key, s in explanation.sources.items()),
    )
    yield Notes("Notes", report.notes)


def _how(figure: Figure | Quantity) -> str:
    parts = [figure.meaning, figure.formula, f"[{figure.source}]" if figure.source else ""]
    return "; ".join(part for part in parts[:2] if part) + (f" {parts[2]}" if parts[2] else "")


def _conventions(report: Report) -> Iterable[str]:
    yield from CONVENTIONS
    if report.request["quant"] in ("nf4", "fp4"):
        yield QUANT_CONVENTION
    if report.method.adapter_checkpoint_bytes:
        yield BASE_CONVENTION.format(base=report.request["base_dtype"])


def _figures(report: Report) -> Iterator[Figure]:
    yield from _parts(report)
    yield from _totals(report)
    memory = report.memory
    for name, size in memory.resident.model_dump().items():
        if size:
            yield _figure("State from step to step", RESIDENT[name][0], size, RESIDENT[name][1])
    for name, size in memory.moments.items():
        yield _figure("Moments", *(MOMENTS[name][0], size, MOMENTS[name][1]))
    if memory.evaluation_peak_bytes is not None:
        yield _figure(
            "Moments",
            "evaluation pass",
            memory.evaluation_peak_bytes,
            "the same batch without gradients, the optimizer's states beside it",
        )
    yield from _loading(report)


def _loading(report: Report) -> Iterator[Figure]:
    load = report.memory.load
    if load is not None:
        device = "weights as they stay, and the largest one before it is packed"
        yield _figure("Loading", "on the device", load.device_peak_bytes, device)
        host = "the largest tensor of a memory-mapped checkpoint"
        yield _figure("Loading", "on the host", load.host_peak_bytes, host)
        yield _figure("Loading", "checkpoint", load.checkpoint_bytes, "its 16-bit weights on disk")
    if report.method.adapter_checkpoint_bytes:
        size = report.method.adapter_checkpoint_bytes
        yield _figure("Loading", "adapter file", size, "what a saved adapter takes on disk")
    yield from _card(report)


def _parts(report: Report) -> Iterator[Figure]:
    tree = report.memory.breakdown
    for part in tree.children:
        leaves = part.children or (part,)
        for leaf in leaves:
            formula, source = derive(part.name, leaf, report)
            name = part.name if leaf is part or leaf.name == part.name else f"{part.name} - {leaf.name}"
            yield Figure.model_construct(
                group="Allocated at the peak",
                name=name,
                bytes=leaf.bytes,
                meaning="",
                formula=formula,
                source=source,
            )
    yield _figure("Allocated at the peak", tree.name, tree.bytes, "the sum of the rows above")


def _totals(report: Report) -> Iterator[Figure]:
    memory = report.memory
    group, interval = "Totals", memory.interval
    yield _figure(
        group,
        "allocated",
        memory.peak_allocated_bytes,
        "torch.cuda.max_memory_allocated(): live blocks, each rounded up to 512 bytes",
        source="torch-allocator",
    )
    yield _figure(
        group,
        "reserved",
        memory.peak_reserved_bytes,
        "torch.cuda.max_memory_reserved(): the segments that hold them, modelled",
        source="torch-allocator",
    )
    beyond = memory.device_bytes - memory.peak_reserved_bytes
    yield _figure(
        group,
        "device",
        memory.device_bytes,
        "what nvidia-smi shows for the process: reserved, CUDA context and paged states",
        f"{memory.peak_reserved_bytes:,} + {beyond:,}",
        "cuda-context",
    )
    covered = f"{interval.coverage:.0%} interval of device; {interval.basis}"
    yield _figure(group, "device, low", interval.low_bytes, covered)
    yield _figure(group, "device, high", interval.high_bytes, covered)


def _card(report: Report) -> Iterator[Figure]:
    gpu = report.gpu
    if gpu is None:
        return
    needed = gpu.usable_bytes - gpu.headroom_bytes
    box = f"{gpu.sold_bytes / GB:g} GB of 10^9 bytes"
    yield _figure(gpu.name, "sold", gpu.sold_bytes, "what the box says", box)
    yield _figure(gpu.name, "driver", gpu.driver_bytes, "what nvidia-smi shows as the card's total")
    yield _figure(gpu.name, "usable", gpu.usable_bytes, "what torch can hand out")
    yield _figure(
        gpu.name,
        "must be held",
        needed,
        "the least memory in which the step completes, with the CUDA context",
    )
    yield _figure(
        gpu.name,
        "headroom",
        gpu.headroom_bytes,
        "usable less what must be held",
        f"{gpu.usable_bytes:,} - {needed:,}",
    )


def _figure(group: str, name: str, num_bytes: int, meaning: str, formula: str = "", source: str = "") -> Figure:
    return Figure.model_construct(
        group=group, name=name, bytes=num_bytes, meaning=meaning, formula=formula, source=source
    )
