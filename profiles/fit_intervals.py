"""Fit the numbers behind intervals: `python profiles/fit_intervals.py` writes peftplan/catalog/residuals.json.

Every measurement at hand is scored by the closed form. A configuration counts once, by the median of its rows'
residuals (measured / predicted - 1). Of each group the sizes of the residuals are ranked, and the interval reaches
as far as the rank ceil((n + 1) x coverage) of n (split-conformal; the largest where n is too small for that rank).
`reserved` also holds what `device` says, less the context of the card's generation.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from peftplan.catalog import find_gpu
from peftplan.catalog.profiles import published_tables, read_measurements, record_files
from peftplan.evidence.rows import Case
from peftplan.evidence.scoring import Evidence
from peftplan.evidence.tables import read_table
from peftplan.measured import BYTE_METRICS, read_record
from peftplan.memory.intervals import kind_of_run
from peftplan.memory.overheads import context
from peftplan.methods import METHODS
from peftplan.planner import estimate
from peftplan.resolve import capability_of

TARGET = Path(__file__).parents[1] / "peftplan" / "catalog" / "residuals.json"
COVERAGE = 0.9
LEAST_CONFIGURATIONS = 9  # below it no rank leaves out a tenth of what is to come
WIDENING = 1.5  # a choice, not a measurement: for kinds of run that nobody measured
DIGITS = 4

# metric, kind of run, configuration, measured / predicted - 1, compute capability
Residual = tuple[str, str, str, float, str]


def residual(case: Case) -> Residual | None:
    """One case's residual; None where it is no figure of the allocator or the device, or does not count."""
    run = case.run
    if case.batches is not None:  # a share of steps whose lengths are assumed, no peak
        return None
    if run is None or case.apart or run.outcome != "completed" or run.metric not in BYTE_METRICS:
        return None
    measured = run.measured.of(run.metric)
    report = estimate(run.request)
    count = case.num_trainable
    if measured is None or (count and abs(report.method.num_trainable_params / count - 1) > 0.01):
        return None
    capability = capability_of(find_gpu(run.request.gpu) if run.request.gpu else None)
    generation = ".".join(map(str, capability))
    kind = kind_of_run(METHODS[report.method.kind].frozen_base, report.request["quant"] is not None)
    memory = report.memory
    if run.metric == "allocated":
        return "allocated", kind, case.config_key, measured / memory.peak_allocated_bytes - 1, generation
    predicted = memory.peak_reserved_bytes
    if run.metric == "device":
        outside = context(capability).middle_bytes
        measured, predicted = measured - outside, memory.device_bytes - outside
    return "reserved", kind, case.config_key, measured / predicted - 1, generation


def half_width(residuals: list[float], coverage: float = COVERAGE) -> float:
    """The size that the stated share of residuals to come stays below, from those at hand."""
    sizes = sorted(map(abs, residuals))
    return sizes[min(ceil((len(sizes) + 1) * coverage), len(sizes)) - 1]


def fit(found: list[Residual], newest: str) -> dict[str, Any]:
    """The file's content."""
    by_configuration: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    generations: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for metric, kind, key, value, generation in found:
        by_configuration[metric, kind, key].append(value)
        generations[metric, kind][generation].add(key)
        generations[metric, "all"][generation].add(f"{kind} {key}")
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (metric, kind, _), values in by_configuration.items():
        groups[metric, kind].append(median(values))
        groups[metric, "all"].append(median(values))
    rows = []
    for (metric, kind), values in sorted(groups.items()):
        half = round(half_width(values), DIGITS)
        rows.append(
            {
                "metric": metric,
                "kind": kind,
                "by_compute_capability": {g: len(keys) for g, keys in sorted(generations[metric, kind].items())},
                "configurations": len(values),
                "half_frac": half,
            }
        )
    return {
        "made_by": "profiles/fit_intervals.py from profiles/records and profiles/published",
        "date": newest,
        "coverage": COVERAGE,
        "least_configurations": LEAST_CONFIGURATIONS,
        "widening": WIDENING,
        "groups": rows,
    }


def shipped_evidence() -> Evidence:
    """What travels with the package, without a user's own records."""
    folder = Path(__file__).parent
    return Evidence(
        tables=tuple(read_table(path) for path in published_tables()),
        records=tuple(
            (str(path), read_record(read_measurements(path), str(path)))
            for path in record_files()
            if folder in path.parents
        ),
    )


def content() -> str:
    """The file as it should be."""
    cases = [case for _, case in shipped_evidence().cases()]
    found = [value for case in cases if (value := residual(case)) is not None]
    days = [str(case.run.date) for case in cases if case.run is not None and not case.apart]
    return json.dumps(fit(found, max(days)), indent=1) + "\n"


if __name__ == "__main__":
    text = content()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else 1)
    TARGET.write_text(text, encoding="utf-8")
