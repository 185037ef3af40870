"""A step's work: the launches of the played tape, those of blocks that stand for others multiplied.

Every allocation of the tape is a launch that writes it, and launches that write in place are noted beside
them. Per launch: products count a multiply-add as two flop and everything else counts none; bytes are read
and written once for every operand, views for what they show.

* linear, bmm: 2 m n k flop, both factors and the result. Backward the same for each gradient that is wanted: a
  frozen weight gets none.
* fused attention: two products forward and five backward over the pairs of positions that a causal kernel does
  not skip; q, k, v, the result, and backward the sums in fp32 that dQ is made from.
* grouped experts: 2 tokens x top_k x n x k flop, those of the experts that tokens visit; the weights of all.
* a 4-bit weight: no flop; packed weight and scales in, a dense one out, in every pass. The product reads that.
* norms, rotary, activations, casts, sums of gradients: no flop; one by one as they are launched eagerly.
* a checkpointed block: its forward once more, up to the last tensor that backward asks for.

Assumes: sorting in the backward of embeddings and routers, partial sums of reductions and tiles of attention
that the diagonal cuts are part of their main launch; of several micro-batches the first adds to gradients too.

Source: torch-derivatives, torch-flop-counter, flash-attention, bnb-4bit, bnb-int8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from peftplan.cost.fusion import fused_launches
from peftplan.cost.kinds import IS_FILL, LABELS, kind_of
from peftplan.cost.parts import Parts
from peftplan.cost.update import update_work
from peftplan.memory.account import Account
from peftplan.memory.graph import APART, PASSING, WITH_LAST, Record, Segment
from peftplan.memory.step import EARLIER, FORWARD_END
from peftplan.memory.timeline import AUTOCAST_LEFT, Opened, Timeline
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.work import Kernel, Work

# What the tape counts its allocations as, and the phase in which that happens.
_PHASES = {
    "activation": "forward",
    "recomputed activation": "recompute",
    "temporary": "backward",
    "gradient": "backward",
    PASSING: "backward",
}
_LOSS_SEGMENTS = ("loss", AUTOCAST_LEFT, FORWARD_END)  # the last one runs to the end of the loss's backward

# phase, operation, module, type, flop, bytes read, bytes written
Launch = tuple[str, str, str, str, int, int, int]
# phase, kind, part, operation, type, flop, bytes read, bytes written: a kernel without its count
Row = tuple[str, str, str, str, str, int, int, int]


def step_work(model: ModelSpec, step: StepSpec, account: Account, kernels: str = "eager") -> Work:
    """All launches of one micro-batch - forward, recomputation, backward - and of the optimizer step.

    `kernels`: eager, fused or compiled; other than eager, norms, rotary embeddings and losses run as one kernel
    each (`fusion`).

    With gradient accumulation the first three phases run once for each micro-batch: the reader multiplies them.
    """
    timeline, opened = account.timeline, account.timeline.opened
    rows = None if opened is None else _opened_rows(opened, model, kernels)
    found: Counter[Row] = Counter()
    for row, count in _rows(model, timeline, kernels) if rows is None else rows:
        found[row] += count
    played = tuple(Kernel(*row, count) for row, count in found.items())
    if opened is None:
        return played + update_work(model, step)
    update: Work = opened.once("update", lambda: update_work(model, step))
    return played + update


def _rows(model: ModelSpec, timeline: Timeline, kernels: str) -> Iterator[tuple[Row, int]]:
    """Every launch as a kernel, and how often it runs in the step."""
    parts = Parts(model)
    for segment, count, launches in segments_of(timeline):
        of_loss = segment.name in _LOSS_SEGMENTS
        run = launches if kernels == "eager" else fused_launches(launches, parts, of_loss, kernels == "compiled")
        for phase, op, module, dtype, num_flop, read, written in run:
            kind = kind_of(op, num_flop)
            part = parts.of(module, kind, of_loss)
            yield (phase, kind, part, op, LABELS.get(op, dtype), num_flop, read, written), count


def _opened_rows(opened: Opened, model: ModelSpec, kernels: str) -> Iterable[tuple[Row, int]] | None:
    """The same, of a step that is known for any batch and length; None where it has to be read for these."""
    found: Iterable[tuple[Any, int]] | None = opened.table(
        ("work", kernels), lambda timeline: _rows(model, timeline, kernels)
    )
    return found


def segments_of(timeline: Timeline) -> Iterator[tuple[Segment, int, list[Launch]]]:
    """Every stretch of the tape, how many blocks of the model it stands for, and its launches."""
    player = timeline.player
    counts = [1] * len(player.segments)
    by_name = {play.name + " backward done": play for play in timeline.plays}
    for play in timeline.plays:
        counts[play.forward_segment] = play.count
    for number, segment in enumerate(player.segments[1:]):
        if segment.name in by_name:
            counts[number] = by_name[segment.name].count
    written = _in_order(player.records, player.in_place)
    record = next(written, None)
    for number, segment in enumerate(player.segments):
        last = number + 1 == len(counts)
        end = player.clock if last else player.segments[number + 1].start_clock
        here: list[Record] = []
        while record is not None and record.born <= end:
            here.append(record)
            record = next(written, None)
        yield segment, counts[number], list(_launches(here))


def _in_order(records: list[Record], in_place: list[Record]) -> Iterator[Record]:
    """Both lists as one, by the clock."""
    rest = iter(in_place)
    other = next(rest, None)
    for record in records:
        while other is not None and other.born < record.born:
            yield other
            other = next(rest, None)
        yield record
    while other is not None:
        yield other
        other = next(rest, None)


def _launches(records: list[Record]) -> Iterator[Launch]:
    """What runs: allocations that one launch makes together are one."""
    open_launch: Launch | None = None
    for record in records:
        read = record.read
        if read == APART or record.kind not in _PHASES or record.op == EARLIER or record.op.endswith(" workspace"):
            continue
        if read == WITH_LAST:
            if open_launch is not None:
                open_launch = (*open_launch[:6], open_launch[6] + record.nbytes)
            continue
        if open_launch is not None:
            yield open_launch
        if read is None:
            read = 0 if record.op in IS_FILL else record.nbytes
        phase, dtype = _PHASES[record.kind], record.dtype.short
        open_launch = (phase, record.op, record.module, dtype, record.num_flop, read, record.nbytes)
    if open_launch is not None:
        yield open_launch
