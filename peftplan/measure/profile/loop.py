"""The trace's training loops on real tensors: what is heard of them is the same, and no operation is touched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from peftplan.measure.profile.build import Built
from peftplan.measure.profile.meter import Meter
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.trainer_loop import TrainerLoop
from peftplan.measure.trace.training import Training

_END_OF_LOSS = "LogSoftmaxBackward0"
_NODES_LOOKED_AT = 512


class _OnRealTensors(Training):
    """Random tokens; the end of the loss and recomputations are watched, and nothing stands in for a device."""

    stepping = staticmethod(nullcontext)  # type: ignore[assignment]
    knowing = staticmethod(lambda ids: None)

    def __init__(self, job: Job, built: Built, meter: Meter) -> None:
        self.meter = meter
        self.is_finite = True  # the first loss
        super().__init__(job, built.model, built.inner, meter)  # type: ignore[arg-type]
        self._vocabulary = built.inner.get_input_embeddings().weight.shape[0]
        meter.gradients = lambda: [parameter.grad for parameter in self.trained]
        for module in built.inner.modules():
            if getattr(module, "_gradient_checkpointing_func", None) is not None:
                module._gradient_checkpointing_func = _heard(module._gradient_checkpointing_func, meter)

    def _batch(self) -> dict[str, torch.Tensor]:
        batch = super()._batch()
        low, high = self._vocabulary // 4, 3 * self._vocabulary // 4  # special tokens stand at either end
        batch["input_ids"].random_(low, high)
        if batch["labels"] is not batch["input_ids"]:
            batch["labels"].copy_(batch["input_ids"])
        return batch

    def forward(self, batch: dict[str, Any]) -> Any:
        out = super().forward(batch)
        if self.meter.step == 0:
            self.is_finite = bool(torch.isfinite(out.loss))
        watch_end_of_loss(out.loss, self.meter.end_loss)
        return out

    def _accumulated(self, parameter: torch.Tensor) -> None:
        self.num_gradients += 1  # they are named together, when the last one is there


class _PlainLoop(_OnRealTensors):
    """A plain PyTorch loop."""


class _TrainersLoop(_OnRealTensors, TrainerLoop):
    """HF Trainer's loop, as the trace has it."""


def training_of(job: Job, built: Built, meter: Meter) -> _OnRealTensors:
    """The loop that the job asks for."""
    return (_TrainersLoop if job.trainer else _PlainLoop)(job, built, meter)


def _heard(checkpoint: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    """A block's checkpoint that says when the block runs: in forward, and again when it is recomputed."""

    def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def entered(*given: Any, **named: Any) -> Any:
            meter.entered(1)
            try:
                return function(*given, **named)
            finally:
                meter.entered(-1)

        return checkpoint(entered, *args, **kwargs)

    return run


def watch_end_of_loss(loss: torch.Tensor, ended: Callable[[], None]) -> None:
    """Call `ended` when the backward of the last log-softmax is done and what it held is given back.

    The hook stands before the node that runs next: one behind the log-softmax would hold its inputs.
    """
    ends = _nodes(loss.grad_fn, _END_OF_LOSS)
    left = len(ends)

    def done(*_: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            ended()

    for node in ends:
        following = node.next_functions[0][0]
        if following is not None:
            following.register_prehook(done)


def _nodes(root: Any, name: str) -> list[Any]:
    """Nodes of this name on the loss's side of the graph, the nearest first."""
    found, seen, waiting = [], {root}, [root]
    while waiting and len(seen) < _NODES_LOOKED_AT:
        node = waiting.pop(0)
        if node is None:
            continue
        if node.name() == name:
            found.append(node)
            continue  # nothing behind it belongs to the loss
        fresh = [following for following, _ in node.next_functions if following not in seen]
        seen.update(fresh)
        waiting += fresh
    return found
