"""Watches every storage: a dispatch mode that sees each operation's results and hears of each storage's end.

A storage is known by its StorageImpl; torch keeps the Python wrapper alive as long as that, so a weak
reference to the wrapper tells when its memory would be given back.

Source: torch 2.13 engine.cpp and input_buffer.cpp (sums in place), torch/_subclasses/fake_tensor.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peftplan.measure.trace.in_place import DERIVATIVES, on_plain_tensors
from peftplan.measure.trace.modules import Modules, nodes_made
from peftplan.measure.trace.recording import (
    ACTIVATION,
    BACKWARD,
    BUFFER,
    FORWARD,
    KERNEL,
    LOAD,
    LOSS,
    RECOMPUTED,
    STEP,
    TEMPORARY,
    WORKSPACE,
    Mark,
    Recording,
)
from peftplan.measure.trace.sums import adds_into_first, engines_references
from peftplan.measure.trace.values import follow

aten = torch.ops.aten
# Whatever is called for its device alone: most of all dispatches, and it allocates nothing.
_DEVICE_OF = torch.ops.prim.device.default
_LOG_SOFTMAX = aten._log_softmax.default
_LOG_SOFTMAX_BACKWARD = aten._log_softmax_backward_data.default

Kernel = Callable[["Tracker", Any, tuple[Any, ...], dict[str, Any]], Any]


class _Living:
    """A storage that is alive: its number and size, and the reference that reports its end."""

    __slots__ = ("number", "reference", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self.reference: Any = None


class Tracker(TorchDispatchMode):
    """Fills a Recording while it is entered; `kernels` answer for operations whose buffers fakes do not show.

    `entered` is told the step and phase whenever a module runs; `call` runs an operation.
    """

    def __init__(
        self,
        device: str,
        kernels: dict[Any, Kernel],
        cublas_workspace_bytes: int,
        entered: Callable[[int, str], None],
        call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
    ) -> None:
        super().__init__()
        self.device = device
        self.kernels = kernels
        self.cublas_workspace_bytes = cublas_workspace_bytes
        self.backward_workspace_taken = False
        self.call = call  # runs an operation
        self.recording = Recording()
        self.phase = LOAD
        self.step = 0
        self.live_bytes = 0
        self._loss_ends = False
        self.loss_by_softmax = True  # whether the loss ends as its last log-softmax has its gradient
        self._loss_pieces = 0  # log-softmaxes of the loss whose backward is still to come
        self._engines_references = engines_references()
        self._living: dict[int, _Living] = {}
        self.modules = Modules(lambda: entered(self.step, self.phase))
        self.watch, self.place = self.modules.watch, self.modules.place
        self._running = self.modules.running
        self._texts: dict[str, int] = {}
        self._shapes: dict[tuple[int, ...], int] = {}

    # ---- what is recorded

    def mark(self, name: str) -> None:
        """Note this moment; a phase's name also begins that phase."""
        self.recording.marks.append(Mark(name, self.step, len(self.recording.events)))

    def enter_phase(self, name: str) -> None:
        """Begin a phase."""
        self.phase = name
        self.mark(name)

    def tag(self, tensors: Iterable[torch.Tensor | None], category: str) -> None:
        """Say what tensors are for."""
        for tensor in tensors:
            if tensor is not None:
                living = self._track(tensor, category)
                if living is not None:
                    self.recording.categories[living.number] = self._text(category)

    def buffers(self, sizes: Sequence[int], operation: str, category: str = KERNEL, keep: bool = False) -> None:
        """Memory that a kernel takes beside its results: together, and given back unless it is kept."""
        recording = self.recording
        taken = [self._new(size, (size,), "uint8", operation, category) for size in sizes if size]
        if not keep:
            recording.events += [-(living.number + 1) for living in taken]
            self.live_bytes -= sum(living.size for living in taken)

    def standing(self, name: str, tensor: torch.Tensor, category: str) -> None:
        """Name a tensor that stands from step to step: a parameter, a buffer."""
        living = self._track(tensor, "load")
        if living is not None:
            self.recording.categories[living.number] = self._text(category)
            self.recording.modules[living.number] = self._text(name)
            self.recording.operations[living.number] = self._text("load")

    def settle(self) -> None:
        """Between two steps: what is still alive of an earlier one is kept by the model, like a buffer."""
        passing = (ACTIVATION, RECOMPUTED, TEMPORARY)
        for living in self._living.values():
            if self.recording.texts[self.recording.categories[living.number]] in passing:
                self.recording.categories[living.number] = self._text(BUFFER)

    def take_cublas_workspace(self, thread: str) -> None:
        """What torch allocates for a thread's cuBLAS handle, once; forward and backward have one each."""
        self.backward_workspace_taken = self.backward_workspace_taken or thread == "backward"
        self.buffers([self.cublas_workspace_bytes], f"cuBLAS workspace ({thread})", WORKSPACE, keep=True)

    def drop_loss(self) -> None:
        """One of the losses that were computed is not the one that backward begins with."""
        self._loss_pieces -= 1

    def end_loss(self) -> None:
        """The loss has given its gradient to the head."""
        self._loss_ends = False
        self._loss_pieces = 0
        if self.phase == LOSS:
            self.enter_phase(BACKWARD)

    def result(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Record a tensor that a kernel made by other means than an operation."""
        self._track(tensor, operation)
        return tensor

    def _text(self, text: str) -> int:
        number = self._texts.get(text)
        if number is None:
            number = self._texts[text] = len(self.recording.texts)
            self.recording.texts.append(text)
        return number

    def _new(self, size: int, shape: tuple[int, ...], dtype: str, operation: str, category: str) -> _Living:
        recording = self.recording
        number = len(recording.sizes)
        known = self._shapes.get(shape)
        if known is None:
            known = self._shapes[shape] = len(recording.all_shapes)
            recording.all_shapes.append(shape)
        recording.sizes.append(size)
        recording.shapes.append(known)
        recording.dtypes.append(self._text(dtype))
        recording.operations.append(self._text(operation))
        recording.modules.append(self._text(self.place()))
        recording.categories.append(self._text(category))
        recording.events.append(number + 1)
        self.live_bytes += size
        return _Living(number, size)

    def _category(self) -> str:
        if self.phase == FORWARD:
            return ACTIVATION
        if self.phase == LOSS and self._running and torch._C._current_autograd_node() is None:
            return ACTIVATION
        if not self.loss_by_softmax and self.phase == LOSS == self.recording.marks[-1].name:
            return ACTIVATION  # a loss that is computed outside the modules, before forward has ended
        if self._running and self.phase in (LOSS, BACKWARD):
            return RECOMPUTED
        return TEMPORARY

    def _track(self, tensor: torch.Tensor, operation: str) -> _Living | None:
        place = getattr(tensor, "fake_device", None) or tensor.device
        if place.type != self.device or tensor.layout is not torch.strided:
            return None  # what a sparse tensor is made of was seen before
        storage = tensor.untyped_storage()
        key = storage._cdata
        living = self._living.get(key)
        if living is not None:
            return living
        size = storage.nbytes()
        if not size:
            return None
        dtype = str(tensor.dtype).removeprefix("torch.")
        living = self._new(size, tuple(tensor.shape), dtype, operation, self._category())
        self._living[key] = living

        def ended(_: Any, key: int = key, living: _Living = living) -> None:
            if self._living.get(key) is living:
                del self._living[key]
            self.recording.events.append(-(living.number + 1))
            self.live_bytes -= living.size

        living.reference = weakref.ref(storage, ended)
        return living

    # ---- operations

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper that sees to it costs as much as an operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE_OF:
            return getattr(args[0], "fake_device", None) or func(*args, **kwargs)
        if self._loss_ends:  # what its backward held is gone by now
            self.end_loss()
        if nodes_made() != self.modules.nodes_noted:
            self.modules.note_nodes()
        if func is aten.add.Tensor and self._sums_in_place(args):
            return args[0].add_(args[1])
        if func in DERIVATIVES and not self._running:
            func = on_plain_tensors(func)
        kernel = self.kernels.get(func)
        if kernel is not None:
            return kernel(self, func, args, kwargs)
        return self.ordinary(func, args, kwargs)

    def ordinary(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that takes nothing beside its results, and record these."""
        before = len(self.recording.sizes)
        out = self.call(func, args, kwargs)
        self.see(out, func)
        if self.phase in (LOAD, STEP) and args:
            self._name_after(args[0], out, before)
        follow(func, args, kwargs, out)
        if self.phase == LOSS and func is _LOG_SOFTMAX:
            self._loss_pieces += 1
        elif func is _LOG_SOFTMAX_BACKWARD:
            self._loss_pieces -= 1
            self._loss_ends = self._loss_pieces <= 0 and self.loss_by_softmax
        return out

    def see(self, out: Any, func: Any) -> None:
        """Record the tensors among an operation's results."""
        if isinstance(out, torch.Tensor):
            self._track(out, func._name)
        elif isinstance(out, (tuple, list)):
            for part in out:
                if isinstance(part, torch.Tensor):
                    self._track(part, func._name)

    def _name_after(self, given: Any, out: Any, before: int) -> None:
        """Name what is made where no module runs, for and by the optimizer, after the tensor it is made from."""
        several = isinstance(given, (tuple, list)) and isinstance(out, (tuple, list))
        for source, made in zip(given, out) if several else ((given, out),):
            numbers = [
                living.number
                for tensor in (source, made)
                if isinstance(tensor, torch.Tensor)
                and (living := self._living.get(tensor.untyped_storage()._cdata)) is not None
            ]
            if len(numbers) == 2 and numbers[1] >= before:
                self.recording.modules[numbers[1]] = self.recording.modules[numbers[0]]

    def _sums_in_place(self, args: tuple[Any, ...]) -> bool:
        """Whether the engine would add two gradients into the first, which it owns.

        Where gradients meet, the engine adds into a buffer that nothing else refers to; under a dispatch
        mode it does not dare, so it is done here.
        """
        if self.phase not in (LOSS, BACKWARD) or self._running or torch.is_grad_enabled():
            return False
        return adds_into_first(args, self._engines_references)
