"""What a run with open numbers comes to, as arithmetic that other numbers can be put into."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from peftplan.memory.symbolic import Book, Symbol

Operation = tuple[Callable[[Any, Any], Any], int, int]  # (function, places of its operands)


class NotAlike(Exception):
    """The numbers asked for answer a question otherwise than those that the program was run on."""


class Program:
    """Straight-line arithmetic: the results of a run for other numbers that its questions answer alike."""

    def __init__(self, book: Book, results: Sequence[Any]) -> None:
        self.num_open = book.num_open
        self.constants: list[Any] = []
        self._constant_places: dict[Any, int] = {}
        self._places: dict[Any, int] = {}
        self._book = book
        wanted = [*results, *(Symbol(book, terms) for _, terms, _ in book.questions)]
        for x in wanted:
            self._collect(x)
        self.start = book.num_open + len(self.constants)
        self.operations: list[Operation] = []
        self._places = {("atom", number): number for number in range(book.num_open)}
        self.questions = [
            (function, self._place(Symbol(book, terms)), right, answer)
            for (function, terms, right), answer in book.questions.items()
        ]
        self.after_questions = len(self.operations)
        self.results = [self._place(x) for x in results]

    def _collect(self, x: Any) -> None:
        """Note the constants that an expression needs, before places are given to what is computed."""
        if x.__class__ is not Symbol:
            self._constant(x)
            return
        for product, coefficient in x.terms:
            self._constant(coefficient)
            for number in product:
                if number >= self.num_open:
                    _, left, right = self._book.made[number - self.num_open]
                    self._collect(left)
                    self._collect(right)

    def _constant(self, x: Any) -> int:
        key = x.__class__, x
        if key not in self._constant_places:
            self._constant_places[key] = self.num_open + len(self.constants)
            self.constants.append(x)
        return self._constant_places[key]

    def _operation(self, function: Callable[[Any, Any], Any], left: int, right: int) -> int:
        key = function, left, right
        if key not in self._places:
            self._places[key] = self.start + len(self.operations)
            self.operations.append(key)
        return self._places[key]

    def _place(self, x: Any) -> int:
        if x.__class__ is not Symbol:
            return self._constant(x)
        total = -1
        for product, coefficient in x.terms:
            place = -1
            for number in product:
                factor = self._atom(number)
                place = factor if place < 0 else self._operation(operator.mul, place, factor)
            if place < 0:
                place = self._constant(coefficient)
            elif coefficient != 1:
                place = self._operation(operator.mul, place, self._constant(coefficient))
            total = place if total < 0 else self._operation(operator.add, total, place)
        return total

    def _atom(self, number: int) -> int:
        key = "atom", number
        if key not in self._places:
            function, left, right = self._book.made[number - self.num_open]
            self._places[key] = self._operation(function, self._place(left), self._place(right))
        return self._places[key]

    def run(self, numbers: Sequence[int]) -> list[Any]:
        """The results for these numbers; raises NotAlike where a question is answered otherwise.

        An expression without a value there is one that the program would not have come to.
        """
        try:
            return self._run([*numbers, *self.constants])
        except (ArithmeticError, ValueError):
            raise NotAlike from None

    def _run(self, values: list[Any]) -> list[Any]:
        append, operations = values.append, self.operations
        for function, left, right in operations[: self.after_questions]:
            append(function(values[left], values[right]))
        for ask, place, right, answer in self.questions:
            if ask(values[place], right) is not answer:
                raise NotAlike
        for function, left, right in operations[self.after_questions :]:
            append(function(values[left], values[right]))
        return [values[place] for place in self.results]
