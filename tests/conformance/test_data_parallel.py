"""Data parallel: the closed form's buckets against those that torch assigns in a trace."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request
from peftplan.engines import estimate

pytest.importorskip("transformers")

RUNS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-3.2-1b", "lora", {}),
    ("gpt2", "full", {"precision": "bf16-master"}),
    ("qwen2.5-0.5b", "lora", {"grad_accum": 2}),
    ("llama-3.2-1b", "qlora", {"loop": "trainer"}),
]


@pytest.mark.parametrize(("model", "method", "fields"), RUNS)
def test_closed_form_is_the_trace(model: str, method: str, fields: dict[str, Any]) -> None:
    """Every moment of a run on two GPUs is the same to the byte, and so are its buckets."""
    request = Request(model=model, method=method, seq_len=128, gpus=2, **fields)
    closed, traced = (
        estimate(request.model_copy(update={"engine": engine})).memory for engine in ("closed", "trace")
    )
    assert closed.moments == traced.moments
    names = [{node.name: node.bytes for node in memory.breakdown.children} for memory in (closed, traced)]
    assert names[0]["gradient buckets"] == names[1]["gradient buckets"] > 0
