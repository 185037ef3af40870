"""Memory of a run whose batches differ in length: what is reserved after its steps, not at a peak of one length."""

from __future__ import annotations

from peftplan.cost.buckets import Bucketed, batch_lengths, steps_at
from peftplan.memory.varying import reserved_after_steps
from peftplan.planner import settle
from peftplan.request import Request
from peftplan.resolve import resolve


def reserved_share(request: Request, batches: Bucketed, frac: float) -> int:
    """What is reserved after a step at most, in a share `frac` of all steps [bytes].

    The windows between two emptyings of the cache around that share are replayed, one after the other behind the
    run's first step, and the one in its place among them answers.

    Raises: BadInput, as an estimate does.
    """
    plan = resolve(request)
    model = settle(plan).model
    longest = batch_lengths(batches, plan.step.micro_batch, plan.step.seq_len)
    windows, place = steps_at(longest, batches, frac)
    lengths, emptied, ends = [longest[0]], [], []
    for window in windows:
        emptied += [len(lengths), len(lengths) + len(window.before)]
        lengths += [*window.before, *window.own]
        ends.append(len(lengths) - 1)
    reserved = reserved_after_steps(model, plan.step, lengths, emptied)
    return sorted((reserved[end] for end in ends), reverse=True)[place]
