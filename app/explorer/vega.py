"""Vega-Lite charts as plain mappings: building one takes a millisecond, since nothing is checked while it is drawn.

A chart is said in words as well, for whoever cannot see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

Row = dict[str, Any]
Spec = dict[str, Any]

LINE = "#7f7f7f"  # seen on light and on dark


def ink() -> str:
    """The colour of text on the reader's page."""
    return "#fafafa" if st.context.theme.type == "dark" else "#31333f"


def number(field: str, **about: Any) -> Spec:
    """A channel of numbers."""
    return {"field": field, "type": "quantitative", **about}


def name(field: str, **about: Any) -> Spec:
    """A channel of names."""
    return {"field": field, "type": "nominal", **about}


def tip(fields: Sequence[str]) -> list[Spec]:
    """What is said of the mark that is pointed at."""
    return [name(field, title=field) for field in fields]


def layer(values: Sequence[Row], mark: str, look: Spec | None = None, **channels: Any) -> Spec:
    """Marks of one kind."""
    return {"data": {"values": list(values)}, "mark": {"type": mark, **(look or {})}, "encoding": channels}


def show(layers: Sequence[Spec], height: int | Spec, words: str) -> None:
    """Draw layers on one another, as wide as the page."""
    st.vega_lite_chart({"layer": list(layers), "height": height}, width="stretch", alt=words)
