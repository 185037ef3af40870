"""Open numbers: what a program computes with them holds for every number that answers its questions alike."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftplan.memory.symbolic import Book, Symbol
from peftplan.memory.symbolic_program import NotAlike, Program
from peftplan.units import round_up

SIZES = st.integers(1, 5000)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["+", "-", "*", "//", "%", "&", "max", "<", "round", "bits"]),
        st.integers(1, 600),
        st.booleans(),
    ),
    max_size=8,
)


def computed(steps, batch, length):
    """A value that depends on both numbers, by whole-number arithmetic and by questions."""
    x = batch * length
    for name, constant, by_length in steps:
        other = length if by_length else constant
        if name == "+":
            x = x + other
        elif name == "-":
            x = other - x
        elif name == "*":
            x = x * constant
        elif name == "//":
            x = x // other
        elif name == "%":
            x = x % other
        elif name == "&":
            x = (x + 511) & -512
        elif name == "max":
            x = max(x, other)
        elif name == "round":
            x = round_up(x, constant)
        elif name == "bits":
            x = x + (abs_of(x) - 1 if x > 1 else x).bit_length()
        elif x < other:
            x = x + constant
    return x


def abs_of(x):
    return x if x >= 0 else -x


@given(STEPS, SIZES, SIZES, SIZES, SIZES)
def test_a_program_is_right_wherever_it_answers(steps, batch, length, other_batch, other_length):
    """For its own numbers it answers, and for others it gives what they would have given, or refuses."""
    book = Book((batch, length))
    program = Program(book, [computed(steps, *book.open)])
    assert program.run((batch, length)) == [computed(steps, batch, length)]
    try:
        found = program.run((other_batch, other_length))
    except NotAlike:
        return
    assert found == [computed(steps, other_batch, other_length)]


def test_products_need_no_question():
    """One number written as two products is one expression: shapes and sizes compare without asking."""
    book = Book((2, 1024))
    batch, length = book.open
    assert prod((batch, length, 4096)) is batch * 4096 * length
    assert batch * length * 4096 // 4096 == batch * length
    assert (batch * length * 512 + 511) & -512 == batch * length * 512
    assert book.questions == {}


def test_what_follows_from_numbers_above_zero_is_no_question():
    """Comparisons that every batch and length answers alike leave nothing behind."""
    book = Book((2, 1024))
    batch, length = book.open
    assert batch * length > 0
    assert batch + length >= 2
    assert batch * 8 < batch * 9
    assert book.questions == {}


def test_a_comparison_splits_the_numbers():
    """A program asked whether a size is above a bound refuses sizes on the other side of it."""
    book = Book((1, 4096))
    (_, length) = book.open
    program = Program(book, [length * 3 if length > 3072 else length])
    assert program.run((1, 3073)) == [9219]
    with pytest.raises(NotAlike):
        program.run((1, 3072))


@pytest.mark.parametrize("use", [int, float, hash, str, list, lambda x: x / 2, lambda x: f"{x}", range])
def test_what_has_no_expression_pins_the_number(use):
    """Where a program takes the number itself, it holds for that number alone."""
    book = Book((3, 64))
    (batch, _) = book.open
    use(range(batch) if use is list else batch)
    program = Program(book, [batch + 1])
    assert program.run((3, 99)) == [4]
    with pytest.raises(NotAlike):
        program.run((4, 64))


def test_a_value_that_other_numbers_do_not_have_is_refused():
    """A quotient whose divisor is zero elsewhere stands behind a question, and is no error."""
    book = Book((1, 100))
    (_, length) = book.open
    rest = length // 64
    program = Program(book, [1000 // rest if rest > 0 else 0])
    assert program.run((1, 200)) == [333]
    with pytest.raises(NotAlike):
        program.run((1, 10))


def test_alike_expressions_are_one_object():
    """Expressions are interned, so that tuples of them compare by identity."""
    book = Book((2, 8))
    batch, length = book.open
    first, second = (batch, length * 4), (batch, 4 * length)
    assert isinstance(first[1], Symbol)
    assert first == second
    assert first[1] is second[1]
    assert book.questions == {}
