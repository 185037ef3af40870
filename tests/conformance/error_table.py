"""The error table of the README, from the recorded answers: python tests/conformance/error_table.py [--write]."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

from cases import FIGURES, STATE, Case, errors, recorded

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- error-table -->", "<!-- /error-table -->"
WITHIN = 0.01


def within(found: dict[str, float]) -> bool:
    """Whether a case's errors are within bounds: resident bytes exact, activations and allocated within 1 %."""
    exact = all(found[name] == 0 for name in STATE)
    return exact and abs(found["activations"]) <= WITHIN and abs(found["allocated"]) <= WITHIN


def table(cases: Iterable[Case]) -> str:
    """Median and worst absolute relative error by method and by family, as Markdown."""
    found = [(case, errors(case)) for case in cases]
    lines = [
        "| | cases | activations: median, worst | allocated: same | reserved: same | resident bytes exact |",
        "|---|---|---|---|---|---|",
    ]
    keys: list[Callable[[Case], str]] = [
        lambda case: "all",
        lambda case: f"`{case.request['method']}`",
        lambda case: case.family(),
    ]
    for key in keys:
        for name in sorted({key(case) for case, _ in found}):
            rows = [row for case, row in found if key(case) == name]
            cells = [f"{median(abs(r[f]) for r in rows):.2%}, {max(abs(r[f]) for r in rows):.2%}" for f in FIGURES]
            exact = sum(all(r[name] == 0 for name in STATE) for r in rows)
            lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} | {exact} of {len(rows)} |")
    return "\n".join(lines)


def with_table(readme: str, text: str) -> str:
    """The README with the table between its markers."""
    head, rest = readme.split(START)
    return f"{head}{START}\n{text}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Print the table, and with --write put it into the README."""
    text = table(recorded())
    print(text)
    if "--write" in sys.argv:
        README.write_text(with_table(README.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
