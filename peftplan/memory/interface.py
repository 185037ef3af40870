"""The attention interface of transformers: what stands between a model's attention module and the kernels.

Sources: transformers 5.23 integrations/sdpa_attention.py (when heads are repeated), flash_attention.py and
modeling_flash_attention_utils.py (casts for the flash-attention package), eager_attention_forward as the
models write it (modeling_llama.py, modeling_gemma2.py); torch 2.13 LinearAlgebra.cpp (matmul folds batch and
heads). The flash-attention package itself was read, never run: flash_attn_interface.py, FlashAttnFunc, saves
queries, keys, values, its result, the log-sum-exp rows and the random state; its kernels are those that
torch carries, with the same buffers in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.errors import BadInput
from peftplan.memory.unpadded import UnpaddedOps
from peftplan.specs.formats import FP32, DType
from peftplan.specs.tensors import Tensor

Grads = Sequence[Tensor | None]


class InterfaceOps(UnpaddedOps):
    """`attend` in the three implementations: sdpa, eager, flash (the package)."""

    attention = "sdpa"
    padding = False  # the batch's attention mask has zeros

    def __init__(self, accumulating: bool = False) -> None:
        super().__init__(accumulating)
        self.attention_kernels: set[str] = set()
        # what the flash-attention package is handed in place of fp32, where autocast names no type
        self.load_dtype: DType | None = None
        # attention weights that the running block holds in a local variable until it returns
        self.block_weights: list[Tensor] = []
        # those of the last block, where blocks return them: the model's forward holds what a block returned
        # until the next one has
        self.handed_back: list[Tensor] = []

    def hand_back(self) -> None:
        """The block returns its attention weights beside its hidden states."""
        if self.recording is None:
            self.handed_back = self.block_weights[:]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        causal: bool = True,
        by_heads: bool = False,
        softcap: bool = False,
    ) -> Tensor:
        """[batch, heads, length, dim] in, [batch, length, heads, dim] out.

        `by_heads`: queries and keys lie head by head. `softcap`: scores pass through a tanh, which only
        the eager form writes out.
        """
        if self.attention == "eager":
            return self._eager(q, k, v, mask, dropout, by_heads, softcap)
        if self.attention == "flash":
            return self._flash_package(q, k, v, mask is not None, by_heads, dropout)
        heads, groups = q.shape[1], k.shape[1]
        repeats = heads != groups and not self._hands_groups(k, v, mask)
        if repeats:
            k, v = self.repeat_heads(k, heads), self.repeat_heads(v, heads)
        relays = self.behaviour.sdpa_contiguous
        if relays == "always" or (relays == "masked" and mask is not None):
            copied = repeats and groups > 1
            q = q if by_heads else self.relaid(q)
            k = k if by_heads or copied else self.relaid(k)
            v = v if copied else self.relaid(v)
            by_heads = True
        return self.sdpa(q, k, v, mask, dropout, causal, by_heads)

    def repeat_first(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values repeated by the attention class itself, as older releases do (some for flash too)."""
        does = self.behaviour
        if not (does.flash_repeats if self.attention == "flash" else does.attention_inline):
            return k, v
        return self.repeat_heads(k, q.shape[1]), self.repeat_heads(v, q.shape[1])

    def _hands_groups(self, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
        """Whether fewer heads of keys and values than of queries are handed to the kernel as they are."""
        narrow = k.shape[-1] == v.shape[-1] <= 256
        grouped = self.behaviour.grouped_sdpa
        return mask is None and (grouped == "always" or (grouped == "narrow" and narrow))

    def _eager(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        dropout: float,
        by_heads: bool,
        softcap: bool,
    ) -> Tensor:
        """Scores, perhaps capped, plus the mask; softmax in fp32, weights back in the queries' type."""
        heads, grouped = q.shape[1], 1 < k.shape[1] < q.shape[1]
        keys, values = self.repeat_heads(k, heads), self.repeat_heads(v, heads)
        shape = (q.shape[0], heads, q.shape[2], k.shape[2])
        copied = (not by_heads, not by_heads and not grouped)
        weights = self.mul_scalar(self.matmul(q, keys, shape, copied=copied))
        if softcap:
            weights = self.mul_scalar(weights, "div")
            weights = self.tanh(weights)
            weights = self.mul_scalar(weights)
        if mask is not None:
            weights = self.add(weights, mask)
        weights = self.to(self.softmax(weights, FP32), q.dtype)
        weights = self.dropout(weights, dropout)
        out = self.matmul(weights, values, (*shape[:3], v.shape[-1]), copied=(False, not grouped))
        self.block_weights.append(weights)
        return self.contiguous(out)

    def _flash_package(
        self, q: Tensor, k: Tensor, v: Tensor, padding: bool, by_heads: bool, dropout: float
    ) -> Tensor:
        """FlashAttnFunc, of inputs in 16 bits; heads are padded to a multiple of eight inside it."""
        dtype = self.autocast or self.load_dtype
        if q.dtype is FP32 and dtype is not None:
            q, k, v = self.to(q, dtype), self.to(k, dtype), self.to(v, dtype)
        dim, width = q.shape[-1], v.shape[-1]
        if q.dtype is FP32:
            raise BadInput(
                "--attention flash: the flash-attention package has no fp32 kernels; use a 16-bit base "
                "or --precision bf16-mixed, or take --attention sdpa"
            )
        if dim > 256:
            raise BadInput(
                f"--attention flash: the flash-attention package takes heads of up to 256 values, this model "
                f"has {dim}; take --attention sdpa"
            )
        if self.compute_capability < (8, 0):
            raise BadInput(
                "--attention flash: the flash-attention package runs on GPUs of compute capability 8.0 and later; "
                "take --attention sdpa"
            )
        if width != dim:
            v = self.pad_last(v, dim)
        if padding:
            out = self.flash_unpadded(q, k, v, by_heads)
            return out if width == dim else self.contiguous(self.slice(out, (*out.shape[:3], width)))
        if dim % 8:
            out = self._flash_padded(q, k, v, dropout)
        else:
            out = self.flash_kernel(q, k, v, dropout, package=True)
        if dim % 8 or width != dim:
            out = self.slice(out, (*q.shape[:3], width)) if width != dim else out
            return self.contiguous(out)
        return self.contiguous(out) if by_heads else out

    def _flash_padded(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        dim = q.shape[-1]
        node = self.link("FlashAttnFuncBackward", _flash_padded_backward, (), (q.edge, k.edge, v.edge), dim)
        with self.no_grad():
            q, k, v = (self.pad_last(x, dim + -dim % 8) for x in (q, k, v))
        out, saved = self.flash_outputs(q, k, dropout, package=True)
        if node is not None:
            self.save(node, (q, k, v, *saved))
        return self.attach(self.part(out, (*q.shape[:3], dim)), node)


def _flash_padded_backward(t: Any, g: Tensor, saved: Any, dim: int) -> Grads:
    shape = saved[0].shape
    padded = t.new(shape, prod(shape), g.dtype, "constant_pad_nd")
    grads = t.flash_gradients(*saved[:3])
    del padded
    return [t.part(x, (*x.shape[:3], dim)) for x in grads]
