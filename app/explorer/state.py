"""What a page shows, kept as words in the session and in the link: whoever opens the link sees the same page.

The words are the truth; widgets are set from them before they are drawn, and change them by their callbacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import streamlit as st

from explorer.words import CONFIG, LONGEST_IN_LINK, Words

FIRST: Words = {"model": "llama-70b", "method": "qlora", "gpu": "a100-80"}
# What a page knows beside the request; further columns of a comparison stand under `2.method` and the like.
VIEW, CARDS, RANKS, SHOWN, COLUMNS = "view", "cards", "ranks", "shown", "columns"
AXES, BUDGET, DEADLINE = "axes", "budget", "deadline"
FILES, METRICS, SOURCES = "files", "metrics", "sources"
VIEW_WORDS = frozenset({VIEW, CARDS, RANKS, SHOWN, COLUMNS, AXES, BUDGET, DEADLINE, FILES, METRICS, SOURCES})
MOST_COLUMNS = 4
# What a comparison begins with.
CLASSIC: Words = {COLUMNS: "3", "1.method": "full", "2.method": "lora", "3.method": "qlora"}
LONGEST_WORD = 20_000
_MOST_LINKS = 200


def begin() -> None:
    """Take the words from the link where it is new to this session; pages keep what others have set."""
    session = st.session_state
    asked = {name: word[:LONGEST_WORD] for name, word in st.query_params.to_dict().items()}
    if "words" not in session:
        session.words, session.links = dict(asked or FIRST), []
    elif asked and asked not in session.links:
        session.words = dict(asked)


def write(page: str) -> bool:
    """Write the words into the link; whether the page was just turned to.

    Such a page has none yet, whatever it says of itself, and a browser that is still turning may lose what it is
    told: its words are written once more when it is drawn.
    """
    session, link = st.session_state, dict(words())
    if len(link.get(CONFIG, "")) > LONGEST_IN_LINK:
        link[CONFIG] = ""  # whoever opens it is asked for the config
    turned: bool = session.get("page") != page
    if st.query_params.to_dict() != link or turned:
        st.query_params.from_dict(link)
    session.page = page
    links: list[Words] = session.links
    if link not in links:
        links.append(link)
        del links[:-_MOST_LINKS]
    return turned


def write_again() -> None:
    """Write the words as they stand in the link once more."""
    st.query_params.from_dict(st.query_params.to_dict())


def words() -> Words:
    """All words of this session."""
    found: Words = st.session_state.words
    return found


def plan(column: int = 0) -> Words:
    """The words of the plan; of a column of a comparison with what it changes."""
    own = {name: word for name, word in words().items() if "." not in name and name not in VIEW_WORDS}
    changed = column_words(column)
    if "model" in changed:
        own.pop(CONFIG, None)
    return {name: word for name, word in {**own, **changed}.items() if word or name == CONFIG}


def column_words(column: int) -> Words:
    """What a column of a comparison changes of the plan."""
    prefix = f"{column}."
    known = words() if COLUMNS in words() else CLASSIC
    return {name.removeprefix(prefix): word for name, word in known.items() if name.startswith(prefix)}


def num_columns() -> int:
    """How many plans are compared."""
    word = words().get(COLUMNS, CLASSIC[COLUMNS])
    return min(max(int(word), 2), MOST_COLUMNS) if word.isdecimal() and len(word) < 3 else 2


def set_columns(columns: Mapping[str, str]) -> None:
    """Compare these; what was compared before is gone."""
    for name in [name for name in words() if "." in name]:
        del words()[name]
    words().update(columns)


def set_words(changed: Mapping[str, str | None]) -> None:
    """Set words; None removes one."""
    for name, word in changed.items():
        if word is None:
            words().pop(name, None)
        else:
            words()[name] = word


def listed(name: str, default: Iterable[str]) -> list[str]:
    """A word that lists others with commas; an empty one lists none."""
    if name not in words():
        return list(default)
    return [part for part in words()[name].split(",") if part]


def bound(key: str, value: Any) -> str:
    """The key of a widget, which is set to a value before it is drawn."""
    if st.session_state.get(key) != value or key not in st.session_state:
        st.session_state[key] = value
    return key
