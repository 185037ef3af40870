"""The screen of a server, its second half: how fast tokens come, and what copies and tenants cost."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.render.blocks import Block, Column, Gauge, Table, Text
from peftplan.render.time_cost import shown_s
from peftplan.render.words import percent
from peftplan.serving.answers import Copies, Money, ServeReport, Speed
from peftplan.units import format_bytes, format_usd

_NOT_KNOWN = "-"


def speed_blocks(report: ServeReport, speed: Speed) -> Iterator[Block]:
    """A step of generation, what adapters add to it, and other numbers of them in a batch."""
    yield _step(report, speed)
    yield Text(_pace(speed))
    yield _bypass(speed)
    if len(speed.mixed) > 1:
        yield _mixed(speed)


def money_blocks(report: ServeReport) -> Iterator[Block]:
    """Copies against one base, and dollars where a price is known."""
    yield _copies(report, report.copies)
    if report.money is not None:
        yield _money(report, report.money)


def _step(report: ServeReport, speed: Speed) -> Table:
    step, moved = speed.decode, speed.decode.bytes.model_dump()
    rows = [
        (
            name,
            format_bytes(moved[name]) if name in moved else _NOT_KNOWN,
            shown_s(seconds),
            percent(seconds / step.step_s),
            Gauge(seconds / step.step_s),
        )
        for name, seconds in step.terms.items()
    ]
    whole = sum(moved.values())
    rows.append(("a step", format_bytes(whole), shown_s(step.step_s), percent(1.0), Gauge(0.0)))
    asked, distinct = report.serving["concurrency"], report.serving["distinct"]
    gpu = report.gpu.name if report.gpu is not None else ""
    return Table(
        f"A token for each of {asked:,} sequences, {_adapters(distinct)}, on {gpu}",
        (
            Column("reads"),
            Column("moved", right=True),
            Column("time", right=True),
            Column("of it", right=True),
            Column(""),
        ),
        tuple(rows),
        frozenset({len(rows) - 1}),
        f"most of the time goes to {step.bound}; {step.num_launches:,} launches",
    )


def _adapters(distinct: int) -> str:
    return "one adapter" if distinct == 1 else f"{distinct:,} different adapters"


def _pace(speed: Speed) -> str:
    decode, prefill, load = speed.decode, speed.prefill, speed.load
    return (
        f"{decode.tokens_per_s:,.0f} tokens/s, {decode.sequence_tokens_per_s:,.1f} of each sequence; "
        f"a prompt of {prefill.prompt_tokens:,} tokens takes {shown_s(prefill.prompt_s)} "
        f"({prefill.tokens_per_s:,.0f} tokens/s). "
        f"Kept busy: {load.requests_per_s:,.2f} requests/s, {load.generated_tokens_per_s:,.0f} generated tokens/s, "
        f"{percent(load.prefill_frac)} of the time on prompts."
    )


def _bypass(speed: Speed) -> Table:
    bypass, swap = speed.bypass, speed.swap
    rows = [
        ("flop a token", f"{bypass.flop_per_token:,.0f}"),
        ("bytes a step", format_bytes(bypass.bytes_per_step)),
        ("launches a step", f"{bypass.launches_per_step:,}"),
        ("a step with one merged in", shown_s(bypass.merged_step_s)),
        ("adapters add", f"{shown_s(bypass.adds_s)} ({percent(bypass.adds_frac)})"),
        ("a cold adapter, from host memory", f"{shown_s(swap.from_host_s)} over {swap.link}"),
        ("a cold adapter, from disk", shown_s(swap.from_disk_s)),
    ]
    return Table(
        "Adapters beside the base, against one merged in",
        (Column(""), Column("", right=True)),
        tuple(rows),
        below=bypass.formula,
    )


def _mixed(speed: Speed) -> Table:
    return Table(
        "Different adapters in one batch",
        (
            Column("adapters", right=True),
            Column("moved for them", right=True),
            Column("a step", right=True),
            Column("tokens/s", right=True),
        ),
        tuple(
            (f"{row.distinct:,}", format_bytes(row.adapter_bytes), shown_s(row.step_s), f"{row.tokens_per_s:,.0f}")
            for row in speed.mixed
        ),
    )


def _copies(report: ServeReport, copies: Copies) -> Table:
    count = report.serving["adapters"]
    rows = [("disk", format_bytes(copies.disk_bytes), format_bytes(copies.shared_disk_bytes))]
    rows.append(("one copy, in 16 bits", format_bytes(copies.copy_bytes), _NOT_KNOWN))
    if copies.num_gpus is not None:
        shared = "does not fit" if copies.shared_num_gpus is None else f"{copies.shared_num_gpus:,}"
        rows.append((f"GPUs, {_per_gpu(copies)}", f"{copies.num_gpus:,}", shared))
    money = report.money
    if money is not None and money.copies_usd_per_hour is not None:
        rows.append(("an hour", format_usd(money.copies_usd_per_hour), format_usd(money.usd_per_hour)))
        tenant = money.copies_usd_per_tenant_month
        assert tenant is not None
        rows.append(("a tenant and month", format_usd(tenant), format_usd(money.usd_per_tenant_month)))
    return Table(
        f"{count:,} copies of the model against one base",
        (Column(""), Column("copies", right=True), Column("one base", right=True)),
        tuple(rows),
        below=f"copies take {copies.disk_ratio:,.1f} times the disk",
    )


def _per_gpu(copies: Copies) -> str:
    if copies.copies_per_gpu is not None:
        return "one copy on each" if copies.copies_per_gpu == 1 else f"{copies.copies_per_gpu:,} copies on each"
    return f"at least {copies.gpus_per_copy:,} for a copy"


def _gpus(count: int) -> str:
    return "one GPU" if count == 1 else f"{count:,} GPUs"


def _money(report: ServeReport, money: Money) -> Table:
    low, high = format_usd(money.usd_per_gpu_hour_low), format_usd(money.usd_per_gpu_hour_high)
    tenants = report.serving["adapters"]
    rows = [
        ("a GPU-hour", format_usd(money.usd_per_gpu_hour), f"{low} to {high}; {money.price_source}"),
        ("an hour", format_usd(money.usd_per_hour), f"{_gpus(report.request['gpus'])}, whether busy or not"),
        (
            "a tenant and month",
            format_usd(money.usd_per_tenant_month),
            f"730 h over {tenants:,} tenants",
        ),
    ]
    if money.usd_per_million_tokens is not None:
        tokens = format_usd(money.usd_per_million_tokens)
        rows.append(("a million generated tokens", tokens, "prompts included, kept busy all the time"))
    return Table("Dollars", (Column(""), Column("", right=True), Column("")), tuple(rows))
