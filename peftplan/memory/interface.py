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
from peftplan.memory.efficient import keys_back
from peftplan.memory.packed import PackedOps
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


class InterfaceOps(PackedOps):
    """`attend` in the three implementations: sdpa, eager, flash (the package)."""

    attention = "sdpa"
    padding = False  # the batch's attention mask has zeros
    kept_types: tuple[DType, DType] = (BF16, BF16)  # in which attention gets keys and values, as a cache keeps them
    returns_cache = False
    prefix_length = 0  # positions that keys and values have before those of the tokens

    def __init__(self, accumulating: bool = False) -> None:
        super().__init__(accumulating)
        self.attention_kernels: set[str] = set()
        self.prefixes: list[tuple[Tensor, ...]] = []  # by layer
        self.cached: list[Tensor] = []  # what the output's cache holds
        self.kept_to_loss: list[Tensor] = []
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

    def split_heads(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A projection's result seen head by head; its gradient lies head by head, and is copied back."""
        return self.regrouped(x, shape) if shape[1] > 1 and shape[2] > 1 else self.view(x, shape)

    def split_values(self, x: Tensor, shape: tuple[int, ...], heads: int, mask: Tensor | None) -> Tensor:
        """Values seen head by head: kernels hand their gradient back token by token, unless heads are repeated."""
        lies = self.view(x, shape)
        if self.attention == "eager":
            by_heads = True
        elif self.attention == "flash":
            by_heads = heads != shape[1] and self.behaviour.flash_repeats
        else:
            by_heads = heads != shape[1] and not self._hands_groups(lies, lies, mask)
        return self.split_heads(x, shape) if by_heads else lies

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
        window: int | None = None,
        split: bool = False,
    ) -> Tensor:
        """[batch, heads, length, dim] in, [batch, length, heads, dim] out.

        `by_heads`: queries and keys lie head by head. `split`: they come of `split_heads`, where their gradients
        are copied. `softcap`: scores pass through a tanh, which only
        the eager form writes out. `window`: how many keys a query sees, which only the flash-attention package
        is told; to the others it is a mask.
        """
        self.kept_types = k.dtype, v.dtype
        if self.attention == "eager":
            return self._eager(q, k, v, mask, dropout, by_heads, softcap, split)
        if self.attention == "flash":
            back = keys_back(q, k, causal, window)
            return self._flash_package(q, k, v, mask is not None, by_heads, dropout, back)
        heads, groups = q.shape[1], k.shape[1]
        repeats = heads != groups and not self._hands_groups(k, v, mask)
        if repeats:
            k, v = self.repeat_heads(k, heads), self.repeat_heads(v, heads)
        relays = self.behaviour.sdpa_contiguous
        if relays == "always" or (relays == "masked" and mask is not None):
            copied = repeats and groups > 1
            relaid = self.contiguous if split else self.relaid
            q = q if by_heads else relaid(q)
            k = k if by_heads or copied else relaid(k)
            v = v if copied else relaid(v)
            by_heads = True
        return self.sdpa(q, k, v, mask, dropout, causal, by_heads)

    def put_before(
        self, prefixes: Sequence[tuple[Tensor, Tensor]], length: int, returns_cache: bool = False
    ) -> None:
        """Keys and values of each layer that stand before its own: so many positions.

        The cache that holds them ends with the loss, or where the model returns it with its output.
        """
        self.prefixes, self.prefix_length, self.returns_cache = list(prefixes), length, returns_cache

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values behind those put before them, which a cache keeps."""
        if not self.prefix_length:
            return k, v
        before = [*self.prefixes[self.layer]]
        self.prefixes[self.layer] = ()
        length = self.prefix_length + k.shape[2]
        k = self.cat((before.pop(0), k), (*k.shape[:2], length, k.shape[3]))
        v = self.cat((before.pop(0), v), (*v.shape[:2], length, v.shape[3]))
        (self.cached if self.returns_cache else self.kept_to_loss).extend((k, v))
        return k, v

    def repeat_first(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values repeated by the attention class itself, as older releases do (some for flash too)."""
        k, v = self.extended(k, v)
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
        split: bool,
    ) -> Tensor:
        """Scores, perhaps capped, plus the mask; softmax in fp32, weights back in the queries' type."""
        heads, grouped = q.shape[1], 1 < k.shape[1] < q.shape[1]
        keys, values = self.repeat_heads(k, heads), self.repeat_heads(v, heads)
        shape = (q.shape[0], heads, q.shape[2], k.shape[2])
        copied = (not by_heads, not by_heads and not grouped)
        weights = self.mul_scalar(self.matmul(q, keys, shape, copied=copied, back=not split))
        if softcap:
            weights = self.mul_scalar(weights, "div")
            weights = self.tanh(weights)
            weights = self.mul_scalar(weights)
        if mask is not None:
            weights = self.add(weights, mask)
        weights = self.to(self.softmax(weights, FP32), q.dtype)
        weights = self.dropout(weights, dropout)
        out = self.matmul(weights, values, (*shape[:3], v.shape[-1]), copied=(False, not grouped), back=not split)
        if shape[0] > 1:
            out = self.regrouped(out, out.shape)
        self.block_weights.append(weights)
        return self.contiguous(out)

    def _flash_package(
        self, q: Tensor, k: Tensor, v: Tensor, padding: bool, by_heads: bool, dropout: float, back: int
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
        packed = self.positions is not None and self.notes_starts()
        if padding or packed:
            out = (self.flash_packed if packed else self.flash_unpadded)(q, k, v, by_heads, back)
            return out if width == dim else self.contiguous(self.slice(out, (*out.shape[:3], width)))
        if dim % 8:
            out = self._flash_padded(q, k, v, dropout, back)
        else:
            out = self.flash_kernel(q, k, v, dropout, back, package=True)
        if dim % 8 or width != dim:
            out = self.slice(out, (*q.shape[:3], width)) if width != dim else out
            return self.contiguous(out)
        return self.contiguous(out) if by_heads else out

    def _flash_padded(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, back: int) -> Tensor:
        dim, edges = q.shape[-1], (q.edge, k.edge, v.edge)
        node = self.link("FlashAttnFuncBackward", _flash_padded_backward, (), edges, (dim, back))
        with self.no_grad():
            q, k, v = (self.pad_last(x, dim + -dim % 8) for x in (q, k, v))
        out, saved = self.flash_outputs(q, k, v, dropout, back, package=True)
        if node is not None:
            self.save(node, (q, k, v, *saved))
        return self.attach(self.part(out, (*q.shape[:3], dim)), node)


def _flash_padded_backward(t: Any, g: Tensor, saved: Any, context: tuple[int, int]) -> Grads:
    shape, (dim, back) = saved[0].shape, context
    padded = t.new(shape, prod(shape), g.dtype, "constant_pad_nd", bytes_of(g))
    grads = t.flash_gradients(*saved[:3], back)
    del padded
    return [t.part(x, (*x.shape[:3], dim)) for x in grads]
