"""peft's method comparison: about fifty methods on one model, measured while the length of batches varies.

Its figure is no peak: the 99th percentile over all steps of what is reserved after the optimizer. What one method
alone was told stands in a file of its own, and so do the lengths of the examples, which are assumed: only their
mean is published.

Source: peft-comparison.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from peftplan.catalog.profiles import published_file
from peftplan.cost.buckets import Bucketed
from peftplan.errors import shown
from peftplan.evidence.cells import SetAside, number
from peftplan.evidence.libraries import day_of, version_fields
from peftplan.evidence.mapping import request_fields
from peftplan.evidence.stacks import Fields
from peftplan.evidence.tables import Row
from peftplan.methods import METHODS
from peftplan.request import Request
from peftplan.specs.lengths import Lengths
from peftplan.versions import parse

EXPERIMENTS = "peft_method_comparison.json"
LENGTHS = "metamathqa_lengths.json"
SHARE = 0.99
# Methods that were other programs in earlier releases of peft: since when they are as modelled, what they were.
_REWRITTEN: dict[str, tuple[tuple[int, int, int], str]] = {
    "oft": ((0, 16, 1), "was another program, with twice the parameters"),
    "osf": ((0, 21, 0), "kept both halves of every weight and put them together on every pass"),
}


def is_of_comparison(row: Row) -> bool:
    """Whether a row was measured by the comparison's script, and its figure is the percentile."""
    return row.get("metric_norm") == "torch_reserved_p99" and "method_comparison" in row.get("framework", "")


def experiment(row: Row) -> str:
    """`lora/llama-3.2-3B-rank32`: the folder of the experiment's settings."""
    found = re.search(r"\bexperiment=([^;\s]+)", row.get("notes", ""))
    return found[1] if found else ""


def request(row: Row) -> Request:
    """The run of a row, at its truncation length; raises SetAside."""
    # the examples of a batch are padded to the longest
    fields = {**fields_of({**row, "shape_known": "exact"}), "padding": True}
    try:
        return Request(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SetAside(f"{first['loc'][0]} {first['input']!r} is out of bounds") from None


def fields_of(row: Row) -> Fields:
    """The fields of a row's request: what its experiment's own config says goes before the columns."""
    known = settings(experiment(row))
    if not known:
        return request_fields(row)
    first, was = _REWRITTEN.get(known["method"], ((0, 0, 0), ""))
    if parse(version_fields(row).get("peft", "0.21")) < first:
        raise SetAside(f"{known['method']} of peft before {'.'.join(map(str, first))} {was}")
    columns = {"method": known["method"], "target_modules": " ".join(known.get("targets", ()))}
    if "rank" in known:
        columns["lora_rank"] = str(known["rank"])
    return {**request_fields({**row, **columns}), **known}


def settings(name: str) -> Fields:
    """The fields of a request that an experiment's own config states, none where it is not on file."""
    known: Fields = _experiments()["experiments"].get(name, {})
    if known and known["method"] not in METHODS:
        raise SetAside(f"method {shown(known['method'])} is not modelled yet")
    return known


def batches(row: Row, lengths: Lengths | None = None) -> Bucketed:
    """How the comparison takes its batches: sorted within buckets, the cache emptied as it was that day."""
    doc = _experiments()
    habits = sorted(doc["emptied_every"].items())
    every = next(steps for day, steps in reversed(habits) if day <= day_of(row))
    found = lengths or example_lengths(number(row, "mean_tokens_per_sample") or 0.0)
    return Bucketed(found, doc["bucket_batches"], doc["num_steps"], every)


def example_lengths(mean_tokens: float) -> Lengths:
    """The assumed lengths of the examples; those of another mean are no longer of the same data."""
    doc = _read(LENGTHS)
    first = int(doc["tokens_from"])
    counts = tuple((first + n, count) for n, count in enumerate(doc["examples_of_100000"]) if count)
    lengths = Lengths(counts, doc["basis"])
    assumed = lengths.num_tokens / lengths.num_examples
    if abs(mean_tokens / assumed - 1) > 0.02:
        raise SetAside(f"examples of {mean_tokens:g} tokens on average, and those assumed have {assumed:.1f}")
    return lengths


def known_experiments() -> frozenset[str]:
    """The experiments whose settings are on file."""
    return frozenset(_experiments()["experiments"])


def _experiments() -> dict[str, Any]:
    return _read(EXPERIMENTS)


@lru_cache(maxsize=4)
def _read(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(published_file(name))
    return value
