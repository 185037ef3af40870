"""Forward passes of a step: blocks that are alike played once, and passes without a graph beside the trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from peftplan.memory.player import Player
from peftplan.memory.timeline import AUTOCAST_LEFT, Play, Timeline
from peftplan.specs.formats import FP32, DType
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor

# What a model's forward does behind its last norm: (t, model, step, hidden, labels) -> (loss or None, output).
Head = Callable[[Player, ModelSpec, StepSpec, Tensor, "Tensor | None"], tuple[Any, Any]]
_Standing = dict[tuple[int, bool, bool, DType], int]
# What a pass has of its own on the tape, empty when it begins.
_OWN: dict[str, Callable[[], Any]] = {
    "kept": list,
    "dropped": dict,
    "cleared": dict,
    "returned": list,
    "cached": list,
    "kept_to_loss": list,
    "handed_back": list,
}


class Passes:
    """The passes of one step, in the order in which its style makes them."""

    def __init__(self, timeline: Timeline, model: ModelSpec, step: StepSpec, each: bool = False) -> None:
        self.timeline, self.model, self.step = timeline, model, step
        self.t = timeline.player
        # a play by block and by what comes in; None: every block is played by itself
        self.standing: _Standing | None = None if each else {}

    def forward(self, ids: Tensor, labels: Tensor | None, head: Head, leaves: bool = False) -> tuple[Any, Any]:
        """The model as its caller runs it: loss, if it is given labels, and output.

        `leaves`: more of the forward phase follows, so that the end of autocast is a mark of its own.
        """
        t, model, step = self.t, self.model, self.step
        with t.autocasting(step.autocast):
            if model.relabel is not None and labels is not None:
                labels = model.relabel(t, labels)
            x = self._through_blocks(ids, model)
            loss, logits = head(t, model, step, x, labels)
            del x
            if model.second_loss is not None and labels is not None:
                first = t.cut_loss()  # what the model's own loss keeps
                loss = model.second_loss(t, logits, labels)
                del first
            if model.relabel is not None:
                del labels
            t.kept_to_loss.clear()
            t.put_before([], 0)
            if model.behind_loss is not None and loss is not None:
                loss = model.behind_loss(t, loss)
        converts = step.trainer and step.autocast is not None and logits is not None
        if leaves or converts:
            t.mark(AUTOCAST_LEFT)
        if converts:  # accelerate's convert_outputs_to_fp32 wraps the model's forward, autocast and all
            logits = t.to(logits, FP32)
            t.returned[:] = [t.to(tensor, FP32) for tensor in t.returned]
        return loss, logits

    def without_graph(self, model: ModelSpec, ids: Tensor, head: Head) -> Any:
        """A pass beside the trained one that leaves no graph: the head's output; every block is played."""
        t, step = self.t, self.step
        outer = {name: getattr(t, name) for name in (*_OWN, "clear_clock", "leaf_ids")}
        for name, empty in _OWN.items():
            setattr(t, name, empty())
        t.leaf_ids = None
        passing: list[Play] = []
        self.timeline.passing.append((model.runs, passing))
        t.mark("a pass without a graph")
        with t.no_grad(), t.autocasting(step.autocast):
            x = self._through_blocks(ids, model, passing)
            _, output = head(t, model, step, x, None)
            del x
            t.kept_to_loss.clear()
            t.put_before([], 0)
        if step.trainer and step.autocast is not None:
            with t.no_grad():
                output = t.to(output, FP32)
        for name, value in outer.items():
            setattr(t, name, value)
        return output

    def reference(self, ids: Tensor, head: Head) -> Any:
        """What the reference makes of the same rows."""
        assert self.model.reference is not None
        return self.without_graph(self.model.reference, ids, head)

    def _through_blocks(self, ids: Tensor, model: ModelSpec, passing: list[Play] | None = None) -> Tensor:
        """From the ids to the input of the head; `passing` takes the plays of a pass without a graph."""
        t, timeline = self.t, self.timeline
        x, given = model.enter(t, ids)
        entered = x if model.keeps_first_input else None
        passed, handed = [x], [given]  # handed on in lists, so that no name here outlives its use
        del x, given
        first = 0
        for run in model.runs:
            if run.before is not None:
                if passing is None:
                    t.mark(run.path + " entered")
                    t.nodes.append(run.path + " entry backward done")
                t.layer = -1
                x, given = run.before(t, passed.pop(), handed.pop())
                passed.append(x)
                handed.append(given)
                del x, given
            if passing is None:
                passed.append(_play_run(timeline, run, first, self.step, passed, handed, self.standing))
            else:
                passed.append(_pass_run(t, run, first, passed, handed, passing))
            first += run.count
        t.mark("head" if passing is None else "head without a graph")
        if passing is None:
            t.nodes.append("head backward done")
        t.layer = -1
        x = model.leave(t, passed.pop())
        del entered
        handed.clear()
        if t.release_kept() and passing is None:
            t.mark("logits")
        return x


