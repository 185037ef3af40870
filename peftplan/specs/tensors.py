"""Tensors without values: a shape, a type, and a place in the graph of gradients."""

from __future__ import annotations

from math import prod
from typing import Any

from peftplan.specs.formats import FP32, DType, PackedFormat

# Where a gradient goes: (node or parameter, output number, type, number of elements).
Edge = tuple[Any, int, DType, int]


class Tensor:
    """A tensor as the tape sees it: shape, type, storage, and `edge`, where its gradient flows.

    `edge` is None when no gradient is wanted; `storage` is None for parameters, whose bytes are
    counted with the model's resident state.
    """

    __slots__ = ("__weakref__", "dtype", "edge", "numel", "shape", "storage")

    def __init__(self, shape: tuple[int, ...], numel: int, dtype: DType, storage: Any, edge: Edge | None) -> None:
        self.shape, self.numel, self.dtype, self.storage, self.edge = (
            shape,
            numel,
            dtype,
            storage,
            edge,
        )


def bytes_of(*tensors: Tensor | None) -> int:
    """Bytes of tensors read or written whole; of one seen several times (expanded), those that are there."""
    total = 0
    for x in tensors:
        if x is not None:
            size = x.numel * x.dtype.itemsize
            storage = x.storage
            total += size if storage is None else min(size, storage.record.nbytes)
    return total


class Parameter(Tensor):
    """A weight or buffer of the model: bytes that stay from step to step.

    `quant` says how the weight is packed; `dtype` is then the type it is computed in.
    `role` is "weight" for the base model's own, "adapter" for what a method adds, "buffer"
    for tensors that are no parameters. `wide` marks weights that stay fp32 where the model is loaded in
    fp16; `loaded_dtype` is the type a weight is loaded in where the first forward pass changes it; `loaded_from` is
    how the checkpoint has a weight that is dequantised when it is loaded. `gradient_numel`: of the tensor that its
    gradient is, or is a part of and keeps. `on_host`: nothing of it is on the device.
    """

    __slots__ = ("gradient_numel", "loaded_dtype", "loaded_from", "on_host", "quant", "role", "wide")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType = FP32,
        *,
        trainable: bool = True,
        role: str = "weight",
        quant: PackedFormat | None = None,
    ) -> None:
        super().__init__(shape, prod(shape), dtype, None, None)
        self.role, self.quant = role, quant
        self.loaded_dtype: DType | None = None
        self.loaded_from: PackedFormat | None = None
        self.wide = self.on_host = False
        self.gradient_numel = self.numel
        self.set_trainable(trainable and role != "buffer")

    def set_trainable(self, trainable: bool) -> None:
        """Turn gradients on or off, as `requires_grad_` does."""
        self.edge = (self, 0, self.dtype, self.numel) if trainable else None

    def set_dtype(self, dtype: DType) -> None:
        """Change the type in place, keeping whether it trains."""
        self.dtype = dtype
        self.set_trainable(self.edge is not None)

    def storages(self) -> list[tuple[str, int]]:
        """Name and bytes of every tensor that holds this parameter on the device, from step to step."""
        if self.on_host:
            return []
        if self.quant is not None:
            return self.quant.storages(self.shape[-2], self.shape[-1], prod(self.shape[:-2]))
        return [(self.dtype.short, self.numel * self.dtype.itemsize)]

    def loaded_storages(self) -> list[tuple[str, int]]:
        """The same after the load, before the first forward pass."""
        if self.loaded_dtype is None:
            return self.storages()
        return [(self.loaded_dtype.short, self.numel * self.loaded_dtype.itemsize)]

    def gradient_bytes(self) -> int:
        """What its gradient holds, before allocator rounding."""
        return self.gradient_numel * self.dtype.itemsize

    def num_bytes(self) -> int:
        """Bytes on the device before allocator rounding."""
        return sum(size for _, size in self.storages())
