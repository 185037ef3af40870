"""Compare: two to four plans side by side, part by part, and one plan over its rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from explorer.answers import asked, filled_fields
from explorer.charts import Bar, memory_bars
from explorer.curves import Curve, curves
from explorer.form import field_input, model_input
from explorer.sharing import as_markdown, share
from explorer.state import (
    CLASSIC,
    COLUMNS,
    MOST_COLUMNS,
    RANKS,
    column_words,
    num_columns,
    plan,
    set_columns,
    set_words,
    words,
)
from explorer.tables import draw, literal
from explorer.words import PIECE, Words, command, label, python_request, request_of
from peftplan import Report, Request, compare, sweep
from peftplan.cli.grid import axes_from
from peftplan.methods import METHODS
from peftplan.render.blocks import Column, Table
from peftplan.render.compare import column_names, compare_blocks
from peftplan.render.estimate import peak_split
from peftplan.render.sweep import sweep_csv
from peftplan.render.table_csv import comparison_csv
from peftplan.render.time_cost import hours, shown_s
from peftplan.render.words import moment_label
from peftplan.report import Comparison
from peftplan.sweeps import SweepReport
from peftplan.units import GIB, format_bytes, format_usd

# What a column may change of the plan; a link may change anything.
FIELDS = ("method", "rank", "micro_batch", "seq_len", "precision", "optimizer", "checkpointing", "gpu")
RANK_SWEEP = "4,8,16,32,64,128,256"


def show() -> None:
    """Draw the page."""
    count = num_columns()
    _columns_input(count)
    plans = [_column(column) for column in range(1, count + 1)]
    found = [asked(_question(one)) for one in plans]
    requests = [request for request in found if request is not None]
    comparison = asked(lambda: compare(requests)) if len(requests) == count else None
    if comparison is not None:
        _compared(comparison, plans, requests)
    _rank_sweep()


def _column(column: int) -> Words:
    """The words of a column; of the plan's options of one method alone, those that its own method has."""
    own, word = plan(column), "method_options"
    method = METHODS.get(own.get("method", ""))
    if word in own and word not in column_words(column) and method is not None:
        pieces = own[word].split(PIECE)
        own[word] = PIECE.join(piece for piece in pieces if piece.partition("=")[0] in method.options.model_fields)
    return {name: text for name, text in own.items() if text}


def _question(one: Words) -> Callable[[], Request]:
    return lambda: request_of(one)


def _columns_input(count: int) -> None:
    """How many plans, and what each changes of the plan beside."""
    with st.container(horizontal=True):
        st.button("full / LoRA / QLoRA", on_click=set_columns, args=(CLASSIC,), icon=":material/restart_alt:")
        more, fewer = count + 1, count - 1
        st.button("One more", on_click=_count, args=(more,), disabled=count >= MOST_COLUMNS, icon=":material/add:")
        st.button("One fewer", on_click=_count, args=(fewer,), disabled=count <= 2, icon=":material/remove:")
    with st.expander("What each plan changes of the form beside"):
        for column, place in enumerate(st.columns(count), start=1):
            with place:
                own = _column(column)
                st.markdown(f"**Plan {column}**")
                model_input(column, own)
                filled = filled_fields(own)
                for name in FIELDS:
                    field_input(name, column, own, filled)


def _count(count: int) -> None:
    if COLUMNS not in words():
        set_columns(CLASSIC)
    gone = {name: None for name in words() if name[:1].isdigit() and int(name.partition(".")[0]) > count}
    set_words({**gone, COLUMNS: str(count)})


def _compared(comparison: Comparison, plans: Sequence[Words], requests: Sequence[Request]) -> None:
    """Bars, differences, tables, and where to take them."""
    columns = comparison.columns
    names = [f"{number}: {name}" for number, name in enumerate(column_names(columns), start=1)]
    st.markdown("##### What must be held, part by part")
    st.caption("Memory of one GPU at each plan's own peak; with a GPU, up to what must be held on it.")
    bars = [_bar(name, column) for name, column in zip(names, columns)]
    memory_bars(bars, "; ".join(f"{bar.headline}, {bar.detail}" for bar in bars))
    draw([_differences(names, columns)])
    draw(compare_blocks(comparison))
    share(
        _command(plans),
        "from peftplan import Request, compare\n\ncomparison = compare([\n"
        + "".join(f"    {python_request(one, '    ')},\n" for one in plans)
        + "])\nfor term in comparison.terms:\n    print(term.name, *term.bytes)",
        "compare",
        {
            "json": lambda: comparison.model_dump_json() + "\n",
            "csv": lambda: comparison_csv(comparison, column_names(columns)),
            "md": as_markdown(lambda: compare_blocks(comparison)),
        },
    )
    if not _by_method(plans):
        st.caption("The command compares saved plans: these are the files.")
        with st.container(horizontal=True):
            for number, request in enumerate(requests, start=1):
                st.download_button(
                    f"plan-{number}.json",
                    data=request.model_dump_json() + "\n",
                    file_name=f"plan-{number}.json",
                    mime="application/json",
                    on_click="ignore",
                )