def logits_of(t: Player, model: ModelSpec, x: Tensor) -> Tensor:
    """The head's output."""
    if model.logits is not None:
        return model.logits(t, x)
    return t.call(model.head_path, model.head, model.transform(t, x) if model.transform else x)  # type: ignore[no-any-return]


def scaled_logits(t: Player, model: ModelSpec, made: list[Tensor]) -> Tensor:
    """What the model makes of the head's output, the one in the list: it ends while it is scaled."""
    return made.pop() if model.scale_logits is None else model.scale_logits(t, made)


def _play_run(
    timeline: Timeline,
    run: BlockRun,
    first: int,
    step: StepSpec,
    passed: list[Tensor],
    handed: list[Any],
    standing: _Standing | None,
) -> Tensor:
    """Play the run's blocks that no play stands for yet; `standing` has a play by block and by what comes in.

    `first` counts the blocks before the run; `passed` holds the hidden states and `handed` what
    blocks are given, which one may replace.
    """
    t, plays = timeline.player, timeline.plays
    left = run.count
    x = passed.pop()
    while left:
        had_grad = x.edge is not None
        key = (id(run.block), had_grad, run.apart, x.dtype)
        alike = None if standing is None else standing.get(key)
        if alike is not None:
            plays[alike].count += left
            timeline.order.append((alike, left))
            break
        name = f"{run.path}.{run.first_index + run.count - left}"
        t.mark(name)
        t.nodes.append(name + " backward done")
        t.layer = first + run.count - left
        plays.append(Play(name, t.layer, 1, forward_segment=len(t.segments) - 1))
        timeline.order.append((len(plays) - 1, 1))
        out = _run_block(t, step, name, run, run.block.takes(handed[0]), x)
        if out.__class__ is tuple:
            out, handed[0] = out
        x = out
        del out
        left -= 1
        # The next ones are like this one, unless gradients only begin here, or what came in is the
        # embeddings, which outlive this block where a checkpoint would keep them anyway, or no block
        # before it had returned its attention weights.
        held_before = (step.checkpointing and not t.handed_back) or len(plays) > 1
        if standing is not None and had_grad == (x.edge is not None) and held_before:
            standing[key] = len(plays) - 1
    return x


def _pass_run(
    t: Player, run: BlockRun, first: int, passed: list[Tensor], handed: list[Any], passing: list[Play]
) -> Tensor:
    """Every block of a run, one after the other, without a graph."""
    x = passed.pop()
    for number in range(run.count):
        name = f"{run.path}.{run.first_index + number}"
        t.mark(f"{name} without a graph")
        t.layer = first + number
        passing.append(Play(name, t.layer, 1, forward_segment=len(t.segments) - 1))
        out = _call_block(t, name, run, run.block.takes(handed[0]), x)
        if out.__class__ is tuple:
            out, handed[0] = out
        x = out
        del out
    return x


def _run_block(t: Player, step: StepSpec, name: str, run: BlockRun, given: Any, x: Tensor) -> Any:
    forward = partial(_call_block, t, name, run)
    if not step.checkpointing or not t.training:
        return forward(given, x)
    if step.use_reentrant:
        return t.checkpoint_reentrant(forward, run.block, given, x)
    return t.checkpoint(partial(forward, given), x)


def _call_block(t: Player, name: str, run: BlockRun, given: Any, x: Tensor) -> Any:
    try:
        return t.call(name, run.block, x, given)
    finally:
        t.block_weights.clear()
