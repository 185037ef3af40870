"""The player: the tape with every operation, module calls, and the attention interface of transformers."""

from __future__ import annotations

from typing import Any

from peftplan.memory.loss import LossOps
from peftplan.memory.routing import RoutingOps
from peftplan.specs.formats import FP32
from peftplan.specs.modules import Module
from peftplan.specs.tensors import Tensor


class Player(RoutingOps, LossOps):
    """Reads a forward program as memory: see `tape.Engine` for what it records."""

    attention = "sdpa"

    def __init__(self, accumulating: bool = False) -> None:
        super().__init__(accumulating)
        self.kept: list[Tensor] = []

    def keep(self, *tensors: Tensor) -> None:
        """What the model's own forward holds in local variables until it returns, beside what blocks are given."""
        self.kept.extend(tensors)

    def call(self, name: str, module: Module, *args: Any) -> Any:
        """Run a module under its name; its arguments live until it returns, as in nn.Module.__call__."""
        outer = self.module
        self.module = f"{outer}.{name}" if outer else name
        out = module.forward(self, *args)
        self.module = outer
        return out

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        causal: bool = True,
    ) -> Tensor:
        """transformers' attention interface: [batch, heads, length, dim] in, [batch, length, heads, dim] out."""
        if self.attention == "eager":
            return self.eager_attention(q, k, v, mask, dropout)
        if self.attention == "sdpa":
            grouped_kernel = mask is None and k.shape[-1] == v.shape[-1] <= 256
            if not grouped_kernel:
                k, v = self.repeat_heads(k, q.shape[1]), self.repeat_heads(v, q.shape[1])
        return self.sdpa(q, k, v, mask, dropout, causal)

    def eager_attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        """eager_attention_forward: scores, softmax in fp32, weights back in the queries' type."""
        heads = q.shape[1]
        keys, values = self.repeat_heads(k, heads), self.repeat_heads(v, heads)
        shape = (q.shape[0], heads, q.shape[2], k.shape[2])
        weights = self.mul_scalar(self.matmul(q, keys, shape))
        if mask is not None:
            weights = self.add(weights, mask)
        weights = self.to(self.softmax(weights, FP32), q.dtype)
        weights = self.dropout(weights, dropout)
        out = self.matmul(weights, values, (*shape[:3], v.shape[-1]))
        return self.contiguous(out)
