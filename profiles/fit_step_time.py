"""Fit the few constants of step time.

`python profiles/fit_step_time.py` writes peftplan/catalog/step_time_fit.json. Measured speeds of single GPUs are
those of the tables under `profiles/published`; a configuration counts once, by the median of its runs, and one that
stands in two tables is taken from memory.csv. The constants make the mean square of log(predicted / measured)
smallest; a model on a card weighs as the root of its runs, not as their number.

What they are worth is told by what was left out of the fit: each model in turn, and each card in turn. An interval
reaches as far as the rank that the coverage asks for among the sizes of these errors (split-conformal): those of
the card, where several of its models were left out, else those of all cards left out, every card weighing alike.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from peftplan.catalog import GpuRecord, find_gpu
from peftplan.catalog.profiles import published_tables
from peftplan.catalog.step_time_fit import Constants
from peftplan.cost.step_time import Setting, step_time
from peftplan.errors import PeftplanError
from peftplan.evidence.rows import Case, timed_cases
from peftplan.evidence.tables import read_table
from peftplan.planner import settle
from peftplan.request import Request
from peftplan.resolve import resolve
from peftplan.specs.work import Work
from peftplan.timing import unpacks_by_lookup

TARGET = Path(__file__).parents[1] / "peftplan" / "catalog" / "step_time_fit.json"
COVERAGE = 0.9
WIDENING = 1.5  # a choice, not a measurement: for cards whose rates nobody measured
LEAST = 9  # configurations of a card, below which no rank leaves out a tenth of what is to come
DIGITS = 3

START = Constants(
    matmul_frac=0.85,
    flash_frac=0.7,
    efficient_frac=0.5,
    bandwidth_frac=0.7,
    near_speed=3.0,
    unpack_flop=77.0,
    host_s=40e-6,
    backward_frac=0.5,
    floor_s=2.5e-6,
)
FITTED = ("matmul_frac", "bandwidth_frac", "host_s")
LIMITS = {"host_s": 1e-3}  # shares are at most 1
WHAT = {
    "matmul_frac": "share of the best matrix product's rate",
    "flash_frac": "share of that rate for flash attention; arXiv:2307.08691: half to three quarters of the peak",
    "efficient_frac": "the same for the memory-efficient kernel; arXiv:2307.08691: two thirds of that",
    "bandwidth_frac": "share of the memory's peak bandwidth",
    "near_speed": "how many times faster the last cache is; a choice between 2 (A100) and 5 (RTX 4090)",
    "unpack_flop": "fp32 operations that unpacking a weight takes as long as; LitGPT's resource tables: QLoRA "
    "takes 5 to 7.5 ms more for 1e9 weights on an A100 40GB, of which 2.3 ms are bytes; the middle",
    "host_s": "seconds of the host for a launch from Python",
    "backward_frac": "of them, for a launch of backward, which C++ makes; a choice, as 0.3 to 0.6 do hardly worse",
    "floor_s": "seconds of the shortest kernel: a launch that does nothing takes 2 to 3 us on the device",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One run: its work, its card, and the tokens per second that were measured.

    Runs of one `key` are one configuration, under several library releases.
    """

    key: str
    model: str
    source: str
    gpu: GpuRecord
    request: Request
    work: Work
    setting: Setting
    num_tokens: int
    tokens_per_s: float

    def error(self, constants: Constants) -> float | None:
        """log(predicted / measured); None where nothing is predicted, or what was measured cannot be."""
        found = step_time(self.work, self.gpu, self.setting, constants)
        if found is None:
            return None
        return log(self.num_tokens / found.step_s / self.tokens_per_s)

    def possible(self) -> bool:
        """Whether the measured speed is below the card's peak."""
        found = step_time(self.work, self.gpu, self.setting, START)
        if found is None:
            return False
        hfu = (found.hfu_frac or 0.0) * found.step_s * self.tokens_per_s / self.num_tokens
        return hfu <= 1


def points() -> tuple[list[Point], str]:
    """Every configuration of the shipped tables, and the day of the newest."""
    found: dict[tuple[str, str], list[tuple[str, Request, float]]] = defaultdict(list)
    known: set[tuple[str, float]] = set()
    newest = ""
    for path in sorted(published_tables(), key=lambda path: path.name != "memory.csv"):
        for case in timed_cases(read_table(path)):
            if case.run is None or case.run.measured.tokens_per_s is None:
                continue
            speed, request = case.run.measured.tokens_per_s, case.run.request
            key = (f"{request.model} {request.gpu}", round(speed, 0))
            if path.name != "memory.csv" and key in known:
                continue
            known.add(key)
            if not _same_count(case):
                continue
            newest = max(newest, str(case.run.date))
            configuration = f"{path.name} {case.config_key}"
            found[configuration, request.model_dump_json()].append((case.source, request, speed))
    answer = []
    for (configuration, _), rows in found.items():
        point = _point(configuration, *rows[0][:2], median(speed for _, _, speed in rows))
        if point is not None and point.possible():
            answer.append(point)
    return answer, newest


def _same_count(case: Case) -> bool:
    """Whether as much trains as the source says; where it says nothing it is taken on trust."""
    assert case.run is not None
    if not case.num_trainable:
        return True
    try:
        found = settle(resolve(case.run.request)).account.resident.num_trainable
    except PeftplanError:
        return False
    return abs(found / case.num_trainable - 1) <= 0.01


def _point(key: str, source: str, request: Request, tokens_per_s: float) -> Point | None:
    from peftplan.cost.work import step_work

    gpu = find_gpu(request.gpu or "")
    if gpu is None:
        return None
    try:
        plan = resolve(request)
        settled = settle(plan)
    except PeftplanError:
        return None
    filled = plan.request
    work = step_work(settled.model, plan.step, settled.account, filled.kernels)
    setting = Setting(grad_accum=filled.grad_accum, by_lookup=unpacks_by_lookup(filled.bitsandbytes))
    tokens = filled.micro_batch * (filled.seq_len or 0) * filled.grad_accum
    return Point(key, plan.found.id, source, gpu, filled, work, setting, tokens, tokens_per_s)


