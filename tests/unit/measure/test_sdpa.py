"""scaled_dot_product_attention as a GPU runs it: which kernel is taken, and what it is handed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from peftplan.measure.trace.attention import Attention  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32


def heads(count: int, dim: int, dtype: Any, length: int = 64) -> Any:
    """[2, count, length, dim] on meta, asking for a gradient."""
    return torch.empty((2, count, length, dim), dtype=dtype, device="meta", requires_grad=True)


@pytest.mark.parametrize(
    ("dtype", "kv_heads", "dim", "masked", "capability", "kernel"),
    [
        (BF16, 4, 64, False, (8, 0), "flash"),
        (BF16, 2, 64, False, (8, 0), "flash"),
        (BF16, 4, 64, False, (7, 5), "efficient"),
        (BF16, 4, 320, False, (8, 0), "efficient"),
        (BF16, 4, 64, True, (8, 0), "efficient"),
        (BF16, 2, 64, True, (8, 0), "math"),
        (FP32, 4, 64, False, (8, 0), "efficient"),
        (FP32, 2, 64, False, (8, 0), "math"),
        (BF16, 4, 66, True, (8, 0), "math"),
    ],
)
def test_the_kernel(
    dtype: Any, kv_heads: int, dim: int, masked: bool, capability: tuple[int, int], kernel: str
) -> None:
    """flash for 16 bits without a mask; memory-efficient for as many heads of keys as of queries; else plain."""
    attention = Attention(capability, "meta")
    query, key, value = heads(4, dim, dtype), heads(kv_heads, dim, dtype), heads(kv_heads, dim, dtype)
    mask = torch.ones((2, 1, 64, 64), dtype=torch.bool, device="meta") if masked else None
    out = attention(query, key, value, attn_mask=mask, enable_gqa=kv_heads != 4)
    assert attention.kernels == {kernel}
    assert (out.shape, out.dtype) == (query.shape, dtype)
    out.sum().backward()
    assert key.grad.shape == key.shape


def test_a_causal_mask_over_more_keys_than_queries_takes_the_plain_form() -> None:
    """The flash kernel would align it with the other corner."""
    attention = Attention((8, 0), "meta")
    query, key = heads(4, 64, BF16, length=16), heads(4, 64, BF16)
    attention(query, key, key, is_causal=True)
    assert attention.kernels == {"math"}


def test_odd_heads_are_padded_for_the_flash_kernel() -> None:
    """To a multiple of 8 values, and the result is cut again."""
    attention = Attention((8, 0), "meta")
    query = heads(4, 20, BF16)
    out = attention(query, query, query)
    assert (out.shape[-1], out.stride(-2)) == (20, 24)
    assert attention.kernels == {"flash"}


def test_autocast_casts_the_arguments() -> None:
    """fp32 becomes bf16 before the choice, and the casts come from value to query."""
    attention = Attention((8, 0), "cpu")
    query, key, value = (heads(4, dim, FP32) for dim in (64, 64, 64))
    casts: list[int] = []
    names = {id(query): 0, id(key): 1, id(value): 2}

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default:
                casts.append(names[id(args[0])])
            return func(*args, **kwargs or {})

    with torch.autocast("cpu", dtype=BF16), Casts():
        out = attention(query, key, value)
    assert (out.dtype, attention.kernels, casts) == (BF16, {"flash"}, [2, 1, 0])


@pytest.mark.parametrize("causal", [False, True])
def test_the_plain_form_computes_what_torch_computes(causal: bool) -> None:
    """Values and gradients on real tensors, with a mask added in place, are torch's own."""
    torch.manual_seed(0)
    given = [torch.randn(2, count, 16, 8, requires_grad=True) for count in (4, 2, 2)]
    mask = None if causal else torch.rand(2, 1, 16, 16) > 0.3
    wanted = functional.scaled_dot_product_attention(*given, attn_mask=mask, is_causal=causal, enable_gqa=True)
    attention = Attention((8, 0), "cpu")
    found = attention(*given, attn_mask=mask, is_causal=causal, enable_gqa=True)
    assert attention.kernels == {"math"}
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.square().sum(), given) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_torchs_function_comes_back() -> None:
    """It is replaced while a trace runs, also when that fails."""
    original = functional.scaled_dot_product_attention
    attention = Attention((8, 0), "meta")

    def fail() -> None:
        with attention.installed():
            assert functional.scaled_dot_product_attention == attention.__call__
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert functional.scaled_dot_product_attention is original
