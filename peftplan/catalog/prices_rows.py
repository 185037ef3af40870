"""Rows of strangers' price lists: cells by column, prices as decimals, money that is not dollars refused.

Whatever a cell holds is data: nothing is evaluated, and what is too long, or broken, is told with its line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from peftplan.catalog.names import normalise
from peftplan.catalog.prices import LEAST_USD, MOST_USD
from peftplan.errors import BadInput, shown

MAX_ROWS = 1_000_000
MAX_CELL = 4000  # characters; the longest GpuInfo has a few hundred

_DOLLARS = re.compile(r"^(?:US ?\$|\$|USD)\s*|\s*USD$", re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_OTHER_MONEY = re.compile(
    r"[€£¥₹₩₽₺₿]|\b(?!US\$)[A-Z]{1,3}\$|\b(?:EUR|GBP|CNY|RMB|JPY|INR|CHF|CAD|AUD|NZD|KRW|BRL|SEK|NOK|DKK|PLN|"
    r"RUB|TRY|MXN|SGD|HKD|TWD|ZAR)\b"
)
_CURRENCY_COLUMNS = ("currency", "currencycode", "pricecurrency", "currencyunit")
_NONE = ("", "none", "null", "n/a", "-")


@dataclass(frozen=True, slots=True)
class Row:
    """One row by column, and the line of the file that it ends in."""

    cells: dict[str, str]
    line: int

    def __getitem__(self, name: str) -> str:
        return self.cells.get(name, "").strip()


def split_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str] | None]]:
    """Cells of each row with the line it ends in; None for one that is broken."""
    reader = csv.reader(lines)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield reader.line_num, None
            continue
        if row:
            yield reader.line_num, row


def header_of(first: tuple[int, list[str] | None] | None, source: str) -> list[str]:
    """The columns of a list; BadInput where there are none, or one twice."""
    if first is None or first[1] is None:
        raise BadInput(f"{source} is empty, or begins with no line of columns; give a CSV of SkyPilot or gpuhunt")
    header = [cell.strip().lstrip("\ufeff") for cell in first[1]]
    if len(set(header)) < len(header):
        raise BadInput(f"{source} has a column twice ({shown(', '.join(header), 200)}); give a list as published")
    return header


def refuse_other_money_columns(header: Sequence[str], source: str) -> None:
    """BadInput where a column's name says that its prices are no dollars."""
    for name in header:
        words = re.sub(r"[_\W]+|(?<=[a-z])(?=[A-Z])", " ", name).upper()
        if "PRICE" in words and _OTHER_MONEY.search(words):
            raise BadInput(f"{source} has a column {shown(name)}: prices have to be in USD; nothing was taken")


def named_row(header: Sequence[str], line: int, row: list[str] | None, source: str) -> Row:
    """A row by column. Raises ValueError for a broken one, BadInput for a price in another currency."""
    if row is None or len(row) != len(header):
        raise ValueError("the line is broken: it has not the columns of the first")
    if any(len(cell) > MAX_CELL or "\0" in cell or "\ufffd" in cell for cell in row):
        raise ValueError("the line is broken: a cell is no text, or too long")
    found = Row(dict(zip(header, row)), line)
    _refuse_other_money(found, source)
    return found


def _refuse_other_money(row: Row, source: str) -> None:
    """Prices in another currency are no mistake of a row: the list as a whole is refused."""
    for name, cell in row.cells.items():
        of_currency, of_price = _kind(name)
        if not (of_currency or of_price):
            continue
        money = cell.strip().upper()
        if (of_currency and money not in ("", "USD", "US$", "$")) or (of_price and _OTHER_MONEY.search(money)):
            raise BadInput(
                f"{source} line {row.line} has {one_line(name)} {shown(cell.strip())}: prices have to be in USD; "
                "convert them first. Nothing was taken"
            )


@lru_cache(maxsize=256)
def _kind(name: str) -> tuple[bool, bool]:
    """Whether a column names a currency, or holds prices."""
    plain = normalise(name)
    return plain in _CURRENCY_COLUMNS, "price" in plain


def listed_price(text: str) -> Decimal | None:
    """A price as listed: None where there is none. Raises ValueError with what is wrong."""
    plain = _DOLLARS.sub("", text.strip())
    if plain.lower() in _NONE:
        return None
    if not _NUMBER.fullmatch(plain):
        raise ValueError("the price is no number")
    try:
        price = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        raise ValueError("the price is no number") from None
    if price < 0:
        raise ValueError("the price is negative")
    return price


def sane_price(price: Decimal, count: int) -> Decimal:
    """A price of `count` GPUs for an hour. Raises ValueError for zero, and for what no GPU can cost."""
    if price == 0:
        raise ValueError("the price is zero")
    if not LEAST_USD <= price / count <= MOST_USD:
        raise ValueError(f"the price is not between ${LEAST_USD} and ${MOST_USD} for a GPU and hour")
    return price


def whole_count(text: str) -> int:
    """A whole number of GPUs, 0 for none. Raises ValueError for a part of one."""
    if not re.fullmatch(r"\d{0,6}(?:\.\d{0,9})?", text, re.ASCII):
        raise ValueError("the number of GPUs is no count")
    count = Decimal(text if text.strip(".") else "0")
    if count != int(count):
        raise ValueError("it has a part of a GPU only")
    return int(count)


def one_line(text: str) -> str:
    """Text from a stranger's file as one printable line of moderate length."""
    cut = text[:120]
    return cut if cut.isprintable() else "".join(sign if sign.isprintable() else " " for sign in cut)
