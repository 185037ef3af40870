"""Work of generation: what attention reads, experts that are visited, adapters that are gathered."""

from __future__ import annotations

import pytest

from peftplan.catalog import find_gpu
from peftplan.cost.serving import (
    Gather,
    Rows,
    cache_work,
    decode_time,
    gathered_work,
    in_turns,
    num_launches,
    split_seconds,
)
from peftplan.memory.kv_cache import CachedLayers, CacheForm, read_bytes, read_flop
from peftplan.methods.bypass import Pair
from peftplan.specs.cache import cached_heads
from peftplan.specs.work import Kernel, total_bytes, total_flop

LAYERS = (CachedLayers(cached_heads(8, 128, 32), 4), CachedLayers(cached_heads(8, 128, 32, window=100), 2))
HOW = Gather(itemsize=2, scale=1.0, dtype="bf16", missed=0.0)
A100 = find_gpu("a100-80")


def test_a_pool_is_read_once_by_every_sequence() -> None:
    """Bytes and flop are those of one sequence's attention, times the sequences."""
    form = CacheForm(2, 16)
    work = cache_work(LAYERS, form, Rows(tokens=5, context=700), "bf16")
    assert total_bytes(work) == 5 * read_bytes(LAYERS, form, 700)
    assert total_flop(work) == 5 * read_flop(LAYERS, 700)


def test_a_dynamic_cache_is_copied_beside_that() -> None:
    """Keys and values are read and written once more, and read."""
    form = CacheForm(2)
    work = cache_work(LAYERS, form, Rows(tokens=5, context=700), "bf16")
    assert total_bytes(work) == 3 * 5 * read_bytes(LAYERS, form, 700)


def test_gathered_bytes_are_punicas() -> None:
    """FLOP = s hi ho 2 and I/O = (s (hi + ho) + n hi ho) 2 for each of both products, rows between them in fp32."""
    tokens, distinct, hidden, rank = 32, 7, 4096, 16
    work = gathered_work((Pair(hidden, rank, hidden, 1),), tokens, distinct, HOW)
    assert num_launches(work) == 2
    assert total_flop(work) == 2 * (tokens * hidden * rank * 2)
    between = 2 * tokens * rank * 4
    assert work[0].num_bytes == distinct * hidden * rank * 2 + tokens * hidden * 2 + between // 2
    # the second adds to what the linear gave: it reads that, too
    assert work[1].num_bytes == distinct * hidden * rank * 2 + 2 * tokens * hidden * 2 + between // 2


def test_experts_adapters_are_read_where_tokens_go() -> None:
    """One token of one adapter visits 2 of 8 experts; many visit them all."""
    how = Gather(itemsize=2, scale=1.0, dtype="bf16", missed=0.75)
    pair = Pair(64, 8, 64, 1, experts=8, of_linear=False)
    weights = [
        sum(row.bytes_read for row in gathered_work((pair,), tokens, 1, how)) - 2 * rows * 64 * 2 - rows * 8 * 4
        for tokens, rows in ((1, 2), (1000, 2000))
    ]
    assert weights == [2 * 2 * 64 * 8 * 2, 8 * 2 * 64 * 8 * 2]


def test_a_stated_size_scales_what_is_read() -> None:
    """An adapter stated twice as large is read twice."""
    pair = Pair(4096, 16, 4096, 1)
    once, twice = (
        total_bytes(gathered_work((pair,), 1, 10, Gather(2, scale, "bf16", 0.0))) for scale in (1.0, 2.0)
    )
    assert twice - once == 10 * 2 * 4096 * 16 * 2


def test_peft_takes_turns() -> None:
    """The adapter's launches once for each, and six more for its rows; the base's stay."""
    work = tuple(Kernel("forward", "matmul", part, "mm", "bf16", 2, 2, 2, 3) for part in ("base", "adapter"))
    assert in_turns(work, 1, 3, "bf16") is work
    assert num_launches(in_turns(work, 4, 3, "bf16")) == 3 + 4 * 3 + 6 * 4 * 3


@pytest.mark.parametrize("replayed", [True, False])
def test_parts_of_a_step_sum_to_it(replayed: bool) -> None:
    """Weights, cache, adapters, the rest and the host's time are the step."""
    assert A100 is not None
    work = (
        Kernel("forward", "matmul", "base", "mm", "bf16", 2 * 10**9, 10**9, 10**6, 32),
        Kernel("forward", "elementwise", "other", "add", "bf16", 0, 100, 100, 500),
        *cache_work(LAYERS, CacheForm(2, 16), Rows(8, 4000), "bf16"),
        *gathered_work((Pair(4096, 16, 4096, 32),), 8, 8, HOW),
    )
    step = decode_time(work, A100, replayed)
    assert step is not None
    split = split_seconds(work, step, A100, replayed)
    assert sum(split.terms.values()) == pytest.approx(step.step_s)
    assert ("launches" in split.terms) is not replayed
    assert split.bound == "memory bandwidth"
