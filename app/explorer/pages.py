"""The pages, and what every one of them has: the form beside it, and its state in the link."""

from __future__ import annotations

import streamlit as st

from explorer import state
from explorer.answers import filled_fields
from explorer.form import plan_form
from explorer.views import compare, evidence, fit, plan, timeline

PAGES = {
    "plan": ("Plan", plan.show),
    "timeline": ("Timeline", timeline.show),
    "compare": ("Compare", compare.show),
    "fit": ("Fit & recommend", fit.show),
    "evidence": ("Evidence", evidence.show),
}
_WITHOUT_FORM = ("evidence",)


def serve(first: str = "plan") -> None:
    """Draw the page that the address names, or the first."""
    st.set_page_config(page_title="peftplan", layout="wide")
    st.html("<style>[data-testid=stMainBlockContainer] { padding-top: 4rem }</style>")
    state.begin()
    pages = [
        st.Page(show, title=title, url_path=path, default=path == first) for path, (title, show) in PAGES.items()
    ]
    page = st.navigation(pages, position="top")
    if page.title not in [PAGES[path][0] for path in _WITHOUT_FORM]:
        with st.sidebar:
            plan_form(filled_fields(state.plan()))
    st.title(page.title)
    turned = state.write(page.title)  # before the page: whoever turns to another one meanwhile keeps the plan
    page.run()
    if turned:
        state.write_again()
