"""From one example to its length: token ids are counted, lengths taken, text estimated from its characters.

Estimates: English prose has about 4 characters a token, 3.3 (code) to 4.8 (encyclopedia) in common vocabularies;
Chinese and Japanese about 1.2. Averages that others published of their tokenizers; they say how far an estimate
may be off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftplan.errors import BadInput
from peftplan.specs.lengths import Lengths
from peftplan.units import MIB

MAX_LINE_BYTES = 16 * MIB  # a longer line is no example
CHARS_PER_TOKEN = 4.0
CHARS_PER_TOKEN_RANGE = (3.3, 4.8)
WIDE_CHARS_PER_TOKEN = 1.2  # of scripts without spaces

# Columns by what they hold, in the words of the common formats, best first.
ID_COLUMNS = ("input_ids", "token_ids", "tokens")
LENGTH_COLUMNS = ("num_tokens", "n_tokens", "token_count", "length", "seq_len", "tokens")
TEXT_COLUMNS = frozenset(
    {
        *("text", "content", "prompt", "completion", "instruction", "input", "output", "response", "context"),
        *("question", "answer", "query", "problem", "solution", "system", "messages", "conversation", "chosen"),
        *("conversations", "history", "dialogue", "dialog", "turns"),
    }
)
_WIDE = re.compile("[\u2e80-\uffff\U00020000-\U0003ffff]+")
_DEEPEST = 6  # lists and objects in one another
_BROKEN_SHOWN = 5
_LARGEST = 10**9  # tokens of one example


@dataclass(slots=True)
class Counter:
    """Counts examples by length; `line` is where the reader is."""

    chars_per_token: float | None
    line: int = 0
    seen: int = 0
    _counts: dict[int, int] = field(default_factory=dict)
    _empty: int = 0
    _broken: int = 0
    _broken_lines: list[int] = field(default_factory=list)
    _kinds: set[str] = field(default_factory=set)
    _columns: list[tuple[int, str]] = field(default_factory=list)

    def broken(self) -> None:
        """The reader is at a line that is no example."""
        self.seen += 1
        self._broken += 1
        if self.line and len(self._broken_lines) < _BROKEN_SHOWN:
            self._broken_lines.append(self.line)

    def add(self, tokens: int, examples: int = 1) -> None:
        """Examples of a length."""
        self.seen += examples
        if tokens <= 0:
            self._empty += examples
        else:
            self._counts[tokens] = self._counts.get(tokens, 0) + examples

    def kind(self, name: str) -> None:
        """Remember what lengths come from: the name of a column, or `text`."""
        self._kinds.add(name)

    def example(self, value: Any) -> None:
        """One example: an object by column, or a text."""
        if isinstance(value, str):
            self._text(_units(value))
        elif isinstance(value, dict):
            self._object(value)
        else:
            self.broken()

    def _object(self, value: Mapping[str, Any]) -> None:
        for name in ID_COLUMNS:
            if isinstance(value.get(name), list):
                self.kind(name)
                self.add(len(value[name]))
                return
        for name in LENGTH_COLUMNS:
            length = value.get(name)
            if isinstance(length, int) and not isinstance(length, bool) and 0 <= length <= _LARGEST:
                self.kind(name)
                self.add(length)
                return
        texts = [part for name, part in value.items() if name.lower() in TEXT_COLUMNS] or list(value.values())
        self._text(sum_units(texts))

    # ---- tables

    def columns(self, header: Sequence[str]) -> bool:
        """Choose among a table's columns; whether there is one to count."""
        names = [name.strip().lower() for name in header]
        for known in (ID_COLUMNS, LENGTH_COLUMNS):
            chosen = next((name for name in known if name in names), None)
            if chosen is not None:
                self._columns = [(names.index(chosen), chosen)]
                return True
        self._columns = [(place, "text") for place, name in enumerate(names) if name in TEXT_COLUMNS]
        return bool(self._columns)

    def cells(self, row: Sequence[str]) -> None:
        """One row of a table, as text."""
        place, name = self._columns[0]
        cell = row[place].strip()
        if name == "text":
            self._text(sum_units([row[place] for place, _ in self._columns]))
        elif name in LENGTH_COLUMNS and re.fullmatch(r"\d{1,9}", cell, re.ASCII):
            self.kind(name)
            self.add(int(cell))
        elif name in ID_COLUMNS and re.fullmatch(r"[\[(]?[\d\s,]*[\])]?", cell, re.ASCII):
            self.kind(name)
            self.add(len(re.findall(r"\d+", cell, re.ASCII)))
        else:
            self.broken()

    # ---- text

    def _text(self, units: tuple[int, int]) -> None:
        self.kind("text")
        plain, wide = units
        if self.chars_per_token is not None:
            tokens = (plain + wide) / self.chars_per_token
        else:
            tokens = plain / CHARS_PER_TOKEN + wide / WIDE_CHARS_PER_TOKEN
        self.add(max(1, round(tokens)) if plain + wide else 0)

    def text(self, value: str) -> None:
        """One example that is a text."""
        self._text(_units(value))

    # ---- the answer

    def lengths(self, where: str, sampled_frac: float) -> Lengths:
        """The lengths counted; BadInput where there is none."""
        if not self._counts:
            raise BadInput(
                f"{where} holds no example with text or tokens ({self._broken} broken, {self._empty} empty); "
                "give a file with a column such as text, messages, prompt or input_ids"
            )
        scale = 1 / sampled_frac
        counts = tuple((length, max(1, round(count * scale))) for length, count in sorted(self._counts.items()))
        basis, low, high = self._basis()
        return Lengths(
            counts=counts,
            basis=basis,
            low_frac=low,
            high_frac=high,
            num_empty=self._empty,
            num_broken=self._broken,
            broken_lines=tuple(self._broken_lines),
            sampled_frac=sampled_frac,
        )

    def _basis(self) -> tuple[str, float, float]:
        columns = ", ".join(sorted(self._kinds - {"text"}))
        if "text" not in self._kinds:
            return f"counted by {columns}", 1.0, 1.0
        if self.chars_per_token is not None:
            return f"estimated from characters, {self.chars_per_token:g} a token", 1.0, 1.0
        least, most = CHARS_PER_TOKEN_RANGE
        basis = f"estimated from characters, {CHARS_PER_TOKEN:g} a token (of English {least:g} to {most:g}; "
        return basis + "--chars-per-token states yours)", CHARS_PER_TOKEN / most, CHARS_PER_TOKEN / least


def sum_units(values: Sequence[Any]) -> tuple[int, int]:
    """Characters of all texts in nested values: of scripts with spaces, and of those without."""
    plain = wide = 0
    waiting: list[tuple[Any, int]] = [(value, 0) for value in values]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            more_plain, more_wide = _units(value)
            plain, wide = plain + more_plain, wide + more_wide
        elif depth < _DEEPEST and isinstance(value, (list, tuple)):
            waiting.extend((part, depth + 1) for part in value)
        elif depth < _DEEPEST and isinstance(value, dict):
            waiting.extend((part, depth + 1) for part in value.values())
    return plain, wide


def _units(text: str) -> tuple[int, int]:
    if text.isascii():
        return len(text), 0
    wide = sum(map(len, _WIDE.findall(text)))
    return len(text) - wide, wide
