"""The form: one widget for each field of a request; label, choices, bounds and help are the field's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import streamlit as st

from explorer import config_input
from explorer.state import CLASSIC, COLUMNS, bound, plan, set_columns, set_words
from explorer.state import words as state_words
from explorer.words import CONFIG, OFF, ON, PIECE, label, options
from peftplan.catalog import all_gpus, all_models, find_gpu, find_model
from peftplan.cli.spec import Option
from peftplan.methods import METHODS
from peftplan.methods.method import SHARED
from peftplan.methods.quantizers import QUANTIZERS
from peftplan.optimizers import OPTIMIZERS
from peftplan.request import Request
from peftplan.units import GB, format_bytes, format_count

FIRST = ("method", "micro_batch", "seq_len", "precision", "checkpointing", "optimizer", "gpu")
ADAPTER = "Adapter"
REST = "How the step runs"
# What else there is, under headings; a field that stands under none comes under the rest.
GROUPS = {
    ADAPTER: ("method_options", "rank", "alpha", "dropout", "use_rslora", *SHARED[3:]),
    "Frozen base": (
        *("base_dtype", "quant", "quant_bits", "quant_options", "double_quant", "quant_block_size"),
        *("kbit_prepare", "trl_casts"),
    ),
    "Optimizer": ("optimizer_options", "optimizer_in_backward"),
    "Training style": (
        *("style", "reference", "num_generations", "prompt_len", "completion_len", "num_labels"),
        *("padding_free", "eval_generate"),
    ),
    REST: ("grad_accum", "gpus", "sharding", "attention", "loss", "kernels", "loop", "padding"),
    "Length of the run, price": (
        *("tokens", "examples", "epochs", "price", "provider", "region", "spot"),
        *("eval_tokens", "eval_every", "save_every"),
    ),
    "Library releases": ("transformers", "peft", "bitsandbytes", "torch"),
}
# Whose options a field of several pieces has: the field that names it, and the table it is in.
_OWNERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "method_options": ("method", METHODS),
    "quant_options": ("quant", QUANTIZERS),
    "optimizer_options": ("optimizer", OPTIMIZERS),
}
BY_METHOD = ("rank",)  # its default is the method's where that has one
_STEPS = {"seq_len": 256}  # what plus and minus change; 1 elsewhere
_LARGEST_EXACT = 2**53 - 1  # of a browser's numbers


def plan_form(filled: Mapping[str, Any]) -> None:
    """The plan's form; `filled` are the request's fields with their defaults, where they are known."""
    words = plan()
    model_input(0, words)
    for name in FIRST:
        field_input(name, 0, words, filled)
    listed = {name for names in (FIRST, *GROUPS.values()) for name in names}
    for title, names in GROUPS.items():
        inside = [name for name in names if name in options()]
        if title == ADAPTER:
            inside = _of_method(inside, words)
        if title == REST:
            inside += [name for name in options() if name not in listed]
        if not any(name not in _OWNERS for name in inside):
            continue
        changed = sum(name in words for name in inside)
        # the first of them are a method's own, which people want to see
        with st.expander(title + (f" ({changed} set)" if changed else ""), expanded=title == ADAPTER):
            for name in inside:
                field_input(name, 0, words, filled)


def _of_method(names: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """The fields that the chosen method has a use for; of an unknown one all, and the page says what is wrong."""
    method = METHODS.get(words.get("method", _default("method")))
    if method is None:
        return list(names)
    kept = [name for name in names if name not in SHARED or name in method.takes]
    return [name for name in kept if name != "use_rslora" or "rank" in kept]


def model_input(column: int, words: Mapping[str, str]) -> None:
    """The model: by name with a search, or, of the plan itself, a config of one's own."""
    own = column == 0 and config_input.source_input()
    if own:
        return
    ids = [record.id for record in all_models()]
    word = words.get("model", "")
    record = find_model(word)
    value = record.id if record is not None else word or None
    if value is not None and value not in ids:
        ids.append(value)
    key = bound(f"{column}.model", value)
    st.selectbox(
        label("model"),
        ids,
        key=key,
        format_func=_model_words,
        help=f"{Request.model_fields['model'].description}. Type to search; a Hub id may be typed in full.",
        accept_new_options=True,
        placeholder="search the catalogue",
        on_change=partial(_changed, column, "model", key, str),
    )


def _model_words(name: str) -> str:
    record = find_model(name)
    if record is None:
        return name
    also = f" ({record.aliases[0]})" if record.aliases else ""
    return f"{record.id.rpartition('/')[2]}{also}, {format_count(record.num_params)}"


def field_input(name: str, column: int, words: Mapping[str, str], filled: Mapping[str, Any]) -> None:
    """The widget of one field, by what the command line takes for it."""
    option = options()[name]
    word = words.get(name)
    if option.switch:
        _switch(option, column, word, filled)
    elif option.many:
        _pieces(option, column, word, words)
    elif option.complete is not None:
        _choice(option, column, word, filled, [str(choice) for choice in option.complete()])
    elif option.metavar in ("INTEGER", "NUMBER"):
        _number(option, column, word, filled)
    else:
        _text(option, column, word, filled)


def _switch(option: Option, column: int, word: str | None, filled: Mapping[str, Any]) -> None:
    default = _default(option.name)
    if default is None:
        _choice(option, column, word, filled, [ON, OFF])
        return
    key = bound(f"{column}.{option.name}", (word or default) == ON)
    read = partial(_changed, column, option.name, key, lambda on: ON if on else OFF)
    st.toggle(label(option.name), key=key, help=option.help(), on_change=read)


