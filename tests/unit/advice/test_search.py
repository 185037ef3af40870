"""The search for the largest number that does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peftplan.advice.search import ALIGNMENT, largest


@given(limit=st.integers(0, 5000), start=st.integers(1, 5000), most=st.integers(1, 5000))
def test_the_largest_is_found_from_anywhere(limit: int, start: int, most: int) -> None:
    """Of what does up to a limit, the limit is found, wherever the search starts; none where 1 does not do."""
    assert largest(lambda n: n <= limit, start, most) == (min(limit, most) or None)


@given(does=st.sets(st.integers(1, 200)), start=st.integers(1, 200))
def test_whatever_does_the_answer_does_and_the_next_does_not(does: set[int], start: int) -> None:
    """However ragged, the answer does, and neither the next value nor the next whole multiple does."""
    found = largest(does.__contains__, start, 200)
    if found is not None:
        assert found in does
        assert not does & {found + 1, (found // ALIGNMENT + 1) * ALIGNMENT}


def test_a_gap_below_multiples_of_eight_is_crossed() -> None:
    """A value that does again right behind one that does not is found."""
    assert largest(lambda n: n <= 40 or n == 48, 10, 1000) == 48


def test_few_values_are_tried() -> None:
    """A limit among a hundred million is found in a few dozen tries."""
    tried: list[int] = []

    def does(n: int) -> bool:
        tried.append(n)
        return n <= 12_345_678

    assert largest(does, 1, 10**8) == 12_345_678
    assert len(tried) < 70
