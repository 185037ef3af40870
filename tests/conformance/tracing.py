"""Traces of many cases, two child processes side by side."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import local
from typing import Any

from cases import Case, answer_of, draw

from peftplan.errors import BadInput, PeftplanError
from peftplan.measure.trace.plan import plan_trace
from peftplan.measure.trace.process import Worker
from peftplan.measure.trace.report import trace_report
from peftplan.planner import estimate

NUM_WORKERS = 2


def traced(cases: Iterator[Case] | list[Case]) -> Iterator[Case | PeftplanError]:
    """Each case with the trace's answer, or what it was refused with, in the order given."""
    own, workers = local(), []

    def run(case: Case) -> Case | PeftplanError:
        if not hasattr(own, "worker"):
            own.worker = Worker()
            workers.append(own.worker)
        try:
            plan = plan_trace(case.asked())
            return replace(case, answer=answer_of(trace_report(plan, own.worker.run(plan.job))))
        except PeftplanError as error:
            return error

    try:
        with ThreadPoolExecutor(NUM_WORKERS) as pool:
            yield from pool.map(run, cases)
    finally:
        for worker in workers:
            worker.close()


def random_cases(seed: int) -> Iterator[Case]:
    """Drawn runs that the closed form takes, without answers."""
    rng = random.Random(seed)
    number = 0
    while True:
        model, layers, request = draw(rng)
        case = Case(number, model, layers, request, {})
        try:
            estimate(case.asked())
        except BadInput:
            continue
        number += 1
        yield case


def first(count: int, seed: int) -> list[Any]:
    """The first `count` of the random cases."""
    drawn = random_cases(seed)
    return [next(drawn) for _ in range(count)]
