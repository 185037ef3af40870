"""Losses that avoid whole fp32 logits: fused with the output head (Liger), or upcast in chunks.

Sources: Liger-Kernel 0.8 ops/fused_linear_cross_entropy.py (gradients are made in the forward pass, one
chunk of tokens after another); torchtune 0.6 modules/loss/cross_entropy_loss.py and axolotl's
chunked_cross_entropy (logits whole in the compute type, upcast and reduced in eight pieces).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.errors import BadInput
from peftplan.memory.loss import LossOps
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.modules import Linear, Module
from peftplan.specs.tensors import Tensor

Grads = Sequence[Tensor | None]

NUM_CHUNKS = 8  # torchtune's and axolotl's default number of pieces


def _fused_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (saved[0], saved[1])  # scaled in place by the loss's own gradient


class FusedLossOps(LossOps):
    """Cross-entropy without whole logits in fp32."""

    def linear_cross_entropy(self, x: Tensor, head: Module, labels: Tensor) -> Tensor:
        """Liger's fused head and loss: `x` [batch, length, hidden] in, a scalar out, no logits kept."""
        if type(head) is not Linear or head.bias is not None:
            raise BadInput(
                "--loss fused needs a plain output head, and this one carries an adapter or a bias; "
                "leave the head out of --targets and --modules-to-save, or use --loss standard"
            )
        weight = head.weight
        hidden, tokens = x.shape[-1], x.numel // x.shape[-1]
        vocab = weight.shape[0]
        node = None
        if self.grad_enabled:
            self.nodes.append("loss backward done")
            node = self.link("FusedLinearCrossEntropy", _fused_backward, (), (x.edge, weight.edge))
        padded = self.new((x.shape[0], labels.shape[1] + 1), tokens + x.shape[0], INT64, "pad")
        grad_x = self.like(x, "zeros_like")
        trains = weight.edge is not None and node is not None
        grad_w = self.like(weight, "zeros_like") if trains else None
        losses = self.new((tokens,), tokens, FP32, "zeros")
        rows = min(_next_power_of_two(-(-tokens // -(-vocab // hidden))), tokens)
        dtype = self.autocast or x.dtype
        self._fused_chunk(rows, vocab, hidden, dtype, x, weight, grad_w)
        loss = self.new((), 1, FP32, "sum")
        del padded, losses
        if node is not None:
            self.save(node, (grad_x, grad_w))
        return self.attach(loss, node)

    def _fused_chunk(
        self, rows: int, vocab: int, hidden: int, dtype: Any, x: Tensor, weight: Tensor, grad_w: Any
    ) -> None:
        """The largest chunk; all chunks are alike and follow one another, so one stands for them."""
        chunk = self.cast_part(x, rows * hidden, dtype)
        dense = self.autocast_to(weight, self.autocast) if self.autocast is not None else weight
        logits = self.new((rows, vocab), rows * vocab, dtype, "chunk of logits")
        del chunk, dense
        if dtype is not x.dtype:  # torch.mm(out=) writes the slice directly where types agree
            part = self.new((rows, hidden), rows * hidden, dtype, "chunk gradient")
            del part
        if grad_w is not None and grad_w.dtype is not dtype:
            product = self.new(grad_w.shape, grad_w.numel, dtype, "weight gradient of a chunk")
            del product
        del logits

    def cast_part(self, x: Tensor, numel: int, dtype: Any) -> Tensor | None:
        """A slice of `x` in another type; None where it has that type and is a view."""
        if x.dtype is dtype:
            return None
        return self.new((numel,), numel, dtype, "_to_copy")

    def chunked_loss(self, logits: Tensor, labels: Tensor, shift: bool) -> Tensor:
        """Cross-entropy over pieces of the sequence: each is upcast, reduced, and its upcast freed."""
        batch, length, vocab = logits.shape
        if shift:
            padded = self.new((batch, length + 1), batch * (length + 1), INT64, "pad")
        if self.grad_enabled:
            self.nodes.append("loss backward done")
        pieces = min(NUM_CHUNKS, length)
        sizes = [length // pieces + (i < length % pieces) for i in range(pieces)]
        parts = self.split(logits, [(batch, size, vocab) for size in sizes])
        total = None
        while parts:
            part = self.to(parts.pop(0), FP32)
            rows = part.shape[0] * part.shape[1]
            targets = self.new((rows,), rows, INT64, "labels of a piece")
            loss = self.cross_entropy(part, targets, mark=False)
            total = loss if total is None else self.add(total, loss)
            del part, targets, loss
        assert total is not None
        if shift:
            del padded
        return self.mul_scalar(total, "div")


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
