"""The loss: from the head's output to a scalar, and the way back to the head.

Sources: transformers 5.23 loss/loss_utils.py (ForCausalLMLoss: upcast, pad the labels, no copy of the
logits), torch 2.13 LossNLL.cpp and SoftMax.cu; Liger-Kernel 0.6 ops/fused_linear_cross_entropy.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.memory.attention import AttentionOps
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


# A mark among the nodes of the graph: behind it, backward has left the loss.
LOSS_DONE = "loss backward done"


def _nll_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    out = t.like(saved[0], "nll_loss_backward", 0)  # zeros, into which one number a row is put
    rows, itemsize = saved[1].numel, saved[0].dtype.itemsize
    t.write("nll_loss_backward", saved[0].dtype, rows * 8, rows * itemsize)
    return (out,)


def _log_softmax_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(saved[0], "_log_softmax_backward_data", bytes_of(g, saved[0])),)


def _div_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "div"),)


def _squared_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x, labels = saved
    return (t.new(x.shape, x.numel, t.result_type(x, labels), "mse_loss_backward", bytes_of(x, labels)),)


class LossOps(AttentionOps):
    """Cross-entropy over the vocabulary."""

    num_tokens: Tensor | None = None  # what Trainer divides a sum of losses by

    def causal_lm_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """ForCausalLMLoss on [batch, length, vocabulary] logits: a scalar that carries the graph."""
        form = self.behaviour.loss_form
        if form != "narrow":
            logits = self.to(logits, FP32)
        batch, length = labels.shape
        if form != "padded":
            return self._shifted_loss(logits, labels)
        labels = padded = self.new((batch, length + 1), batch * (length + 1), INT64, "constant_pad_nd")
        if batch > 1:
            labels = self.new((batch, length), batch * length, INT64, "clone")
        loss = self.cross_entropy(logits, labels)
        loss = self.per_token(loss)
        del padded  # alive until the function ends
        return loss

    def per_token(self, loss: Tensor) -> Tensor:
        """A sum of losses divided by the number of tokens, where the loop hands that on."""
        return loss if self.num_tokens is None else self.divide(loss, self.num_tokens)

    def divide(self, loss: Tensor, count: Tensor) -> Tensor:
        """One number by another, which is saved."""
        node = self.link("DivBackward0", _div_backward, (count,), (loss.edge,))
        return self.attach(self.new((), 1, loss.dtype, "div", bytes_of(loss, count)), node)

    def _shifted_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of all logits but the last; several sequences are copied, one is seen as it lies."""
        batch, length = labels.shape
        shifted = self.slice(logits, (batch, length - 1, logits.shape[-1]))
        if batch == 1:
            return self.cross_entropy(shifted, self.part(labels, (1, length - 1)))
        shifted = self.contiguous(shifted)
        return self.cross_entropy(shifted, self.new((batch, length - 1), batch * (length - 1), INT64, "clone"))

    def masked_lm_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over every position, no shift (bert, roberta, deberta, t5)."""
        return self.cross_entropy(logits, labels)

    def cross_entropy(self, logits: Tensor, labels: Tensor, mark: bool = True) -> Tensor:
        """log_softmax (saves its result) and nll_loss (saves the same, the labels and a weight)."""
        if mark and self.grad_enabled:
            self.nodes.append(LOSS_DONE)
        # cross_entropy_loss names the logits' own type for the log-softmax, so that autocast does not widen it
        logp = self.log_softmax(logits)
        if self.autocast is not None:
            logp = self.to(logp, FP32)
        node = self.link("NllLossBackward0", _nll_backward, (logp, labels), (logp.edge,))
        read = labels.numel * (8 + logp.dtype.itemsize)
        loss = self.new((), 1, logp.dtype, "nll_loss_forward", read)
        total = self.further((), 1, logp.dtype, "nll_loss_forward weight")
        if node is not None:
            self.save(node, (total,))
        return self.attach(loss, node)

    def cross_entropy_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same without a sum: a loss for each row."""
        if self.grad_enabled:
            self.nodes.append(LOSS_DONE)
        logp = self.log_softmax(logits)
        if self.autocast is not None:
            logp = self.to(logp, FP32)
        node = self.link("NllLossBackward0", _nll_backward, (logp, labels), (logp.edge,))
        out = self.new(labels.shape, labels.numel, logp.dtype, "nll_loss_forward", labels.numel * 12)
        total = self.further((), 1, logp.dtype, "nll_loss_forward weight")
        if node is not None:
            self.save(node, (total,))
        return self.attach(out, node)

    def cut_loss(self) -> list[Any]:
        """The graph of a loss that another takes the place of: cut off, and kept as long as its holder keeps it."""
        if LOSS_DONE not in self.nodes:
            return []
        place = self.nodes.index(LOSS_DONE)
        cut, self.nodes[place:] = self.nodes[place:], []
        return cut

    def mean_squared_error(self, x: Tensor, labels: Tensor) -> Tensor:
        """Of numbers to come near to (autocast: in fp32); saves both."""
        if self.autocast is not None:
            labels = self.to(labels, FP32)
            x = self.to(x, FP32)
        node = self.link("MseLossBackward0", _squared_backward, (x, labels), (x.edge,))
        return self.attach(self.new((), 1, self.result_type(x, labels), "mse_loss", bytes_of(x, labels)), node)

    def log_softmax(self, x: Tensor) -> Tensor:
        """Over the last dimension, in the type of `x`; saves its result."""
        node = self.link("LogSoftmaxBackward0", _log_softmax_backward, (), (x.edge,))
        out = self.new(x.shape, x.numel, x.dtype, "_log_softmax")
        if node is not None:
            self.save(node, (Tensor(out.shape, out.numel, out.dtype, out.storage, None),))
        return self.attach(out, node)

    def start_backward(self, loss: Tensor) -> None:
        """loss.backward(): the gradient of one that starts it."""
        assert loss.edge is not None
        node = loss.edge[0]
        node.grad = one = self.new((), 1, loss.dtype, "ones_like", 0)
        self.backward()
        del one
