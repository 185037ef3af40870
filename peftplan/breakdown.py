"""A tree of bytes: a node has bytes of its own or children, never both, so totals cannot disagree with parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict


class Node(BaseModel):
    """A named number of bytes; with children, their sum. `formula` says how a leaf comes about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    children: tuple[Node, ...] = ()
    formula: str = ""
    source: str = ""

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and all below it, with their depth."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


def leaf(name: str, num_bytes: int, formula: str = "", source: str = "") -> Node:
    """A node with bytes of its own."""
    return Node.model_construct(name=name, bytes=num_bytes, children=(), formula=formula, source=source)


def branch(name: str, children: Iterable[Node], formula: str = "", source: str = "") -> Node:
    """A node that is the sum of its children; empty ones are left out."""
    kept = tuple(child for child in children if child.bytes)
    return Node.model_construct(
        name=name,
        bytes=sum(child.bytes for child in kept),
        children=kept,
        formula=formula,
        source=source,
    )


NOT_BROKEN_DOWN = Node(name="not broken down", bytes=0)
