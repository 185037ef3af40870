"""Golden screens: what people see, kept as files. `pytest --regenerate-golden` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peftplan.units import GIB, KIB, MIB

FOLDER = Path(__file__).parent
UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
SIZE = re.compile(r"(-?[\d,]+(?:\.(\d+))?) (B|KiB|MiB|GiB)(?=\s|$)")

# file -> (columns, words)
SCREENS = {
    "estimate_qlora": (80, "estimate llama-70b --method qlora --gpu a100-80 --plain"),
    "estimate_full_unfit": (100, "estimate llama-7b --method full --gpu rtx4090 --plain"),
    "estimate_narrow": (60, "estimate llama-3-8b --gpu rtx4090"),
    "compare": (80, "compare llama-7b --plain"),
}


@pytest.mark.parametrize("name", SCREENS)
def test_screen(run, request, name):
    """The screen is the one on file."""
    columns, line = SCREENS[name]
    done = run(*line.split(), columns=columns)
    assert done.status == 0
    shown = "\n".join(text.rstrip() for text in done.out.splitlines()) + "\n"
    path = FOLDER / f"{name}.txt"
    if request.config.getoption("--regenerate-golden"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


def sizes(line: str) -> list[tuple[float, float]]:
    """Every size on a line in bytes, and how far rounding may have moved it."""
    found = []
    for number, decimals, unit in SIZE.findall(line):
        step = UNITS[unit] * 10 ** -len(decimals)
        found.append((float(number.replace(",", "")) * UNITS[unit], step / 2 if unit != "B" else 0))
    return found


@pytest.mark.parametrize("name", [name for name in SCREENS if name.startswith("estimate")])
def test_rows_sum_to_the_headline(name):
    """The parts of the peak on a screen sum to its headline, up to their rounding."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    rows, found, after = text.partition("\nMemory at the peak")[2].partition("peak allocated")
    assert found
    parts = [size for line in rows.splitlines()[2:] for size in sizes(line)]
    (headline, slack), *_ = sizes(after.splitlines()[0])
    assert len(parts) > 4
    assert abs(sum(size for size, _ in parts) - headline) <= slack + sum(half for _, half in parts)


def test_rows_of_a_comparison_sum_to_each_headline():
    """In a comparison the rows of each column sum to its peak, up to their rounding."""
    text = (FOLDER / "compare.txt").read_text(encoding="utf-8")
    table = text.partition("part of the peak")[2].partition("peak allocated")
    peaks = [size for size, _ in sizes(table[2].splitlines()[0])]
    columns = [0.0] * len(peaks)
    for line in table[0].splitlines()[1:]:
        cells = [cell.strip(" <>") for cell in re.split(r"\s{2,}", line.strip())][1:]
        cells = [cell for cell in cells if cell]
        for index, cell in enumerate(cells):
            columns[index] += sum(size for size, _ in sizes(cell))
    assert columns == pytest.approx(peaks, abs=0.05 * GIB)


def test_the_percentages_of_a_screen_sum_to_a_hundred():
    """Shares of the peak sum to the whole, up to their rounding."""
    text = (FOLDER / "estimate_qlora.txt").read_text(encoding="utf-8")
    rows = text.partition("\nMemory at the peak")[2].partition("peak allocated")[0]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", rows)]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares) + 0.05)
