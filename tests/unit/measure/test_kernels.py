"""Operations whose CUDA kernels take memory that fake tensors do not show: what is recorded beside them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peftplan.measure.trace.kernels import cuda_kernels  # noqa: E402
from peftplan.measure.trace.recording import BACKWARD, FORWARD, KERNEL  # noqa: E402
from peftplan.measure.trace.tracker import Tracker  # noqa: E402
from peftplan.memory.workspaces.attention import flash_backward_sizes  # noqa: E402

A100 = (8, 0)


def watching(capability: tuple[int, int] = A100) -> Tracker:
    """A tracker of meta tensors with the kernels of a GPU."""
    run = lambda func, args, kwargs: func(*args, **kwargs)  # noqa: E731
    return Tracker("meta", cuda_kernels(capability), 0, lambda *_: None, run)


def recorded(tracker: Tracker, word: str) -> list[tuple[str, int]]:
    """Category and bytes of what operations of this name made."""
    recording = tracker.recording
    return [
        (recording.text(recording.categories, i), size)
        for i, size in enumerate(recording.sizes)
        if word in recording.text(recording.operations, i)
    ]


def test_flash_attention_takes_buffers_in_backward() -> None:
    """After its three gradients, by the table: row sums, the queries' gradient in fp32, with grouped heads more."""
    tracker = watching()
    query, key, value = (
        torch.empty((2, count, 64, 16), dtype=torch.bfloat16, device="meta", requires_grad=True)
        for count in (4, 2, 2)
    )
    with tracker:
        tracker.enter_phase(FORWARD)
        out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)[0]
        tracker.enter_phase(BACKWARD)
        out.backward(torch.empty_like(out))
    kept = [size for category, size in recorded(tracker, "flash_attention_backward") if category != KERNEL]
    taken = [size for category, size in recorded(tracker, "flash_attention_backward") if category == KERNEL]
    assert kept == [2 * count * 64 * 16 * 2 for count in (4, 2, 2)]
    assert taken == [size for size in flash_backward_sizes(2, 4, 2, 64, 64, 16, 2) if size]
    assert len(taken) > 2


def test_the_efficient_kernels_random_numbers_are_on_the_host() -> None:
    """Of its four results only the output and the row sums are memory of the GPU."""
    tracker = watching()
    query = torch.empty((2, 4, 64, 16), device="meta")
    with tracker:
        held = torch.ops.aten._scaled_dot_product_efficient_attention(query, query, query, None, True)
    assert [size for _, size in recorded(tracker, "efficient_attention")] == [2 * 4 * 64 * 16 * 4, 2 * 4 * 64 * 4]
    assert len(held) == 4


bitsandbytes = pytest.importorskip("bitsandbytes")


def multiply(tracker: Tracker, rows: int, nested: bool) -> Any:
    """One product of `rows` bf16 rows with an NF4 weight of 128 x 256."""
    with torch.device("meta"):
        x = torch.empty((rows, 256), dtype=torch.bfloat16)
        weight = torch.empty((128 * 256 // 2, 1), dtype=torch.uint8)
        scales = torch.empty(128 * 256 // 64)
        more: dict[str, Any] = {}
        if nested:
            more = {
                "absmax_8bit": torch.empty(512, dtype=torch.uint8),
                "absmax_code": torch.empty(256),
                "absmax_offset": torch.empty(()),
            }
    with tracker:
        return torch.ops.bitsandbytes.gemm_4bit(x, weight, [128, 256], scales, 64, "nf4", **more)


@pytest.mark.parametrize("nested", [False, True])
def test_many_rows_dequantise_the_weight(nested: bool) -> None:
    """The scales twice in fp32 where they are quantised, the weight in the type of the rows, then the product."""
    tracker = watching()
    out = multiply(tracker, 2048, nested)
    sizes = [size for _, size in recorded(tracker, "gemm_4bit")]
    assert sizes == [512 * 4] * (2 * nested) + [128 * 256 * 2, 2048 * 128 * 2]
    assert tracker.live_bytes == out.numel() * 2


def test_a_single_row_is_multiplied_with_the_packed_weight() -> None:
    """Nothing is made but the product."""
    tracker = watching()
    multiply(tracker, 1, nested=True)
    assert [size for _, size in recorded(tracker, "gemm_4bit")] == [128 * 2]


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_rows_in_one_byte(threshold: float) -> None:
    """Scales and bytes stay; looking for outliers takes a copy and a mask meanwhile."""
    tracker = watching()
    x = torch.empty((32, 64), dtype=torch.float16, device="meta")
    with tracker:
        made = torch.ops.bitsandbytes.int8_vectorwise_quant(x, threshold)
    assert [tuple(part.shape) for part in made[:2]] == [(32, 64), (32,)]
    assert (made[2] is None) == (threshold == 0.0)
    assert tracker.live_bytes == 32 * 64 + 32 * 4
    looked = [32 * 64 * 2, 32 * 64, 1, 1] if threshold else []
    assert tracker.recording.sizes == [32 * 4, 32 * 64, *looked]


@pytest.mark.parametrize(("dtype", "casts"), [(torch.float16, []), (torch.bfloat16, [32 * 16 * 2])])
def test_an_8_bit_product(dtype: Any, casts: list[int]) -> None:
    """Integers of 4 bytes, then fp16, then the type asked for where it is another."""
    tracker = watching()
    with torch.device("meta"):
        x, weight = torch.empty((32, 64), dtype=torch.int8), torch.empty((16, 64), dtype=torch.int8)
        rows, columns = torch.empty(32), torch.empty(16)
    with tracker:
        out = torch.ops.bitsandbytes.int8_scaled_mm(x, weight, rows, columns, None, dtype)
    assert (tuple(out.shape), out.dtype) == ((32, 16), dtype)
    assert tracker.recording.sizes == [32 * 16 * 4, 32 * 16 * 2, *casts]
    assert tracker.live_bytes == 32 * 16 * 2
