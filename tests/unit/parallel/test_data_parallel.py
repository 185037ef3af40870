"""Several GPUs, each with the whole model: gradient buckets and what NCCL holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftplan import Request, estimate
from peftplan.errors import BadInput
from peftplan.parallel.data_parallel import BUCKET, FIRST_BUCKET, bucket_sizes, communication_bytes

GRADIENTS = st.lists(st.tuples(st.sampled_from(["fp32", "bf16"]), st.integers(1, 9 << 20)), max_size=40)


@settings(deadline=None)  # the first example imports torch
@given(GRADIENTS)
def test_buckets_are_those_of_torch(gradients: list[tuple[str, int]]) -> None:
    """Whatever the gradients, their buckets hold what torch's own assignment puts into each."""
    torch = pytest.importorskip("torch")
    assign = pytest.importorskip("torch.distributed")._compute_bucket_assignment_by_size
    types = {"fp32": (torch.float32, 4), "bf16": (torch.bfloat16, 2)}
    counts = [(kind, numel // types[kind][1] + 1) for kind, numel in gradients]
    like = [torch.empty(numel, dtype=types[kind][0], device="meta") for kind, numel in counts]
    groups = assign(like, [FIRST_BUCKET, BUCKET])[0] if like else []
    expected = sorted(sum(like[n].numel() * like[n].element_size() for n in group) for group in groups)
    assert sorted(bucket_sizes((kind, numel * types[kind][1]) for kind, numel in counts)) == expected


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_buckets_take_what_the_gradients_take(method: str) -> None:
    """On several GPUs the standing state grows by the gradients' bytes, whatever the number of GPUs."""
    one, two, eight = (
        estimate(Request(model="gpt2", method=method, seq_len=64, gpus=n, gpu="a100-80gb")) for n in (1, 2, 8)
    )
    names = {node.name: node.bytes for node in two.memory.breakdown.children}
    assert names["gradient buckets"] == two.memory.resident.gradients == one.memory.resident.gradients
    grown = two.memory.moments["forward_end"] - one.memory.moments["forward_end"]
    assert names["gradient buckets"] <= grown < names["gradient buckets"] + 64 * 512
    assert two.memory.moments == eight.memory.moments
    assert two.request["sharding"] == "ddp"


def test_nccl_is_told_apart_from_torch() -> None:
    """The process holds NCCL's buffers beside what torch reserves, more where GPUs are linked by a switch."""
    one, eight = (estimate(Request(model="gpt2", gpus=n, gpu="a100-80gb")).memory for n in (1, 8))
    low, middle, high = communication_bytes(8, switched=True)
    assert eight.device_bytes - eight.peak_reserved_bytes == one.device_bytes - one.peak_reserved_bytes + middle
    assert 0 < low < middle < high
    assert communication_bytes(8, switched=False)[1] < middle
    assert "NCCL" in eight.interval.basis
    assert "NCCL" not in one.interval.basis


def test_ddp_wants_several_gpus() -> None:
    """Spreading a batch over one GPU is refused."""
    with pytest.raises(BadInput, match="--gpus is 1"):
        estimate(Request(model="gpt2", sharding="ddp"))
