"""What torch.cuda answers about the GPU that is pretended: code asks how many there are, and of which kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch


@contextmanager
def pretended(compute_capability: tuple[int, int]) -> Iterator[None]:
    """One GPU of this compute capability while the block runs; nothing waits for it, and it never fills up."""
    about = SimpleNamespace(
        name="pretended GPU",
        major=compute_capability[0],
        minor=compute_capability[1],
        total_memory=1 << 62,
        multi_processor_count=1,
        warp_size=32,
    )
    answers: dict[str, Any] = {
        "_lazy_init": None,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": compute_capability,
        "get_device_properties": about,
        "get_device_name": about.name,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "mem_get_info": (about.total_memory, about.total_memory),
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "synchronize": None,
        "set_device": None,
        "empty_cache": None,
    }
    before = {name: getattr(torch.cuda, name) for name in answers if hasattr(torch.cuda, name)}
    for name in before:
        setattr(torch.cuda, name, lambda *_, _answer=answers[name], **__: _answer)
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(torch.cuda, name, original)
