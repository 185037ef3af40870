"""The launches of an optimizer step: clipping, the update by its optimizer's row, and masters.

Source: torch-foreach (MultiTensorApply.cuh: how much one launch takes), torch-adamw, bnb-optimizers,
transformers-trainer (clipping, by torch.nn.utils.clip_grad_norm_). Gradients are dropped, not set to zero,
which launches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peftplan.memory.trained import Trained, by_type, trained_tensors
from peftplan.optimizers import OPTIMIZERS, Foreach, Optimizer
from peftplan.specs.formats import FP32
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.work import Kernel, Work

# How many tensors one launch takes, by how many lists of them it is passed, and how many chunks of a tensor:
# those of CUDA 13, which torch 2.13 is built with. A number for each tensor leaves less room where lists are few.
_MOST_TENSORS = (770, 448, 336, 252, 210)
_MOST_TENSORS_SCALARS = (672, 448, 336, 252, 210)
_MOST_CHUNKS = 2240
_CHUNK = 65536  # elements


def update_work(model: ModelSpec, step: StepSpec) -> Work:
    """All launches from the last gradient to the next step.

    Assumes with master weights: gradients are cast to fp32 and weights copied back tensor by tensor.
    """
    optimizer = OPTIMIZERS[step.optimizer]
    trained = trained_tensors(model, step.master_weights, step.trainer)
    made: list[Kernel] = []
    if step.trainer:
        made += _clip(trained)
    if step.master_weights:
        made += [_each("_to_copy", row, row.parameter.num_bytes(), 4 * row.parameter.numel) for row in trained]
    for decayed in (True, False):
        group = [row for row in trained if row.decayed is decayed]
        if optimizer.foreach:
            # torch's own default decays weights; Trainer's is not to
            made += _foreach_update(optimizer, group, decays=not step.trainer)
        elif optimizer.loop is not None:
            for row in group:
                made += [_each(*launch) for launch in _loop(optimizer, row)]
        else:
            made += [_fused_update(optimizer, row) for row in group]
    if step.master_weights:
        made += [_each("copy_", row, 4 * row.parameter.numel, row.parameter.num_bytes()) for row in trained]
    return tuple(made)


def _foreach_update(optimizer: Optimizer, group: list[Trained], decays: bool) -> Iterator[Kernel]:
    for rows in by_type(group):
        if optimizer.name == "adamw-fused":  # its step counters are tensors on the device
            yield from _foreach(Foreach("_foreach_add_", 1, 1, 1), rows, 4)
        for operation in optimizer.foreach:
            if decays or not operation.decay:
                yield from _foreach(operation, rows)


def _foreach(operation: Foreach, rows: list[Trained], bytes_each: int = 0) -> Iterator[Kernel]:
    """One operation over tensors of one type (or, of each, so many bytes), in as many launches as it takes."""
    tensors = sum(row.count for row in rows)
    chunks = sum(-(-row.parameter.numel // _CHUNK) * row.count for row in rows)
    size = sum(row.parameter.numel * row.count for row in rows) * rows[0].dtype.itemsize
    if bytes_each:
        chunks, size = tensors, tensors * bytes_each
    most = (_MOST_TENSORS_SCALARS if operation.scalars else _MOST_TENSORS)[operation.lists - 1]
    launches = max(-(-tensors // most), -(-chunks // _MOST_CHUNKS))
    whole, rest = divmod(size, launches)
    for share, count in ((whole + 1, rest), (whole, launches - rest)):
        if count:
            yield _kernel(
                operation.op, rows[0].dtype.short, share * operation.read, share * operation.written, count
            )


def _fused_update(optimizer: Optimizer, row: Trained) -> Kernel:
    """One kernel that reads weight, gradient and states, and writes weight and states."""
    states = sum(row.states(optimizer)) + row.paged_bytes(optimizer)
    weight = row.parameter.numel * row.dtype.itemsize
    return _each("optimizer_update", row, 2 * weight + states, weight + states)


def _loop(optimizer: Optimizer, row: Trained) -> Iterable[tuple[str, Trained, int, int]]:
    assert optimizer.loop is not None
    return ((op, row, read, written) for op, read, written in optimizer.loop(row.parameter.shape, row.dtype))


def _clip(trained: list[Trained]) -> Iterator[Kernel]:
    """A norm of every gradient, their norm, a factor of at most one, and every gradient times that."""
    tensors = sum(row.count for row in trained)
    types = by_type(trained)
    for rows in types:
        yield from _foreach(Foreach("_foreach_norm", 1, 1, 0), rows)
        yield _kernel("_foreach_norm", "fp32", 4 * tensors, 4 * tensors, 1)  # partial sums into one a tensor
    yield _kernel("cat", "fp32", 4 * tensors, 4 * tensors, 1)
    yield _kernel("linalg_vector_norm", "fp32", 4 * tensors, 4, 1)
    for op in ("add", "div", "clamp"):
        yield _kernel(op, "fp32", 4, 4, 1)
    for rows in types:
        yield from _foreach(Foreach("_foreach_mul_", 1, 1, 1), rows)


def _each(op: str, row: Trained, read: int, written: int) -> Kernel:
    return _kernel(op, FP32.short if op == "_to_copy" else row.dtype.short, read, written, row.count)


def _kernel(op: str, dtype: str, read: int, written: int, count: int) -> Kernel:
    return Kernel("optimizer_step", "optimizer", "optimizer", op, dtype, 0, read, written, count)
