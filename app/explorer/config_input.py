"""A config of one's own: pasted or uploaded, read as JSON and nothing else, bounded in size."""

from __future__ import annotations

import streamlit as st

from explorer.state import set_words, words
from explorer.words import CONFIG, packed
from peftplan.catalog.lookup import MAX_CONFIG_BYTES, check_config_size, parse_config
from peftplan.errors import PeftplanError
from peftplan.units import MIB

CATALOGUE, OWN = "by name", "own config.json"
_PASTED, _UPLOADED, _SOURCE, _REFUSED = "config.pasted", "config.uploaded", "config.source", "config.refused"


def source_input() -> bool:
    """Whether the model is a config of one's own, and the widgets that take it."""
    session = st.session_state
    session[_SOURCE] = OWN if CONFIG in words() else CATALOGUE
    st.segmented_control(
        "Model given", [CATALOGUE, OWN], key=_SOURCE, on_change=_source_changed, required=True, width="stretch"
    )
    if CONFIG not in words():
        return False
    st.file_uploader(
        "config.json",
        type=None,
        key=_UPLOADED,
        max_upload_size=MAX_CONFIG_BYTES // MIB,
        on_change=_uploaded,
        help="A model's config.json as published. It is read as data, kept for this session and in the link.",
    )
    st.text_area("or paste it", key=_PASTED, height=120, max_chars=MAX_CONFIG_BYTES, on_change=_pasted)
    if _REFUSED in session:
        st.error(session[_REFUSED])
    elif words()[CONFIG]:
        st.caption("A config is given; another one takes its place.")
    return True


def _source_changed() -> None:
    own = st.session_state[_SOURCE] == OWN
    set_words({CONFIG: words().get(CONFIG, "") if own else None})
    st.session_state.pop(_REFUSED, None)


def _pasted() -> None:
    text = st.session_state[_PASTED]
    if text.strip():
        _take(text, "the pasted text", len(text.encode()))


def _uploaded() -> None:
    file = st.session_state[_UPLOADED]
    if file is not None:
        _take(file, file.name, file.size)


def _take(given: object, where: str, num_bytes: int) -> None:
    """Read a config; one that is refused leaves the plan as it is."""
    session = st.session_state
    session.pop(_REFUSED, None)
    try:
        check_config_size(num_bytes, where)
        text = given if isinstance(given, str) else given.getvalue()  # type: ignore[attr-defined]
        config = parse_config(text, where)
    except PeftplanError as error:
        session[_REFUSED] = str(error)
        return
    set_words({CONFIG: packed(config)})
