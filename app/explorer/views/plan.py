"""Plan: one run, whether it fits, and one bar for each card in question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import streamlit as st

from explorer.answers import ONE_AT_A_TIME, asked
from explorer.charts import Bar, memory_bars
from explorer.form import gpu_keys, gpu_words
from explorer.picks import pick_many
from explorer.sharing import as_markdown, share
from explorer.state import CARDS, plan
from explorer.tables import draw, literal
from explorer.words import command, python_request, request_of
from peftplan import Report, estimate, sweep
from peftplan.catalog import find_gpu
from peftplan.errors import PeftplanError
from peftplan.planner import suggest_changes
from peftplan.render.blocks import Block
from peftplan.render.estimate import change_blocks, estimate_blocks, peak_split, settings_line, title_line
from peftplan.render.table_csv import report_csv
from peftplan.render.time_cost import shown_s
from peftplan.render.words import moment_label, verdict
from peftplan.request import Request
from peftplan.sweeps import SweepReport, SweepRow
from peftplan.units import GB, format_bytes, format_usd

# Cards that are rented and bought often, from small to large; the page's own choice while none is made.
CANDIDATES = ("t4", "rtx4090", "l40s", "a100-80", "h100", "h200", "b200")
_HEADLINES = 2  # of the screen, that stand above already; with a GPU the verdict too
_TONES = {"good": st.success, "warn": st.warning, "bad": st.error}
_SIGNS = {"good": "✓", "warn": "?", "bad": "✗"}


def show() -> None:
    """Draw the page twice: at once from a few blocks, then from every block, as the command line answers."""
    words = plan()
    request = asked(lambda: request_of(words))
    if request is None:
        return
    head = st.empty()
    st.markdown("##### On each card")
    st.caption(
        "One GPU's memory while it trains: what must be held at the peak, in parts. The thick box is what torch "
        "can hand out (usable), the dashed line what the card is sold as, in GB of 10^9 bytes."
    )
    cards = cards_input(request)
    place, status, rest = st.empty(), st.empty(), st.container()
    preview(request, cards, head, place)
    report = asked(lambda: estimate(request), head)
    if report is None:
        place.empty()
        return
    with head.container():
        headline(report)
        figures(report)
    share(
        command("estimate", words),
        f"from peftplan import Request, estimate\n\nreport = estimate({python_request(words)})\n"
        'print(report.memory.device_bytes, "bytes as nvidia-smi shows them")',
        "estimate",
        files(request, report),
    )
    with rest:
        details(request, report)
    bars(request, cards, place, status)


def preview(request: Request, cards: list[str], head: Any, place: Any) -> None:
    """Verdict and bars extrapolated from a few blocks; what is refused is told by what follows."""
    try:
        with ONE_AT_A_TIME:
            swept = sweep(request, {"gpu": cards}, breakdown=True, every_block=False) if cards else None
    except PeftplanError:
        return
    if swept is None:
        return
    own = next((row for row in swept.rows if row.point["gpu"] == request.gpu), None)
    if request.gpu is None or (own is not None and own.error is None):
        with place.container():
            _draw_bars(swept)
            st.caption("Extrapolated from a few blocks; every block follows.")
    if own is not None and own.error is None:
        with head.container():
            st.caption("Extrapolated from a few blocks; every block follows.")
            text, tone = verdict(cast(Report, own))
            _TONES[tone](f"**{literal(text)}**", icon=_ICONS[tone])
            figures(cast(Report, own))


def details(request: Request, report: Report) -> None:
    """What to change where the run does not fit, then the screen of the command line below its first lines."""
    unfit = report.gpu is not None and not report.gpu.fits
    changes = (asked(lambda: suggest_changes(request, report)) or ()) if unfit else ()
    advice = list(change_blocks(changes)) if unfit else []
    draw(advice)
    known = _HEADLINES if report.gpu is None else _HEADLINES + 1
    with st.expander("All figures of this run", expanded=True):
        draw(block for block in list(estimate_blocks(report, changes))[known:] if block not in advice)


def files(request: Request, report: Report) -> dict[str, Callable[[], str]]:
    """The answer as the command line prints it, by kind."""

    def blocks() -> Iterator[Block]:
        unfit = report.gpu is not None and not report.gpu.fits
        return estimate_blocks(report, suggest_changes(request, report) if unfit else ())

    return {
        "json": lambda: report.model_dump_json() + "\n",
        "csv": lambda: report_csv(report),
        "md": as_markdown(blocks),
    }


def headline(report: Report) -> None:
    """The answer in words."""
    st.caption(f"{literal(title_line(report))}  \n{literal(settings_line(report))}")
    if report.gpu is None:
        st.info("No GPU is chosen: the bars say where the run fits. Choose one for a verdict, time and cost.")
        return
    text, tone = verdict(report)
    _TONES[tone](f"**{literal(text)}**", icon=_ICONS[tone])


_ICONS = {"good": ":material/check_circle:", "warn": ":material/help:", "bad": ":material/cancel:"}


def figures(report: Report) -> None:
    """The few figures that are asked for first, each with what it is a figure of."""
    memory, gpu = report.memory, report.gpu
    shown = [
        ("Device memory", format_bytes(memory.device_bytes), "what nvidia-smi shows for the process, at most"),
        ("Peak moment", moment_label(memory.peak_moment), "the phase of a step in which most is allocated"),
    ]
    if gpu is not None:
        shown.append(
            ("Headroom", format_bytes(gpu.headroom_bytes), f"usable memory of {gpu.name} less what must be held")
        )
    else:
        size = format_bytes(memory.peak_allocated_bytes)
        shown.append(("Allocated", size, "torch.cuda.max_memory_allocated()"))
    time, cost = report.time, report.cost
    per_step = shown_s(time.step_s) if time is not None else "-"
    shown.append(("Step", per_step, "seconds of one optimizer step; needs a GPU whose rates are known"))
    run = format_usd(cost.usd) if cost is not None else "-"
    shown.append(("Run", run, "dollars of the whole run; needs its length (tokens or examples) and a price"))
    with st.container(horizontal=True, gap="medium"):
        for name, value, meaning in shown:
            st.metric(name, value.replace("$", "\\$"), help=meaning, width="content")


def cards_input(request: Request) -> list[str]:
    """Which cards have a bar: the chosen one first."""
    with st.popover("Cards", icon=":material/tune:"):
        wanted = pick_many("Cards that have a bar", CARDS, gpu_keys(), CANDIDATES, gpu_words, "none")
    chosen = find_gpu(request.gpu) if request.gpu is not None else None
    others = [key for key in wanted if chosen is None or key != chosen.key]
    return ([] if request.gpu is None else [request.gpu]) + others


def bars(request: Request, cards: list[str], place: Any, status: Any) -> None:
    """One bar a card, from every block of the model."""
    if not cards:
        place.info("No card is listed; choose some above.")
        return
    # whoever changes the plan meanwhile is answered at once: a page that draws can be interrupted
    found = asked(
        lambda: sweep(
            request,
            {"gpu": cards},
            breakdown=True,
            every_block=True,
            progress=lambda done, label: status.caption(f"replaying every block on each card: {label}"),
        ),
        place,
    )
    status.empty()
    if found is not None:
        with place.container():
            _draw_bars(found)


def _draw_bars(found: SweepReport) -> None:
    for row in found.rows:
        if row.error is not None:
            st.caption(f"{literal(str(row.point['gpu']))}: {literal(row.error)}")
    drawn = [_bar(row) for row in found.rows if row.error is None]
    if drawn:
        memory_bars(drawn, "; ".join(f"{bar.headline}, {bar.detail}" for bar in drawn))


def _bar(row: SweepRow) -> Bar:
    answer = cast(Report, row)  # it has the parts of a report that are read here
    gpu = answer.gpu
    assert gpu is not None
    tone = verdict(answer)[1]
    room = format_bytes(abs(gpu.headroom_bytes))
    short = f"fits, {room} to spare" if gpu.fits else f"does not fit, {room} short"
    detail = [f"usable {format_bytes(gpu.usable_bytes)}, sold as {gpu.sold_bytes / GB:g} GB"]
    held = gpu.fits or not gpu.certain  # what does not run has no price
    if answer.time is not None and held:
        detail.append(f"{shown_s(answer.time.step_s)} a step")
    if answer.cost is not None and held:
        detail.append(f"{format_usd(answer.cost.usd)} the run")
    return Bar(
        name=gpu.name,
        headline=f"{_SIGNS[tone]} {gpu.name}: {short}" + ("" if gpu.certain else ", uncertain"),
        detail=", ".join(detail),
        parts=peak_split(answer).parts,
        usable_bytes=gpu.usable_bytes,
        sold_bytes=gpu.sold_bytes,
    )
