"""The launches of an optimizer step: clipping, the update by its optimizer's row, and masters.

Source: torch-foreach (MultiTensorApply.cuh: how much one launch takes), torch-adamw, bnb-optimizers,
transformers-trainer (clipping, by torch.nn.utils.clip_grad_norm_). Gradients are dropped, not set to zero,
which launches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from peftplan.memory.graph import WITH_LAST
from peftplan.memory.tape import Engine
from peftplan.memory.trained import Trained, by_type, in_groups, own, trained_tensors
from peftplan.optimizers.chosen import Chosen, chosen
from peftplan.optimizers.row import Foreach, Optimizer, Step
from peftplan.specs.formats import FP32
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.work import TRANSFER, Kernel, Work

# How many tensors one launch takes, by how many lists of them it is passed, and how many chunks of a tensor:
# those of CUDA 13, which torch 2.13 is built with. A number for each tensor leaves less room where lists are few.
_MOST_TENSORS = (770, 448, 336, 252, 210)
_MOST_TENSORS_SCALARS = (672, 448, 336, 252, 210)
_MOST_CHUNKS = 2240
_CHUNK = 65536  # elements


def update_work(model: ModelSpec, step: StepSpec) -> Work:
    """All launches from the last gradient to the next step; those that update during backward among them.

    Assumes with master weights: gradients are cast to fp32 and weights copied back tensor by tensor. What is
    renewed from time to time is left out.
    """
    optimizer = chosen(step)
    trained = trained_tensors(model, step)
    made: list[Kernel] = []
    kept = [row for row in trained if optimizer.keeps_gradient(row.weight)]
    if step.trainer and kept:
        made += _clip(kept)
    if step.master_weights:
        made += [_each("_to_copy", row, row.parameter.num_bytes(), 4 * row.parameter.numel) for row in trained]
    for rule in optimizer.rules:
        for group in in_groups(trained, optimizer):
            rows = own(group, optimizer, rule)
            if rule.foreach:
                # torch's own default decays weights; Trainer's is not to
                made += _foreach_update(rule, rows, decays=not step.trainer, alone=optimizer.in_backward)
            elif rule.step is not None:
                for row in rows:
                    made += _program(rule.step, row, optimizer)
            else:
                # what is sent to the host is updated there
                made += [_fused_update(optimizer, row) for row in rows if not any(optimizer.transfers(row.weight))]
    if step.master_weights:
        made += [_each("copy_", row, 4 * row.parameter.numel, row.parameter.num_bytes()) for row in trained]
    for row in trained:
        made += _transfers(row, optimizer)
    return tuple(made)


def _transfers(row: Trained, optimizer: Chosen) -> Iterator[Kernel]:
    """A gradient's way to the host, in each backward pass, and the weight's way back."""
    down, up = optimizer.transfers(row.weight)
    for phase, op, read, written in (
        ("backward", "copy to host", down, 0),
        ("optimizer_step", "copy from host", 0, up),
    ):
        if read or written:
            yield Kernel(phase, TRANSFER, "optimizer", op, row.dtype.short, 0, read, written, row.count)


def _foreach_update(rule: Optimizer, group: list[Trained], decays: bool, alone: bool) -> Iterator[Kernel]:
    """`alone`: each tensor has an optimizer of its own."""
    if alone:
        parts = [[replace(row, count=1)] for row in group]
        times = [row.count for row in group]
    else:
        parts = [group] if rule.one_list else by_type(group)
        times = [1] * len(parts)
    for rows, count in zip(parts, times):
        for kernel in _foreach_rows(rule, rows, decays):
            yield kernel._replace(count=kernel.count * count)


def _foreach_rows(rule: Optimizer, rows: list[Trained], decays: bool) -> Iterator[Kernel]:
    if any(name == "step" for row in rows[:1] for name, _ in rule.states(row.weight, None)):
        yield from _foreach(Foreach("_foreach_add_", 1, 1, 1), rows, 4)  # step counters on the device
    for operation in rule.foreach:
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


def _fused_update(optimizer: Chosen, row: Trained) -> Kernel:
    """One kernel that reads weight, gradient and states, and writes weight and states."""
    kept = [*optimizer.states(row.weight), *optimizer.paged(row.weight)]
    states = sum(size for _, size in kept)
    weight = row.weight.num_bytes
    return _each("optimizer_update", row, 2 * weight + states, weight + states)


def _program(program: Step, row: Trained, optimizer: Chosen) -> Iterator[Kernel]:
    """The launches of a program over one tensor, in their order: what it allocates, and what it writes in place."""
    t = Engine()
    program(t, [[row.weight]], optimizer.options, False)
    made: list[Kernel] = []
    for record in sorted([*t.records, *t.in_place], key=lambda record: record.born):
        if record.read == WITH_LAST:
            made[-1] = made[-1]._replace(bytes_written=made[-1].bytes_written + record.nbytes)
            continue
        read = record.nbytes if record.read is None else record.read
        kind, dtype = "matmul" if record.num_flop else "optimizer", record.dtype.short
        work = (record.num_flop, read, record.nbytes)
        made.append(Kernel("optimizer_step", kind, "optimizer", record.op, dtype, *work, row.count))
    yield from made


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
