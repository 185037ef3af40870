"""Timeline: what is alive through the step, and the peak as a tree with its formulas."""

from __future__ import annotations

import streamlit as st

from explorer.answers import asked
from explorer.charts import step_timeline
from explorer.picks import pick
from explorer.sharing import as_markdown, share
from explorer.state import SHOWN, plan
from explorer.tables import draw, literal
from explorer.words import command, python_request, request_of
from peftplan import Report, estimate
from peftplan.breakdown import Node
from peftplan.render.blocks import Column, Table
from peftplan.render.estimate import settings_line, title_line
from peftplan.render.explain import explain, explain_blocks
from peftplan.render.played import PlayedTimeline, played_timeline
from peftplan.render.table_csv import rows_csv
from peftplan.render.timeline_svg import timeline_svg
from peftplan.render.words import MOMENTS, moment_label
from peftplan.resolve import resolve
from peftplan.units import format_bytes

WHOLE = "whole"
CHOICES = {WHOLE: "everything", "moving": "what comes and goes"}
ABOUT = "weights, adapters and optimizer states stand through the step; they can be left out of the chart"


def show() -> None:
    """Draw the page."""
    words = plan()
    report = asked(lambda: estimate(request_of(words)))
    played = asked(lambda: played_timeline(resolve(request_of(words)))) if report is not None else None
    if report is None or played is None:
        return
    st.caption(f"{literal(title_line(report))}  \n{literal(settings_line(report))}")
    st.markdown("##### Allocated memory through one step")
    st.caption(
        "What torch's allocator has handed out (torch.cuda.memory_allocated), one micro-batch of a later step, "
        "every block. Point at the chart to see the largest tensors."
    )
    step_timeline(played, pick("Shown", SHOWN, CHOICES, ABOUT) == WHOLE)
    draw([_moments(report)])
    st.markdown("##### The peak as a tree")
    st.caption(f"In the {moment_label(report.memory.peak_moment)} phase; every part is the sum of those below it.")
    _tree(report.memory.breakdown, report.memory.peak_allocated_bytes)
    draw(list(explain_blocks(report))[1:])
    title = f"{report.model.id}, {report.method.kind}"
    share(
        command("explain", words),
        f"from peftplan import Request, estimate\n\nreport = estimate({python_request(words)})\n"
        "for depth, node in report.memory.breakdown.walk():\n"
        '    print("  " * depth + node.name, node.bytes, node.formula)',
        "timeline",
        {
            "json": lambda: explain(report).model_dump_json() + "\n",
            "csv": lambda: timeline_csv(played),
            "md": as_markdown(lambda: explain_blocks(report)),
            "svg": lambda: timeline_svg(played.timeline, title),
        },
    )


def timeline_csv(played: PlayedTimeline) -> str:
    """The chart's points: bytes by category."""
    timeline = played.timeline
    rows = ([point.event, point.total_bytes, *point.by_category] for point in timeline.points)
    return rows_csv(["event", "allocated_bytes", *timeline.categories], rows)


def _moments(report: Report) -> Table:
    memory = report.memory
    return Table(
        "Moments (allocated)",
        (Column("moment"), Column("size", right=True), Column("what it is")),
        tuple((MOMENTS[name][0], format_bytes(size), MOMENTS[name][1]) for name, size in memory.moments.items()),
        frozenset({list(memory.moments).index(memory.peak_moment)}),
    )


def _tree(node: Node, whole: int) -> None:
    """Parts that fold open, each with its size and its formula."""
    for part in node.children:
        share_of = f"{part.bytes / whole:.1%}"
        with st.expander(f"{literal(part.name)}: {format_bytes(part.bytes)}, {share_of}"):
            if part.formula:
                st.caption(literal(part.formula))
            rows = tuple(
                ("\u2003" * (depth - 1) + one.name, format_bytes(one.bytes), one.formula)
                for depth, one in part.walk()
                if depth
            )
            if rows:
                draw([Table("", (Column("part"), Column("size", right=True), Column("of")), rows)])
