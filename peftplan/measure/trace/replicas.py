"""The buckets in which DistributedDataParallel sums gradients; who fills which is asked of torch itself.

Its reducer cannot run on tensors without values. What it allocates is made here at the same points: one bucket
for each type of gradient before the first step, and those of torch's own assignment before the second, in the
order in which the first step's gradients were ready. Source: torch-ddp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from peftplan.errors import MachineLacks
from peftplan.measure.trace.recording import BUCKET
from peftplan.measure.trace.tracker import Tracker
from peftplan.parallel.data_parallel import BUCKET as BUCKET_BYTES
from peftplan.parallel.data_parallel import FIRST_BUCKET


class Buckets:
    """Copies of the gradients of `trained`, as the reducer holds them."""

    def __init__(self, trained: Sequence[torch.Tensor], tracker: Tracker) -> None:
        if not dist.is_available():
            raise MachineLacks("--gpus: this torch was built without torch.distributed; install one that has it")
        self.tracker = tracker
        self.ready: dict[int, torch.Tensor] = {}  # by identity, in the order in which their gradients were
        self.watching = True
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._is_ready)
        self.held = self._make([list(group) for group in _by_type(trained)])

    def before_forward(self) -> None:
        """The reducer cuts its buckets anew once, when the first step has told the order."""
        if not self.watching or not self.ready:
            return
        self.watching = False
        # of the same sizes on a device that the assignment may read
        ready = list(self.ready.values())
        like = [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in ready]
        groups = dist._compute_bucket_assignment_by_size(like, [FIRST_BUCKET, BUCKET_BYTES])[0]
        self.held.clear()
        self.held = self._make([[ready[number] for number in group] for group in groups])

    def _is_ready(self, parameter: torch.Tensor) -> None:
        if self.watching:
            self.ready.setdefault(id(parameter), parameter)

    def _make(self, groups: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        made = [
            torch.empty(sum(p.numel() for p in group), dtype=group[0].dtype, device=group[0].device)
            for group in groups
        ]
        self.tracker.tag(made, BUCKET)
        return made


def _by_type(trained: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in trained:
        groups.setdefault(parameter.dtype, []).append(parameter)
    return list(groups.values())
