"""One forward pass of generation, without a graph: a prompt, or the next token of every sequence.

The model's own program is played, so that what a pass holds and launches follows from it. Keys and values of
earlier tokens are no part of it (`kv_cache`): a pass over one token a sequence attends to that token alone, and
what attention reads of the cache is added by the reader. The head works on the last position of each sequence
only, and its logits are brought to fp32 and turned into probabilities, as samplers do.

Source: transformers-generate
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from peftplan.memory.passes import Passes, logits_of, scaled_logits
from peftplan.memory.player import Player
from peftplan.memory.timeline import Timeline
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor

_HEAD = "last positions"


@dataclass(frozen=True, slots=True)
class Pass:
    """A played pass: the most it holds above weights and cache, rounded, and its tape.

    `blocks_bytes`: the most up to the head, where the cache grows; `extra_positions`: what a method puts before
    every sequence.
    """

    peak_bytes: int
    blocks_bytes: int
    timeline: Timeline
    extra_positions: int


def play_pass(model: ModelSpec, step: StepSpec, rows: int, length: int, sampled: int) -> Pass:
    """`rows` sequences of `length` new tokens each, the last positions of `sampled` sequences given to the head."""
    t = Player()
    _choose_attention(t, model, step)
    step = replace(step, micro_batch=rows, seq_len=length, checkpointing=False)
    shape, numel = (rows, length), rows * length
    ids = t.new(shape, numel, INT64, "input ids")
    mask = t.new(shape, numel, INT64, "attention mask")
    t.kind, t.training = "activation", False
    extra: list[int] = []

    def head(t: Player, model: ModelSpec, step: StepSpec, x: Tensor, labels: Tensor | None) -> tuple[Any, Any]:
        extra.append(x.shape[1] - length + t.prefix_length)
        t.mark(_HEAD)
        last = _last_positions(t, x, sampled)
        del x
        made = [logits_of(t, model, last)]
        t.mark("sampling")
        scores = t.to(scaled_logits(t, model, made), FP32)
        made.clear()
        chosen = t.softmax(scores)
        del chosen, scores
        return None, None

    timeline = Timeline(t, [])
    with t.no_grad():
        # the ids stand for labels, which methods make longer with the sequence as generation does its mask
        Passes(timeline, model, step).forward(ids, ids, head)
    t.mark("end")
    del ids, mask
    names = [segment.name for segment in t.segments]
    peaks = [segment.peak_bytes for segment in t.segments]
    return Pass(max(peaks), max(peaks[: names.index(_HEAD)]), timeline, extra[0])


def _last_positions(t: Player, x: Tensor, sampled: int) -> Tensor:
    """The hidden states of the last positions: a view where every sequence is sampled, else gathered rows."""
    shape = (sampled, 1, x.shape[2])
    if x.shape[0] == sampled:
        return t.slice(x, shape)
    return t.new(shape, sampled * x.shape[2], x.dtype, "index_select")


def _choose_attention(t: Player, model: ModelSpec, step: StepSpec) -> None:
    """The implementation asked for, or eager where the family has no other."""
    t.compute_capability, t.behaviour = step.compute_capability, model.behaviour
    t.attention = step.attention if step.attention in model.attention_kinds else "eager"
    if t.attention == "flash":
        linears = (module for _, module in model.runs[0].block.walk() if isinstance(module, Linear))
        t.load_dtype = next(linear.weight.dtype for linear in linears)
