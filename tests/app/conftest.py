"""Pages run as Streamlit's own tests run them; where Streamlit is missing, these tests are skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def opened() -> Callable[..., Any]:
    """A page as a link opens it: its path, then the words of the link."""
    testing = pytest.importorskip("streamlit.testing.v1")

    def open_page(path: str = "plan", **words: str) -> Any:
        page = testing.AppTest.from_string(
            f"from explorer.pages import serve\nserve({path!r})\n", default_timeout=120
        )
        for name, word in words.items():
            page.query_params[name] = word
        page.run()
        assert not page.exception, page.exception
        return page

    return open_page