def _choice(
    option: Option, column: int, word: str | None, filled: Mapping[str, Any], choices: Sequence[str]
) -> None:
    default = _default(option.name)
    value = word if word is not None else default
    if option.name == "gpu" and value is not None:
        record = find_gpu(value)
        value = record.key if record is not None else value
    known = {choice.lower(): choice for choice in choices}
    value = known.get(value.lower().replace("_", "-")) if value is not None else None
    key = bound(f"{column}.{option.name}", value)
    st.selectbox(
        label(option.name),
        choices,
        index=None,
        key=key,
        format_func=gpu_words if option.name == "gpu" else str,
        help=option.help(),
        placeholder=_shown_default(option.name, filled),
        on_change=partial(_changed, column, option.name, key, str),
    )


def _number(option: Option, column: int, word: str | None, filled: Mapping[str, Any]) -> None:
    whole = option.metavar == "INTEGER"
    kind: Callable[[str], float] = int if whole else float
    least, most = bounds(option.name)
    text = word if word is not None else _default(option.name)
    try:
        value = kind(text) if text is not None else None
    except ValueError:
        value = None
    if value is not None and not least <= value <= most:
        value = None  # what is refused is told on the page
    key = bound(f"{column}.{option.name}", value)
    st.number_input(
        label(option.name),
        min_value=kind(str(least)),
        max_value=kind(str(most)),
        value=None,
        step=_STEPS.get(option.name, 1) if whole else None,
        format=None if whole else "%g",
        key=key,
        help=option.help(),
        placeholder=_shown_default(option.name, filled),
        on_change=partial(_changed, column, option.name, key, lambda given: f"{given:.12g}"),
    )


def _text(option: Option, column: int, word: str | None, filled: Mapping[str, Any]) -> None:
    key = bound(f"{column}.{option.name}", word if word is not None else _default(option.name) or "")
    st.text_input(
        label(option.name),
        key=key,
        help=option.help(),
        max_chars=2000,
        placeholder=_shown_default(option.name, filled),
        on_change=partial(_changed, column, option.name, key, lambda given: given.strip()),
    )


def _pieces(option: Option, column: int, word: str | None, words: Mapping[str, str]) -> None:
    """One text for each option that the chosen method, quantiser or optimizer alone has."""
    field, table = _OWNERS[option.name]
    owner = table.get(words.get(field) or _default(field) or "")
    given = dict(piece.partition("=")[::2] for piece in (word or "").split(PIECE))
    for name, known in owner.options.model_fields.items() if owner is not None else ():
        key = bound(f"{column}.{option.name}.{name}", given.get(name, ""))
        st.text_input(
            name.replace("_", " "),
            key=key,
            help=known.description,
            max_chars=200,
            placeholder="default" if known.default is None else f"{known.default} (default)",
            on_change=_piece_changed,
            args=(column, option.name, tuple(owner.options.model_fields) if owner is not None else ()),
        )


def _piece_changed(column: int, field: str, names: Sequence[str]) -> None:
    given = {name: st.session_state.get(f"{column}.{field}.{name}", "").strip() for name in names}
    word = PIECE.join(f"{name}={value.replace(PIECE, '')}" for name, value in given.items() if value)
    _set_word(column, field, word or None)


def _changed(column: int, name: str, key: str, word_of: Callable[[Any], str]) -> None:
    """A widget was changed: its word stands in the plan, unless it says what the plan says without it."""
    value = st.session_state[key]
    _set_word(column, name, word_of(value) if value not in (None, "") else None)


def _set_word(column: int, name: str, word: str | None) -> None:
    if column == 0:
        set_words({name: None if word == _default(name) else word})
        if name == "model":
            set_words({CONFIG: None})
        return
    if COLUMNS not in state_words():
        set_columns(CLASSIC)
    without = plan(0).get(name, _default(name))
    if word is None and without is not None:
        word = ""  # the default again, other than in the plan
    set_words({f"{column}.{name}": None if word == without else word})


def bounds(name: str) -> tuple[float, float]:
    """The least and the largest value of a number, as the field has them."""
    least, most = 0.0, float(_LARGEST_EXACT)
    for item in Request.model_fields[name].metadata:
        least = getattr(item, "ge", None) or getattr(item, "gt", None) or least
        most = getattr(item, "le", None) or getattr(item, "lt", None) or most
    return (int(least), int(most)) if options()[name].metavar == "INTEGER" else (least, most)


def _default(name: str) -> Any:
    """A field's default as a word; None where it follows from other fields, or is nothing."""
    value = Request.model_fields[name].default
    if name in BY_METHOD:
        return None
    if isinstance(value, bool):
        return ON if value else OFF
    if isinstance(value, float):
        return f"{value:g}"
    return None if value in (None, [], {}) or name == "model" else str(value)


def _shown_default(name: str, filled: Mapping[str, Any]) -> str:
    """What holds while nothing is given."""
    if not filled:
        return "default"
    value = filled.get(name)
    if isinstance(value, bool):
        value = ON if value else OFF
    if value in (None, [], ""):
        return "none"
    return f"{value:g} (default)" if isinstance(value, float) else f"{value} (default)"


@lru_cache(maxsize=1)
def gpu_keys() -> list[str]:
    """Every GPU of the catalogue, the largest last."""
    return [record.key for record in sorted(all_gpus(), key=lambda record: record.usable_bytes)]


def gpu_words(key: str) -> str:
    """A GPU with what the box says and what torch can hand out: two different numbers."""
    record = find_gpu(key)
    if record is None:
        return key
    return f"{record.name}: {record.sold_bytes / GB:g} GB sold, {format_bytes(record.usable_bytes)} usable"
