"""Whatever is varied over whatever request: a sweep says of each point what an estimate says of it."""

from __future__ import annotations

from itertools import product
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftplan import Request, estimate, planner, sweep
from peftplan.errors import PeftplanError

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODELS = ["gpt2", "t5-small", "bert-base-uncased", "llama-3.2-1b", "pythia-160m", "opt-125m"]
AXES: dict[str, Any] = {
    "micro_batch": st.integers(1, 16),
    "seq_len": st.integers(1, 1024),
    "rank": st.integers(1, 128),
    "method": st.sampled_from(["full", "lora", "qlora"]),
    "checkpointing": st.booleans(),
    "loss": st.sampled_from(["standard", "chunked", "fused"]),
    "attention": st.sampled_from(["sdpa", "eager", "flash"]),
    "optimizer": st.sampled_from(["adamw", "adamw-8bit", "sgd", "adafactor"]),
    "grad_accum": st.integers(1, 3),
    "loop": st.sampled_from(["plain", "trainer"]),
    "padding": st.booleans(),
    "gpu": st.sampled_from(["t4", "rtx-4090", "a100-80gb", "h100"]),
    "kernels": st.sampled_from(["eager", "fused", "compiled"]),
}


@st.composite
def grids(draw: st.DrawFn) -> tuple[Request, dict[str, list[Any]]]:
    """A request, and up to three fields with up to three values each; lengths and batches among them."""
    names = draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=2, unique=True))
    sizes = draw(st.sampled_from(["seq_len", "micro_batch"]))
    over = {name: draw(st.lists(AXES[name], min_size=1, max_size=2, unique=True)) for name in names}
    over[sizes] = draw(st.lists(AXES[sizes], min_size=2, max_size=4, unique=True))
    fixed = {name: draw(AXES[name]) for name in ("method", "checkpointing", "gpu") if name not in over}
    return Request(model=draw(st.sampled_from(MODELS)), **{"seq_len": 64, **fixed}), over


@given(grids())
@FEW
def test_rows_equal_estimates(grid: tuple[Request, dict[str, list[Any]]]) -> None:
    """Memory with its breakdown, method, card, time: equal; and refused where an estimate refuses."""
    request, over = grid
    planner._KEPT.clear()
    points = [request.model_copy(update=dict(zip(over, values))) for values in product(*over.values())]
    try:
        rows = sweep(request, over, every_block=True, breakdown=True).rows
    except PeftplanError as error:
        whole = str(error)
        rows = ()
    else:
        whole = None
    if whole is not None:  # every point is refused, for one reason
        assert {refusal(point) for point in points} == {whole}
    for row in rows:
        planner._KEPT.clear()
        asked = request.model_copy(update=row.point)
        if row.error is not None:
            assert refusal(asked) == row.error
            continue
        report = estimate(asked)
        assert row.memory is not None
        assert row.memory.model_dump() == report.memory.model_dump()
        assert (row.method, row.gpu, row.time) == (report.method, report.gpu, report.time)


def refusal(request: Request) -> str | None:
    """What an estimate says when it refuses a request."""
    try:
        estimate(request)
    except PeftplanError as error:
        return str(error)
    return None
