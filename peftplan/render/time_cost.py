"""Seconds and dollars on the screen: a step's parts, the run's hours and what they cost."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.render.blocks import Block, Column, Gauge, Notes, Table, Text
from peftplan.render.words import percent
from peftplan.report import Cost, Report, Time
from peftplan.units import HOUR_S, format_count, format_duration, format_usd


def time_cost_blocks(report: Report) -> Iterator[Block]:
    """How long a step takes and what a run costs, where they are known."""
    if report.time is not None:
        yield _terms(report.time, report)
        yield Text(_pace(report.time))
    if report.cost is not None:
        yield _run(report.cost, report)
        if report.cost.notes:
            yield Notes("About the cost", report.cost.notes)


def _terms(time: Time, report: Report) -> Table:
    asked = report.request
    num_gpus = report.gpu.num_gpus if report.gpu is not None else 1
    name = report.gpu.name if report.gpu is not None else ""
    cards = name if num_gpus == 1 else f"{num_gpus} x {name}"
    tokens = asked["micro_batch"] * asked["seq_len"] * asked["grad_accum"] * num_gpus
    ranked = sorted(time.terms.items(), key=lambda item: -item[1])
    rows = [(label, shown_s(s), percent(s / time.step_s), Gauge(s / time.step_s)) for label, s in ranked]
    rows.append(("a step", shown_s(time.step_s), percent(1.0), Gauge(0.0)))
    low, high = shown_s(time.interval.low_s), shown_s(time.interval.high_s)
    return Table(
        f"Time of a step of {tokens:,} tokens on {cards}",
        (Column("part"), Column("time", right=True), Column("of the step", right=True), Column("")),
        tuple(rows),
        frozenset({len(rows) - 1}),
        f"{time.interval.coverage:.0%} within {low} to {high}",
    )


def _pace(time: Time) -> str:
    text = f"{pace(time)}; most of the time goes to {time.bound}"
    used = [f"{name} {percent(frac)}" for name, frac in (("HFU", time.hfu_frac), ("MFU", time.mfu_frac)) if frac]
    return text + (f" ({', '.join(used)} of the card's peak)" if used else "")


def pace(time: Time) -> str:
    """Tokens per second of all GPUs together."""
    return f"{time.tokens_per_s:,.0f} tokens/s"


def _run(cost: Cost, report: Report) -> Table:
    num_gpus = report.gpu.num_gpus if report.gpu is not None else 1
    rate = f"{format_usd(cost.usd_per_gpu_hour)} an hour" + (f" x {num_gpus} GPUs" if num_gpus > 1 else "")
    rows = [
        ("time", hours(cost.hours), f"{hours(cost.hours_low)} to {hours(cost.hours_high)}"),
        ("price", rate, f"{cost.price_source}, {cost.price_date}".rstrip(", ")),
        ("cost", format_usd(cost.usd), f"{format_usd(cost.usd_low)} to {format_usd(cost.usd_high)}"),
        ("energy", f"{cost.energy_kwh:,.3g} kWh", ""),
    ]
    rows += [(f"  {name}", hours(part), "") for name, part in cost.parts.items() if len(cost.parts) > 1]
    return Table(
        f"A run of {format_count(cost.num_tokens)} tokens, {cost.num_steps:,} steps",
        (Column(""), Column("expected", right=True), Column("low to high")),
        tuple(rows),
        frozenset({2}),
    )


def hours(count: float) -> str:
    """Hours as people say them."""
    return format_duration(count * HOUR_S)


def shown_s(seconds: float) -> str:
    """Seconds of a step: milliseconds where these read better."""
    if seconds >= 1:
        return f"{seconds:,.2f} s" if seconds < 100 else format_duration(seconds)
    return f"{seconds * 1000:.3g} ms"