def _bar(name: str, report: Report) -> Bar:
    memory, gpu = report.memory, report.gpu
    size = format_bytes(memory.device_bytes)
    verdict = "" if gpu is None else f", {'fits' if gpu.fits else 'does not fit'} {gpu.name}"
    detail = [f"peak in {moment_label(memory.peak_moment)}"]
    if report.time is not None:
        detail.append(f"{shown_s(report.time.step_s)} a step")
    if report.cost is not None:
        detail.append(f"{format_usd(report.cost.usd)} in {hours(report.cost.hours)}")
    return Bar(
        name=name,
        headline=f"{name}: {size} on the device{verdict}",
        detail=", ".join(detail),
        parts=peak_split(report).parts,
        usable_bytes=gpu.usable_bytes if gpu is not None else None,
        sold_bytes=gpu.sold_bytes if gpu is not None else None,
    )


def _differences(names: Sequence[str], columns: Sequence[Report]) -> Table:
    """Every further plan against the first: bytes, seconds, dollars."""
    first = columns[0]
    rows = []
    for name, column in zip(names[1:], columns[1:]):
        step = run = "-"
        if first.time is not None and column.time is not None:
            step = _signed(column.time.step_s - first.time.step_s, shown_s)
        if first.cost is not None and column.cost is not None:
            run = _signed(column.cost.usd - first.cost.usd, format_usd)
        allocated = column.memory.peak_allocated_bytes - first.memory.peak_allocated_bytes
        device = column.memory.device_bytes - first.memory.device_bytes
        rows.append((name, f"{allocated / GIB:+,.2f} GiB", f"{device / GIB:+,.2f} GiB", step, run))
    heads = (Column("plan"), *(Column(n, right=True) for n in ("allocated", "device", "a step", "the run")))
    return Table(f"Against {names[0]}", heads, tuple(rows))


def _signed(value: float, shown: Callable[[float], str]) -> str:
    return f"{'-' if value < 0 else '+'}{shown(abs(value))}"


def _by_method(plans: Sequence[Mapping[str, str]]) -> bool:
    """Whether the plans differ in their methods alone."""
    changed = [column_words(number) for number in range(1, len(plans) + 1)]
    methods = {one.get("method") for one in changed}
    return all(set(one) == {"method"} for one in changed) and len(methods) == len(plans)


def _command(plans: Sequence[Words]) -> str:
    if _by_method(plans):
        base = {name: word for name, word in plan(0).items() if name != "method"}
        return command("compare", base, "--methods", ",".join(one["method"] for one in plans))
    return "peftplan compare " + " ".join(f"plan-{number}.json" for number in range(1, len(plans) + 1))


# ---- over the rank


def _rank_sweep() -> None:
    """The plan of the form over its rank."""
    st.markdown(f"##### The plan beside, over its {label('rank')}")
    asked_words = {name: word for name, word in plan(0).items() if name != "rank"}
    ranks = words().get(RANKS, RANK_SWEEP)
    st.text_input(
        "Ranks",
        value=ranks,
        key="view.ranks",
        max_chars=200,
        help="numbers with commas, or 4..256 for powers of two, as `peftplan sweep --over rank=` takes them",
        on_change=_ranks_changed,
    )
    swept = asked(lambda: sweep(request_of(asked_words), axes_from([f"rank={ranks}"])))
    if swept is None:
        return
    rows = [row for row in swept.rows if row.memory is not None and row.method is not None]
    if not rows:
        for error in dict.fromkeys(row.error or "" for row in swept.rows):
            st.caption(literal(error))
        return
    kind = next(row.method.kind for row in rows if row.method is not None)
    if "rank" not in METHODS[kind].takes:
        st.caption(f"The plan beside has no rank: {kind} does not take one.")
        return
    _draw_sweep(swept)
    more = ("--over", f"rank={ranks}")
    st.code(command("sweep", asked_words, *more), language="bash", wrap_lines=True)
    with st.container(horizontal=True):
        st.download_button(
            "JSON of the sweep",
            lambda: swept.model_dump_json() + "\n",
            "sweep.json",
            "application/json",
            on_click="ignore",
        )
        st.download_button("CSV of the sweep", lambda: sweep_csv(swept), "sweep.csv", "text/csv", on_click="ignore")


def _ranks_changed() -> None:
    ranks = st.session_state["view.ranks"].strip()
    set_words({RANKS: None if ranks in ("", RANK_SWEEP) else ranks})


def _draw_sweep(swept: SweepReport) -> None:
    device, allocated, adapter, step = [], [], [], []
    limit = None
    for row in swept.rows:
        rank = row.point["rank"]
        if row.memory is None or row.method is None or not isinstance(rank, int):
            continue
        device.append((rank, row.memory.device_bytes / GIB))
        allocated.append((rank, row.memory.peak_allocated_bytes / GIB))
        adapter.append((rank, row.method.adapter_checkpoint_bytes / GIB))
        if row.time is not None:
            step.append((rank, row.time.step_s))
        limit = row.gpu.usable_bytes / GIB if row.gpu is not None else None
    left, right = st.columns(2)
    with left:
        lines = [
            Curve("device (nvidia-smi)", tuple(device)),
            Curve("allocated (torch)", tuple(allocated)),
            Curve("adapter file", tuple(adapter)),
        ]
        curves(lines, "rank", "GiB (2^30)", limit, "usable")
    with right:
        if step:
            curves([Curve("a step", tuple(step))], "rank", "seconds of a step")
        else:
            st.caption("Seconds need a GPU whose rates are known; choose one in the form.")
