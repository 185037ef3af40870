"""Losses that avoid whole fp32 logits: fused with the output head (Liger), or upcast in chunks.

Sources: Liger-Kernel 0.8 ops/fused_linear_cross_entropy.py (gradients are made in the forward pass, one
chunk of tokens after another); torchtune 0.6 modules/loss/ce_chunked_output_loss.py and axolotl's
chunked_cross_entropy (logits whole in the compute type, upcast and reduced in eight pieces; not compiled).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.errors import BadInput
from peftplan.memory.graph import APART
from peftplan.memory.loss import LossOps
from peftplan.specs.formats import BOOL, FP32, INT64, DType
from peftplan.specs.modules import Linear, Module
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

Grads = Sequence[Tensor | None]

NUM_CHUNKS = 8  # torchtune's and axolotl's default number of pieces


def rows_of_a_chunk(tokens: int, vocab: int, width: int) -> int:
    """Tokens that Liger's loss takes at once: about as many logits as there are hidden values."""
    share = -(-tokens // -(-vocab // width))
    return min(1 << (share - 1).bit_length(), tokens)


def _fused_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    t.mark("loss backward done")
    return (saved[0], saved[1])  # scaled in place by the loss's own gradient


class FusedLossOps(LossOps):
    """Cross-entropy without whole logits in fp32."""

    compute_capability: tuple[int, int]

    def linear_cross_entropy(self, x: Tensor, head: Module, labels: Tensor) -> Tensor:
        """Liger's fused head and loss: `x` [batch, length, hidden] in, a scalar out, no logits kept."""
        if type(head) is not Linear or head.bias is not None:
            raise BadInput(
                "--loss fused needs a plain output head, and this one carries an adapter or a bias; "
                "leave the head out of --targets and --modules-to-save, or use --loss standard"
            )
        weight = head.weight
        width, tokens = x.shape[-1], x.numel // x.shape[-1]
        vocab = weight.shape[0]
        node = None
        if self.grad_enabled:
            node = self.link("FusedLinearCrossEntropy", _fused_backward, (), (x.edge, weight.edge))
        padded, shifted = self._shift(labels)
        grad_x = self.like(x, "zeros_like", 0)
        grad_w = self.like(weight, "zeros_like", 0) if weight.edge is not None and node is not None else None
        losses = self.new((tokens,), tokens, FP32, "zeros", 0)
        counted = self.new((tokens,), tokens, BOOL, "ne", bytes_of(labels))
        self.workspace("sum", 8)
        rows = rows_of_a_chunk(tokens, vocab, width)
        alike = x.dtype is weight.dtype and self.autocast in (None, x.dtype)
        kept = self.new((rows, vocab), rows * vocab, x.dtype, "chunk of logits", APART) if alike else None
        for _ in range(min(2, -(-tokens // rows))):  # later chunks are like the second
            self._fused_chunk(rows, x, weight, grad_w, kept)
        dtype = kept.dtype if kept is not None else self.autocast or x.dtype
        for start in range(0, tokens, rows):
            self._chunk_launches(min(rows, tokens - start), x, weight, grad_w, dtype, alike)
        del kept
        loss = self.new((), 1, FP32, "sum", bytes_of(losses))
        del padded, shifted, losses, counted
        if node is not None:
            self.save(node, (grad_x, grad_w))
        return self.per_token(self.attach(loss, node))

    def _shift(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Labels moved by one token: padded, and a copy of what lies between where that is not one piece."""
        batch, length = labels.shape
        padded = self.new((batch, length + 1), batch * (length + 1), INT64, "constant_pad_nd")
        return padded, self.new((batch, length), batch * length, INT64, "clone") if batch > 1 else None

    def _chunk_launches(
        self, rows: int, x: Tensor, weight: Parameter, grad_w: Any, dtype: DType, alike: bool
    ) -> None:
        """What one chunk runs: a product, the loss and its gradient in place, products with that."""
        vocab, width = weight.shape
        size, num_flop = dtype.itemsize, 2 * rows * vocab * width
        part, logits, matrix = rows * width * size, rows * vocab * size, vocab * width * size
        wide_part = rows * width * x.dtype.itemsize
        if weight.dtype is not dtype:
            self.write("_to_copy", dtype, bytes_of(weight), matrix)
        if x.dtype is not dtype:
            self.write("_to_copy", dtype, wide_part, part)
        self.write("mm", dtype, part + matrix, logits, num_flop)
        self.write("liger_cross_entropy", dtype, logits + 8 * rows, logits + 4 * rows)
        self.write("mm", dtype, logits + matrix, part, num_flop)
        if not alike:
            self.write("copy_", x.dtype, part, wide_part)
        if grad_w is None:
            return
        if x.dtype is not dtype:
            self.write("_to_copy", dtype, wide_part, part)
        sums = bytes_of(grad_w)
        if dtype.itemsize == 4 or self.compute_capability < (8, 0):
            self.write("mm", dtype, logits + part, matrix, num_flop)
            self.write("add_", grad_w.dtype, matrix + sums, sums)
        else:
            self.write("addmm", dtype, logits + part + sums, sums, num_flop)

    def _fused_chunk(self, rows: int, x: Tensor, weight: Parameter, grad_w: Any, kept: Tensor | None) -> None:
        vocab, width = weight.shape
        if kept is None:
            dtype = self.autocast or x.dtype
            dense = part = None
            if weight.dtype is not dtype:  # a view's cast is not kept
                dense = self.new(weight.shape, weight.numel, dtype, "_to_copy", APART)
            if x.dtype is not dtype:
                part = self.new((rows, width), rows * width, dtype, "_to_copy", APART)
            logits = self.new((rows, vocab), rows * vocab, dtype, "chunk of logits", APART)
            del part, dense
            matrix = self.autocast_to(weight, dtype) if weight.dtype is not dtype else None
            product = self.new((rows, width), rows * width, dtype, "chunk gradient", APART)
            del product, matrix
        else:
            logits, dtype = kept, kept.dtype
        if grad_w is None:
            return
        part = self.new((rows, width), rows * width, dtype, "_to_copy", APART) if x.dtype is not dtype else None
        if dtype.itemsize == 4 or self.compute_capability < (8, 0):  # else multiplied into the sum
            product = self.new(grad_w.shape, grad_w.numel, dtype, "weight gradient of a chunk", APART)
            wide = self.new(grad_w.shape, grad_w.numel, FP32, "_to_copy", APART) if dtype is not FP32 else None
            del product, wide
        del part, logits

    def chunked_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over pieces of the sequence: each is upcast, reduced, and its upcast freed."""
        batch, length, vocab = logits.shape
        held = self._shift(labels)
        mask = self.new((batch, length), batch * length, BOOL, "ne")
        count = self.new((), 1, INT64, "sum")
        longest = -(-length // min(NUM_CHUNKS, length))
        sizes = [min(longest, length - start) for start in range(0, length, longest)]
        parts = self.split(logits, [(batch, size, vocab) for size in sizes])
        apart = [batch > 1 and size > 1 for size in sizes]  # several sequences' tokens do not lie side by side
        targets = [
            self.new((batch * size,), batch * size, INT64, "clone") if copied else held[1] or held[0]
            for size, copied in zip(sizes, apart)
        ]
        del mask
        parts = [self.contiguous(part) if copied else part for part, copied in zip(parts, apart)]
        total = None
        for number, (part, wanted) in enumerate(zip(parts, targets)):
            loss = self.cross_entropy(self.to(part, FP32), wanted, mark=number == 0)
            total = self.add_scalar(loss) if total is None else self.add_in_place(total, loss)
            del loss
        assert total is not None
        return self.divide(total, count) if self.num_tokens is None else self.per_token(total)
