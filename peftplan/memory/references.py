"""How many references an object has when nothing else holds it, as this Python counts them.

`sys.getrefcount` counts its own argument and the names on the way to it; releases of CPython differ in
which of those they count. The three usual ways of asking are therefore measured once.
"""

from __future__ import annotations

from sys import getrefcount


class _Holder:
    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = object()


def _by_name() -> int:
    held = object()
    return getrefcount(held)


def _of_argument(held: object) -> int:
    return getrefcount(held)


def _by_argument() -> int:
    held = object()
    return _of_argument(held)


def _by_attribute() -> int:
    holder = _Holder()
    return getrefcount(holder.held)


ALONE = _by_name()  # held by one local name
ALONE_AS_ARGUMENT = _by_argument()  # held by the caller's name and the callee's
ALONE_AS_ATTRIBUTE = _by_attribute()  # held by one attribute
