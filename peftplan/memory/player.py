"""The player: the tape with every operation, module calls, and the attention interface of transformers."""

from __future__ import annotations

from typing import Any

from peftplan.memory.adapter_ops import AdapterOps
from peftplan.memory.bloom_gelu import BloomGeluOps
from peftplan.memory.convolution import ConvolutionOps
from peftplan.memory.factoring import FactoringOps
from peftplan.memory.fused_loss import FusedLossOps
from peftplan.memory.latent import LatentOps
from peftplan.memory.log_probs import LogProbOps
from peftplan.memory.reentrant import ReentrantOps
from peftplan.memory.routing import RoutingOps
from peftplan.memory.solving import SolvingOps
from peftplan.memory.sparse import SparseOps
from peftplan.memory.spectral import SpectralOps
from peftplan.specs.modules import Module
from peftplan.specs.tensors import Tensor


class Player(
    ReentrantOps,
    RoutingOps,
    LatentOps,
    ConvolutionOps,
    FusedLossOps,
    LogProbOps,
    BloomGeluOps,
    AdapterOps,
    SpectralOps,
    SolvingOps,
    SparseOps,
    FactoringOps,
):
    """Reads a forward program as memory: see `tape.Engine` for what it records."""

    def __init__(self, accumulating: bool = False) -> None:
        super().__init__(accumulating)
        self.kept: list[tuple[int, Tensor]] = []
        # (rounded, requested) bytes that died when the model's own forward returned, by block
        self.dropped: dict[int, tuple[int, int]] = {}
        self.graph_gone = False  # the loss was cut from its graph before the optimizer step
        self.returned: list[Tensor] = []

    def keep_to_loss(self, *tensors: Tensor) -> None:
        """What the forward that computes the loss holds in local variables until it returns."""
        self.kept_to_loss.extend(tensors)

    def hand_out(self, *tensors: Tensor) -> None:
        """What the model's output carries beside loss and logits, until the output is dropped."""
        self.returned.extend(tensors)

    def follow_ids(self, ids: Tensor | None) -> None:
        """Further ids (a decoder's) whose embeddings ask for a gradient where those of the first do; then None."""
        if self.leaf_ids is not None:
            self.leaf_ids = ids

    def keep(self, *tensors: Tensor) -> None:
        """What the model's forward holds in local variables until it returns, beside what blocks are given."""
        if not self.again:
            self.kept += [(self.layer, tensor) for tensor in tensors]

    def release_kept(self) -> bool:
        """The forward of a model or of one of its stacks returns; whether anything died that a block left there."""
        kept = self.kept
        self.handed_back.clear()
        while kept:
            level, requested = self.level_bytes, self.requested_bytes
            layer = kept.pop()[0]
            if layer >= 0 and self.level_bytes < level:
                size, nbytes = self.dropped.get(layer, (0, 0))
                size, nbytes = size + level - self.level_bytes, nbytes + requested - self.requested_bytes
                self.dropped[layer] = (size, nbytes)
        return bool(self.dropped)

    def call(self, name: str, module: Module, *args: Any) -> Any:
        """Run a module under its name; its arguments live until it returns, as in nn.Module.__call__."""
        outer = self.module
        self.module = f"{outer}.{name}" if outer else name
        out = module.forward(self, *args)
        if module.drops_weights:
            self.block_weights.clear()
        self.module = outer
        return out
