"""Trace random runs and keep the answers: python tests/conformance/record.py [COUNT [SEED]].

Replaces recorded.jsonl. Cases that the libraries refuse (peft's routers take no dropout, for one) are left out.
"""

from __future__ import annotations

import sys
from itertools import islice

from cases import Case, errors, write_recorded
from tracing import first, traced

COUNT, SEED = 260, 20


def main() -> None:
    """Record COUNT cases drawn with SEED."""
    given = [int(word) for word in sys.argv[1:3]]
    count, seed = [*given, *(COUNT, SEED)[len(given) :]]
    kept = []
    for case, answer in zip(drawn := first(count, seed), traced(drawn)):
        if not isinstance(answer, Case):
            print(f"left out {case.label()} {case.request}: {answer}", flush=True)
            continue
        kept.append(answer)
        found = errors(answer)
        print(answer.label(), *(f"{name} {error:+.3g}" for name, error in islice(found.items(), 3)), flush=True)
    write_recorded(kept)


if __name__ == "__main__":
    main()
