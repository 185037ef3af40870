"""How fast an answer comes: `python tests/bench_speed.py`. A benchmark, not a test: nothing here fails.

It prints the milliseconds of one `estimate()` of an 80-layer model (the first call of the process, calls on
new sequence lengths, repeated calls), of a point of a sweep beside an estimate of its own, and the time of the
whole process `peftplan estimate … --json` beside that of importing what any command line with tables and models
imports.
"""
# a benchmark prints

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

from peftplan import Request, sweep
from peftplan.planner import estimate, suggest_changes

MODEL, METHOD = "llama-70b", "qlora"
SWEPT = "llama-3-8b"
RUNS = 15
COMMAND = (sys.executable, "-m", "peftplan", "estimate", MODEL, "--method", METHOD, "--json")
YARDSTICK = (sys.executable, "-c", "import typer, rich.table; from pydantic import BaseModel")


def milliseconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = perf_counter()
    work()
    return 1000 * (perf_counter() - start)


def sweeps() -> None:
    """Print the time of a point of a large grid, beside that of an estimate of its own."""
    over = {"rank": [8, 16, 32, 64, 128], "seq_len": range(128, 128 * 101, 128), "micro_batch": [1, 2]}
    points = 5 * 100 * 2
    print(f"sweep({SWEPT}, {points} points), a point")
    for gpu in (None, "a100-80"):
        request = Request(model=SWEPT, gpu=gpu)
        quick = milliseconds(lambda request=request: sweep(request, over)) / points
        lengths = [request.model_copy(update={"seq_len": 1000 + 8 * step}) for step in range(RUNS)]
        alone = min(milliseconds(lambda asked=asked: estimate(asked)) for asked in lengths)
        print(f"  {f'on {gpu}' if gpu else 'without a GPU':<19} {quick:8.2f} ms ({alone / quick:.0f} times faster)")


def process(words: tuple[str, ...]) -> None:
    """Run a process to its end, with compiled files as an installed command has them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True, env=environment)


def estimates() -> None:
    """Print the times of `estimate()`."""
    request = Request(model=MODEL, method=METHOD, gpu="a100-80")
    print(f"estimate({MODEL}, {METHOD})")
    print(f"  first call          {milliseconds(lambda: estimate(request)):8.2f} ms")
    lengths = [request.model_copy(update={"seq_len": 1024 + 8 * step}) for step in range(RUNS)]
    fresh = [milliseconds(lambda asked=asked: estimate(asked)) for asked in lengths]
    print(f"  new sequence length {min(fresh):8.2f} ms (at most {max(fresh):.2f})")
    again = [milliseconds(lambda: estimate(request)) for _ in range(100)]
    print(f"  the same again      {min(again):8.2f} ms")
    report = estimate(request)
    print(f"  as JSON             {min(milliseconds(report.model_dump_json) for _ in range(20)):8.2f} ms")
    print(f"  what to change      {milliseconds(lambda: suggest_changes(request, report)):8.2f} ms")


def processes() -> None:
    """Print the times of whole processes; they take turns, so that a busy moment hits both."""
    process(COMMAND)
    process(YARDSTICK)
    ours, theirs = [], []
    for _ in range(RUNS):
        theirs.append(milliseconds(lambda: process(YARDSTICK)))
        ours.append(milliseconds(lambda: process(COMMAND)))
    print(f"process, least of {RUNS} runs")
    print(f"  peftplan estimate   {min(ours):8.1f} ms")
    print(f"  imports alone       {min(theirs):8.1f} ms (typer, rich.table, pydantic)")
    print(f"  ratio               {min(ours) / min(theirs):8.2f}")


if __name__ == "__main__":
    estimates()
    sweeps()
    processes()
