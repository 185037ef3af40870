"""Counts, durations and sizes as people write them, and as they are shown."""

from __future__ import annotations

import pytest

from peftplan.units import format_duration, format_usd, parse_count, parse_duration_s, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("50M", 50_000_000),
        ("2.5B", 2_500_000_000),
        ("10k", 10_000),
        (" 1200 ", 1200),
        ("1.5 m", 1_500_000),
        ("1T", 10**12),
    ],
)
def test_counts_are_read_as_people_write_them(text: str, count: int) -> None:
    """A number with k, M, B or T behind it, in any case, is the exact whole number it stands for."""
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "-5", "+5", "1.5", "50MiB", "nan", "inf", "1e3", "٣", "1_000", "9" * 41])
def test_what_is_no_count_is_refused(text: str) -> None:
    """Signs, exponents, fractions of one, other units and other digits are no count."""
    with pytest.raises(ValueError, match=r".*"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12h", 43200), ("90m", 5400), ("2d", 172800), ("1h30m", 5400), ("45 s", 45)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    """Days, hours, minutes and seconds, alone or together, come to seconds."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "h", "-1h", "1h-", "1y", "1h 30", "nan h"])
def test_a_duration_needs_its_unit(text: str) -> None:
    """A bare number could be hours or minutes, so it is refused, as is anything that is no time."""
    with pytest.raises(ValueError, match=r".*"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("24GiB", 24 * 2**30), ("24 GB", 24 * 10**9), ("1024", 1024), ("1.5kib", 1536)],
)
def test_sizes_tell_binary_from_decimal(text: str, num_bytes: int) -> None:
    """GiB is 2**30 bytes and GB is 10**9."""
    assert parse_size_bytes(text) == num_bytes


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.25, "0.25 s"),
        (4.21, "4.2 s"),
        (59.97, "1 min"),
        (720, "12 min"),
        (11520, "3 h 12 min"),
        (360_000, "4 d 4 h"),
    ],
)
def test_durations_are_shown_in_the_units_that_read_best(seconds: float, shown: str) -> None:
    """Two units at most, and never sixty of one."""
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(("amount", "shown"), [(4.176, "$4.18"), (0.00421, "$0.0042"), (12345.6, "$12,346")])
def test_dollars_are_shown_with_what_matters(amount: float, shown: str) -> None:
    """Cents from ten cents on, two digits below, none above a thousand dollars."""
    assert format_usd(amount) == shown