def loss(chosen: Sequence[Point], constants: Constants) -> float:
    """The mean square of the errors; a model on a card weighs as the root of its configurations."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for point in chosen:
        error = point.error(constants)
        if error is not None:
            groups[point.gpu.key, point.model].append(error**2)
    weights = {key: len(squares) ** 0.5 for key, squares in groups.items()}
    found = sum(weights[key] * sum(squares) / len(squares) for key, squares in groups.items())
    return found / sum(weights.values())


def fit(chosen: Sequence[Point], near: Constants | None = None) -> Constants:
    """The constants that suit the points best, looked for around others where those are known to be near."""

    def at(place: Sequence[float]) -> Constants:
        values = {name: min(exp(x), LIMITS.get(name, 1.0)) for name, x in zip(FITTED, place)}
        return replace(START, **values)

    start = [log(getattr(near or START, name)) for name in FITTED]
    return at(descend(lambda place: loss(chosen, at(place)), start, 0.05 if near else 0.2))


def descend(height: Callable[[Sequence[float]], float], start: Sequence[float], step: float) -> list[float]:
    """The lowest place by a pattern search: one coordinate after the other, steps halved when none helps."""
    place = list(start)
    lowest = height(place)
    while step > 0.01:
        better = False
        for axis in range(len(place)):
            for move in (step, -step):
                other = [*place]
                other[axis] += move
                found = height(other)
                if found < lowest - 1e-9:
                    place, lowest, better = other, found, True
                    break
        if not better:
            step /= 2
    return place


def left_out(
    chosen: Sequence[Point], name: Callable[[Point], str], near: Constants
) -> dict[str, list[tuple[Point, float]]]:
    """The errors of each group by constants that were fitted without it: predicted / measured - 1 of the speed."""
    answer: dict[str, list[tuple[Point, float]]] = {}
    for group in dict.fromkeys(map(name, chosen)):
        constants = fit([point for point in chosen if name(point) != group], near)
        own = [point for point in chosen if name(point) == group]
        answer[group] = [(point, exp(error) - 1) for point in own if (error := point.error(constants)) is not None]
    return answer


def by_configuration(errors: Iterable[tuple[Point, float]]) -> list[tuple[str, float]]:
    """Card and error of each configuration: the median of those of its runs."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for point, error in errors:
        found[point.gpu.key, point.key].append(error)
    return [(gpu, median(own)) for (gpu, _), own in found.items()]


def summary(errors: Iterable[tuple[Point, float]]) -> dict[str, float]:
    """How many configurations, the mean size of their errors, the median and the largest."""
    sizes = [abs(error) for _, error in by_configuration(errors)]
    return {
        "configurations": len(sizes),
        "mean_abs_error": round(sum(sizes) / len(sizes), DIGITS),
        "median_abs_error": round(median(sizes), DIGITS),
        "worst_abs_error": round(max(sizes), DIGITS),
    }


def reach(errors: Iterable[tuple[Point, float]]) -> dict[str, float]:
    """The factor less one by which steps differ at most, with the stated coverage; every card weighs alike."""
    found = by_configuration(errors)
    cards = [gpu for gpu, _ in found]
    ranked = sorted((max(1 + error, 1 / (1 + error)) - 1, 1 / cards.count(gpu)) for gpu, error in found)
    wanted = COVERAGE * len(set(cards)) * (len(found) + 1) / len(found)
    half, below = 0.0, 0.0
    for size, weight in ranked:
        half, below = size, below + weight
        if below >= wanted - 1e-9:
            break
    return {"half_frac": round(half, DIGITS), "configurations": len(found)}


def content() -> str:
    """The file as it should be."""
    chosen, newest = points()
    constants = fit(chosen)
    by_model = left_out(chosen, lambda point: point.model, constants)
    by_gpu = left_out(chosen, lambda point: point.gpu.key, constants)
    seen: dict[str, list[tuple[Point, float]]] = defaultdict(list)
    for group in by_model.values():
        for point, error in group:
            seen[point.gpu.key].append((point, error))
    unseen = [one for found in by_gpu.values() for one in found]
    raw: dict[str, Any] = {
        "made_by": "profiles/fit_step_time.py from profiles/published",
        "date": newest,
        "coverage": COVERAGE,
        "widening": WIDENING,
        "constants": {
            name: {"value": float(f"{value:.3g}"), "fitted": name in FITTED, "what": WHAT[name]}
            for name, value in asdict(constants).items()
        },
        "spread": {
            "seen": {
                gpu: reach(found)
                for gpu, found in seen.items()
                if len({point.model for point, _ in found}) > 1 and len(by_configuration(found)) >= LEAST
            },
            "unseen": reach(unseen),
        },
        "models_left_out": {gpu: _table(found, lambda point: point.model) for gpu, found in seen.items()},
        "gpus_left_out": _table(unseen, lambda point: point.gpu.key),
    }
    return json.dumps(raw, indent=1) + "\n"


def _table(errors: Sequence[tuple[Point, float]], name: Callable[[Point], str]) -> dict[str, dict[str, float]]:
    """The errors of all, and of each group."""
    groups: dict[str, list[tuple[Point, float]]] = defaultdict(list)
    for point, error in errors:
        groups[name(point)].append((point, error))
    return {"all": summary(errors), **{key: summary(found) for key, found in groups.items()}}


if __name__ == "__main__":
    text = content()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else 1)
    TARGET.write_text(text, encoding="utf-8")
