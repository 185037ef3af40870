"""Fused kernels: chains of one module become one launch; adapters stay eager unless compiled."""

from __future__ import annotations

import pytest

from peftplan import Report, Request, estimate
from peftplan.cost.fusion import Launch, fuse
from peftplan.planner import settle
from peftplan.resolve import resolve
from peftplan.specs.work import total_bytes, total_flop


def launch(op: str, module: str = "norm", read: int = 2000, written: int = 2000, phase: str = "forward") -> Launch:
    return Launch(phase, op, module, "bf16", 0, read, written)


def fused(*launches: Launch) -> list[Launch]:
    return list(fuse(launches, lambda one: one.num_flop == 0))


def test_a_chain_reads_once_and_writes_once() -> None:
    """A norm's casts, powers, means and products become one launch of its first input and its last output."""
    chain = (
        launch("_to_copy", written=4000),
        launch("pow", read=4000, written=4000),
        launch("mean", read=4000, written=1),
    )
    assert fused(*chain, launch("mul")) == [Launch("forward", "fused", "norm", "bf16", 0, 2000, 2000)]


def test_backward_reads_its_saved_input_again() -> None:
    """What eager kernels save between them, a fused one computes anew from its input."""
    (one,) = fused(launch("mul", phase="backward"), launch("sum", phase="backward"))
    assert one.read == 4000


def test_products_modules_phases_and_sizes_end_a_chain() -> None:
    """Queries and keys are rotated by two kernels, and nothing is fused across a product or a module."""
    product = Launch("forward", "mm", "norm", "bf16", 1000, 2000, 2000)
    assert len(fused(launch("mul"), product, launch("mul"))) == 3
    assert len(fused(launch("mul"), launch("mul", module="act"))) == 2
    assert len(fused(launch("mul"), launch("mul", phase="backward"))) == 2
    queries, keys = [launch("mul"), launch("neg")], [launch("mul", read=400, written=400) for _ in range(2)]
    assert [one.written for one in fused(*queries, *keys)] == [2000, 400]


def test_a_launch_alone_stays_as_it_is() -> None:
    """A layer norm that is one kernel already gains nothing."""
    alone = launch("native_layer_norm")
    assert fused(alone) == [alone]


def report(kernels: str, **options: object) -> Report:
    return estimate(Request(model="llama-3-8b", gpu="a100-80", kernels=kernels, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_fused_kernels_are_faster_and_change_no_memory(method: str) -> None:
    """From eager to fused to compiled a step takes less time; products and bytes held are the same."""
    eager, fused_, compiled = (report(kernels, method=method) for kernels in ("eager", "fused", "compiled"))
    assert eager.time is not None
    assert fused_.time is not None
    assert compiled.time is not None
    assert compiled.time.step_s <= fused_.time.step_s < eager.time.step_s
    assert eager.time.terms["matmul"] == fused_.time.terms["matmul"]
    assert eager.memory == fused_.memory == compiled.memory
    assert (compiled.time.step_s < fused_.time.step_s) is (method != "full")


def test_fusing_leaves_the_flop_and_takes_bytes_away() -> None:
    """All that is fused are launches without flop."""
    works = []
    for kernels in ("eager", "fused"):
        plan = resolve(Request(model="llama-3-8b", method="lora", gpu="a100-80", kernels=kernels))
        settled = settle(plan)
        report(kernels, method="lora")
        works.append(settled.works[kernels])
    assert total_flop(works[0]) == total_flop(works[1])
    assert total_bytes(works[1]) < 0.8 * total_bytes(works[0])
