"""Fit and recommend: the most that a card holds, and which card to take for a run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import streamlit as st

from explorer.answers import asked
from explorer.curves import front
from explorer.picks import pick, pick_many
from explorer.sharing import as_markdown, share
from explorer.state import AXES, BUDGET, DEADLINE, VIEW, bound, plan, set_words, words
from explorer.tables import draw
from explorer.words import command, python_request, request_of
from peftplan import fit, recommend
from peftplan.advice.axes import AXES as KNOWN_AXES
from peftplan.advice.fit import DEFAULT_AXES
from peftplan.answers import FitReport, RecommendReport, RecommendRow
from peftplan.cli.recommend import dollars_of, seconds_of
from peftplan.render.fit import fit_blocks, fit_csv
from peftplan.render.recommend import recommend_blocks, recommend_csv
from peftplan.render.time_cost import hours
from peftplan.units import format_bytes, format_usd

ON_CARD = "fit"
QUESTIONS = {ON_CARD: "What fits this card", "recommend": "Which card for this run"}
_APART = 1.2  # between hours whose names do not lie on one another
_ON_CARDS = ("gpu", "gpus", "sharding", "price", "provider")  # a recommendation looks for these


def show() -> None:
    """Draw the page."""
    if pick("Question", VIEW, QUESTIONS) == ON_CARD:
        _fit()
    else:
        _recommend()


# ---- one card


def _fit() -> None:
    axes = _axes_input()
    own = plan()
    report = asked(lambda: fit(request_of(own), axes or None))
    if report is None:
        return
    st.caption("Memory of one GPU: what must be held against what torch can hand out (usable).")
    draw(fit_blocks(report))
    _shared_fit(report, own, axes)


def _axes_input() -> list[str]:
    """What to have more of; none for those that are searched for unasked."""
    return pick_many(
        "The most of",
        AXES,
        KNOWN_AXES,
        shown=lambda name: name.replace("_", " "),
        placeholder=", ".join(DEFAULT_AXES).replace("_", " ") + ", each alone (default)",
        about="what to have more of until the card is full; of two, the combinations of which none can be raised",
        most=2,
    )


def _shared_fit(report: FitReport, own: Mapping[str, str], axes: list[str]) -> None:
    more = ("--axis", ",".join(axes)) if axes else ()
    asked_for = f", {axes!r}" if axes else ""
    share(
        command("fit", own, *more),
        f"from peftplan import Request, fit\n\nreport = fit({python_request(own)}{asked_for})\n"
        "for axis in report.axes:\n    print(axis.axis, axis.value)",
        "fit",
        {
            "json": lambda: report.model_dump_json() + "\n",
            "csv": lambda: fit_csv(report),
            "md": as_markdown(lambda: fit_blocks(report)),
        },
    )


# ---- all cards


def _recommend() -> None:
    own = {name: word for name, word in plan().items() if name not in _ON_CARDS}
    budget, deadline = _limits_input()
    report = asked(
        lambda: recommend(request_of(own), budget_usd=dollars_of(budget), deadline_s=seconds_of(deadline))
    )
    if report is None:
        return
    _front_chart(report)
    draw(recommend_blocks(report))
    more = [
        part for flag, word in (("--budget", budget), ("--deadline", deadline)) if word for part in (flag, word)
    ]
    limits = "".join(
        f", {name}={value!r}"
        for name, value in (("budget_usd", dollars_of(budget)), ("deadline_s", seconds_of(deadline)))
        if value is not None
    )
    share(
        command("recommend", own, *more),
        f"from peftplan import Request, recommend\n\nreport = recommend({python_request(own)}{limits})\n"
        "for row in report.rows:\n    print(row.num_gpus, row.gpu, row.provider, row.cost)",
        "recommend",
        {
            "json": lambda: report.model_dump_json() + "\n",
            "csv": lambda: recommend_csv(report),
            "md": as_markdown(lambda: recommend_blocks(report)),
        },
    )


def _limits_input() -> tuple[str | None, str | None]:
    """A budget and a deadline as they are typed; what they are of is in the form beside."""
    st.caption("The run is the form's, on any card of the catalogue; its length is under Length of the run, price.")
    found = []
    for place, (name, text, example, about) in zip(
        st.columns(2),
        (
            (BUDGET, "Budget [US dollars]", "40", "the most that the run may cost"),
            (DEADLINE, "Deadline", "12h", "the longest that the run may take: 12h, 90m or 2d"),
        ),
    ):
        key = bound(f"view.{name}", words().get(name, ""))
        place.text_input(
            text, key=key, placeholder=f"none, or such as {example}", help=about, max_chars=40,
            on_change=_limit_changed, args=(name,),
        )  # fmt: skip
        found.append(words().get(name) or None)
    return found[0], found[1]


def _limit_changed(name: str) -> None:
    set_words({name: st.session_state[f"view.{name}"].strip() or None})


def _front_chart(report: RecommendReport) -> None:
    rows = [_point(row) for row in report.rows if row.cost is not None]
    if not rows:
        return
    st.markdown("##### Dollars against hours")
    days = sorted({row.rented.date for row in report.rows if row.rented.date})
    dated = f"Prices were read from {days[0]} to {days[-1]}." if days else "No price is dated."
    st.caption(f"Each point is a card, how many of them, and who rents them out. {dated} Point at one for its own.")
    best = [row for row in rows if row["kind"] == "on the front"]
    for one, other in pairwise(best):  # by dollars: the cheaper of near ones has room for its name
        if one["hours"] < other["hours"] * _APART and other["usd"] < one["usd"] * _APART**3:
            other["label"] = ""
    named = [row["words"] for row in best]
    front(rows, "The front: " + "; ".join(named))


def _point(row: RecommendRow) -> dict[str, Any]:
    cost, rented = row.cost, row.rented
    assert cost is not None
    cards, shown = f"{row.num_gpus} x {row.gpu}", hours(cost.hours)
    return {
        "hours": cost.hours,
        "usd": cost.usd,
        "kind": "outside the limits" if not row.within else "on the front" if row.on_front else "beaten",
        "cards": cards,
        "label": cards,
        "provider": " ".join(filter(None, (row.provider, rented.instance, rented.region))),
        "time": shown,
        "dollars": format_usd(cost.usd),
        "price": f"{format_usd(rented.usd_per_gpu_hour)} a GPU-hour, read {rented.date or 'on no known day'}",
        "memory": f"{format_bytes(row.fit.headroom_bytes)} of one GPU to spare",
        "why": row.reason,
        "words": f"{cards} at {row.provider}, {shown}, {format_usd(cost.usd)}",
    }
