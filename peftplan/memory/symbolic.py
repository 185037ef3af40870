"""Whole numbers whose value is left open: sums of products, and what a program asked about them.

A program that is run once on a `Symbol` in the place of a number leaves behind what its results are as expressions
of that number, and every question whose answer it depended on: a comparison, or the number itself. For other
numbers that give the same answers the program would have done the same, so that the expressions hold for them
exactly. Nothing is approximated: what an expression cannot say pins the number to the value it had.

Legend: an atom is a number left open, or the result of an operation that is no sum or product; a term is a product
of atoms with a whole coefficient.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

Product = tuple[int, ...]  # numbers of atoms, ascending, one that is squared twice
Terms = tuple[tuple[Product, int], ...]


class Book:
    """What one run leaves behind: expressions, each once, and questions with their answers."""

    def __init__(self, values: Sequence[int]) -> None:
        self.atoms: list[int] = list(values)  # what each is in this run
        self.num_open = len(values)
        self.made: list[tuple[Callable[[Any, Any], Any], Any, Any]] = []  # the atoms beyond the open ones
        self.atom_numbers: dict[Any, int] = {}
        self.symbols: dict[Terms, Symbol] = {}
        self.questions: dict[tuple[Any, Any, Any], bool] = {}
        self.open = tuple(self.symbol((((number,), 1),)) for number in range(self.num_open))

    def symbol(self, terms: Terms) -> Any:
        """The expression with these terms: a plain number where no atom is left."""
        if not terms:
            return 0
        if len(terms) == 1 and not terms[0][0]:
            return terms[0][1]
        found = self.symbols.get(terms)
        if found is None:
            found = self.symbols[terms] = Symbol(self, terms)
        return found

    def atom(self, function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        """The result of an operation, as an atom of its own."""
        key = (
            function,
            left.terms if left.__class__ is Symbol else left,
            (right.terms if right.__class__ is Symbol else right),
        )
        number = self.atom_numbers.get(key)
        if number is None:
            number = self.atom_numbers[key] = len(self.atoms)
            self.atoms.append(function(value_of(left), value_of(right)))
            self.made.append((function, left, right))
        return self.symbol((((number,), 1),))

    def ask(self, function: Callable[[Any, Any], bool], left: Symbol, right: Any) -> bool:
        """The answer to a comparison with a number or another expression, noted unless it is always the same."""
        if right.__class__ is Symbol or right.__class__ is int:
            difference = left - right
            if difference.__class__ is not Symbol:
                return function(difference, 0)
            known = self._known(function, difference)
            if known is not None:
                return known
            left, right = difference, 0
        key = function, left.terms, right
        answer = self.questions.get(key)
        if answer is None:
            answer = self.questions[key] = function(value_of(left), right)
        return answer

    def _known(self, function: Callable[[Any, Any], bool], x: Symbol) -> bool | None:
        """How an expression compares with zero where that follows from its terms: open numbers are at least one."""
        most = self.num_open
        signs = {coefficient > 0 for product, coefficient in x.terms if product}
        if len(signs) > 1 or any(product and product[-1] >= most for product, _ in x.terms):
            return None
        nearest = sum(coefficient for _, coefficient in x.terms)  # to zero: with every open number at one
        side = 1 if signs == {True} else -1
        if nearest * side < 0:
            return None
        beyond = function(side, 0)
        return beyond if nearest or function(0, 0) is beyond else None


def value_of(x: Any) -> Any:
    """What an expression is in the run that it comes from; other things are themselves."""
    if x.__class__ is not Symbol:
        return x
    atoms, total = x.book.atoms, 0
    for product, coefficient in x.terms:
        for number in product:
            coefficient *= atoms[number]
        total += coefficient
    return total


class Symbol:
    """A whole number left open, or an expression of such numbers; alike ones are one object."""

    __slots__ = ("book", "terms")

    def __init__(self, book: Book, terms: Terms) -> None:
        self.book, self.terms = book, terms

    def _of(self, terms: dict[Product, int]) -> Any:
        return self.book.symbol(tuple(sorted((key, value) for key, value in terms.items() if value)))

    # ---- sums and products
    def __add__(self, other: Any) -> Any:
        if other.__class__ is Symbol:
            added = other.terms
        elif isinstance(other, int):
            if not other:
                return self
            added = (((), int(other)),)
        else:
            return NotImplemented
        terms = dict(self.terms)
        for product, coefficient in added:
            terms[product] = terms.get(product, 0) + coefficient
        return self._of(terms)

    __radd__ = __add__

    def __neg__(self) -> Any:
        return self.book.symbol(tuple((product, -coefficient) for product, coefficient in self.terms))

    def __sub__(self, other: Any) -> Any:
        return self + -other if isinstance(other, (int, Symbol)) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return -self + other if isinstance(other, int) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int):
            if not other:
                return 0
            return self.book.symbol(tuple((product, coefficient * other) for product, coefficient in self.terms))
        if other.__class__ is not Symbol:
            return NotImplemented
        terms: dict[Product, int] = {}
        for left, first in self.terms:
            for right, second in other.terms:
                product = tuple(sorted(left + right))
                terms[product] = terms.get(product, 0) + first * second
        return self._of(terms)

    __rmul__ = __mul__

    def __pow__(self, power: Any) -> Any:
        if power.__class__ is not int or not 1 <= power <= 4:
            return NotImplemented
        return self if power == 1 else self * self ** (power - 1)

    # ---- quotients
    def _parts(self, divisor: int) -> tuple[Any, Any]:
        """(x, y) with self = divisor * x + y, x as large as the terms allow."""
        whole = tuple((product, c // divisor) for product, c in self.terms if product and c % divisor == 0)
        rest = tuple((product, c) for product, c in self.terms if not product or c % divisor)
        return self.book.symbol(whole), self.book.symbol(rest)

    def __floordiv__(self, other: Any) -> Any:
        if other.__class__ is int and other:
            whole, rest = self._parts(other)
            if rest.__class__ is int:
                return whole + rest // other
            return whole + self.book.atom(operator.floordiv, rest, other)
        if other.__class__ is Symbol:
            exact = self._divided(other)
            return self.book.atom(operator.floordiv, self, other) if exact is None else exact
        return NotImplemented

    def __rfloordiv__(self, other: Any) -> Any:
        return self.book.atom(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> Any:
        if other.__class__ is int and other:
            rest = self._parts(other)[1]
            return rest % other if rest.__class__ is int else self.book.atom(operator.mod, rest, other)
        if other.__class__ is Symbol:
            return 0 if self._divided(other) is not None else self.book.atom(operator.mod, self, other)
        return NotImplemented

    def __rmod__(self, other: Any) -> Any:
        return self.book.atom(operator.mod, other, self)

    def _divided(self, other: Symbol) -> Any:
        """self / other where that is a sum of products for every value of the open numbers, which are not zero."""
        ((divisor, scale),) = other.terms if len(other.terms) == 1 else (((), 0),)
        if not scale or any(number >= self.book.num_open for number in divisor):
            return None
        terms = []
        for product, coefficient in self.terms:
            left = list(product)
            for number in divisor:
                if number not in left:
                    return None
                left.remove(number)
            if coefficient % scale:
                return None
            terms.append((tuple(left), coefficient // scale))
        return self.book.symbol(tuple(sorted(terms)))

    # ---- bits
    def __and__(self, other: Any) -> Any:
        if other.__class__ is not int:
            return NotImplemented
        block = -other
        if block > 0 and not block & (block - 1):  # rounded down to a power of two
            whole, rest = self._parts(block)
            if rest.__class__ is int:
                return whole * block + (rest & other)
            return whole * block + self.book.atom(operator.and_, rest, other)
        return self.book.atom(operator.and_, self, other)

    __rand__ = __and__

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << other) if other.__class__ is int else self.book.atom(operator.lshift, self, other)

    def __rlshift__(self, other: Any) -> Any:
        return self.book.atom(operator.lshift, other, self)

    def __rshift__(self, other: Any) -> Any:
        return self.book.atom(operator.rshift, self, other)

    def bit_length(self) -> Any:
        """As int.bit_length."""
        return self.book.atom(_bit_length, self, 0)

    # ---- questions
    def __lt__(self, other: Any) -> bool:
        return self.book.ask(operator.lt, self, other)

    def __le__(self, other: Any) -> bool:
        return self.book.ask(operator.le, self, other)

    def __gt__(self, other: Any) -> bool:
        return self.book.ask(operator.gt, self, other)

    def __ge__(self, other: Any) -> bool:
        return self.book.ask(operator.ge, self, other)

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        if not isinstance(other, (int, float, Symbol)):
            return NotImplemented
        return self.book.ask(operator.eq, self, other)

    def __bool__(self) -> bool:
        return self.book.ask(operator.ne, self, 0)

    # ---- what no expression says: the number itself, which pins it
    def __index__(self) -> int:
        value = value_of(self)
        self.book.ask(operator.eq, self, value)
        return value  # type: ignore[no-any-return]

    __int__ = __index__

    def __float__(self) -> float:
        return float(self.__index__())

    def __hash__(self) -> int:
        return hash(self.__index__())

    def __str__(self) -> str:
        return str(self.__index__())

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(self.__index__(), spec)

    def __truediv__(self, other: Any) -> float:
        return self.__index__() / other  # type: ignore[no-any-return]

    def __rtruediv__(self, other: Any) -> float:
        return other / self.__index__()  # type: ignore[no-any-return]

    def __ceil__(self) -> Symbol:
        return self

    __floor__ = __round__ = __ceil__


def _bit_length(x: int, _: int) -> int:
    return x.bit_length()
