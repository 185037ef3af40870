"""What hears the training loop: phases, moments, what tensors are for. A device's own meter looks at memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from peftplan.measure.profile.build import Built
from peftplan.measure.profile.history import Note
from peftplan.measure.trace.materialize import tensors
from peftplan.measure.trace.recording import (
    ADAPTER,
    BACKWARD,
    BUFFER,
    GRADIENT,
    INPUT,
    LOAD,
    LOSS,
    MASTER,
    OPTIMIZER_STATE,
    PARAMETER,
    STEP,
    Recording,
)


class Meter:
    """Takes the place of the trace's tracker in the loop; notes what is said only while a history is kept."""

    backward_workspace_taken = True  # a real library takes its own

    def __init__(self) -> None:
        self.phase = LOAD
        self.step = 0
        self.recording = Recording()  # the loop leaves facts in it
        self.gradients: Callable[[], list[torch.Tensor | None]] = list
        self.keeps_history = False

    # ---- what the loop says

    def enter_phase(self, name: str) -> None:
        """A phase begins."""
        self._phase_ends()
        self.phase = name
        if self.keeps_history:
            self.write(Note(moment=name))
            if name == STEP:
                self.tag(self.gradients(), GRADIENT)

    def mark(self, name: str) -> None:
        """A moment of the step."""
        if self.keeps_history:
            self.write(Note(moment=name))

    def tag(self, given: Iterable[torch.Tensor | None], category: str) -> None:
        """What tensors are for."""
        if self.keeps_history:
            self.write(Note(category=category, addresses=tuple(_address(t) for t in given if t is not None)))

    def entered(self, depth: int) -> None:
        """A block of the model is entered or left; in forward that says nothing."""
        if self.keeps_history and self.phase in (LOSS, BACKWARD):
            self.write(Note(depth=depth))

    def end_loss(self) -> None:
        """The loss has given its gradient to the head."""
        if self.phase == LOSS:
            self.enter_phase(BACKWARD)

    def take_cublas_workspace(self, thread: str) -> None:
        """Nothing to do: the library takes it."""

    # ---- what a device's meter does

    def _phase_ends(self) -> None:
        """Look at what the phase has used."""

    def write(self, note: Note) -> None:
        """Put a note between the changes of memory."""
        raise NotImplementedError


def standing(built: Built, training: Any) -> dict[int, tuple[int, str]]:
    """The tensors that live from step to step, by the address of their storage: requested bytes, what for."""
    found: dict[int, tuple[int, str]] = {}

    def name(given: Iterable[Any], category: str) -> None:
        for tensor in given:
            if isinstance(tensor, torch.Tensor) and tensor.numel() and not getattr(tensor, "is_paged", False):
                found.setdefault(_address(tensor), (tensor.untyped_storage().nbytes(), category))

    buffers = {path for path, _ in built.model.named_buffers()}
    for path, tensor in tensors(built.model):
        name([tensor], BUFFER if path in buffers else ADAPTER if path in built.adapters else PARAMETER)
    for module in built.model.modules():  # where an 8-bit linear keeps its scales once it has run
        name((getattr(getattr(module, "state", None), part, None) for part in ("CB", "SCB")), PARAMETER)
    name(training.masters, MASTER)
    name((value for row in training.optimizer.state.values() for value in row.values()), OPTIMIZER_STATE)
    name(vars(training).values(), INPUT)  # what a loop holds on to
    return found


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
