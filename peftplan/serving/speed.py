"""Seconds of a prompt and of a token, with adapters beside their linears and with one merged in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftplan.catalog import GpuRecord
from peftplan.cost.rates import host_bytes_per_s
from peftplan.cost.run import DISK_BYTES_PER_S
from peftplan.cost.serving import (
    Gather,
    Rows,
    cache_work,
    decode_time,
    gathered_work,
    in_turns,
    missed_frac,
    num_launches,
    pass_work,
    prefill_time,
    split_seconds,
    with_experts,
    with_packed,
)
from peftplan.cost.step_time import StepTime
from peftplan.memory.generation import play_pass
from peftplan.serving import answers
from peftplan.serving.device import Shape
from peftplan.specs.work import Kernel, Work, total_bytes, total_flop
from peftplan.units import format_bytes

_WEIGHTS = ("base", "head")


@dataclass(slots=True)
class Passes:
    """The work of a server's passes; `dtype` is what it computes in, by its short name."""

    shape: Shape
    gpu: GpuRecord
    dtype: str
    base_itemsize: int
    itemsize: int  # of an adapter's numbers

    def decode_work(self, distinct: int) -> Work:
        """A step of the whole batch with so many different adapters in it; 0: one that is merged in."""
        shape, load = self.shape, self.shape.asked
        served = shape.served
        cache = cache_work(shape.layers, shape.form, Rows(load.concurrency, self.context), self.dtype)
        gathers = shape.paged and served.pairs is not None
        adapted = distinct > 0 and not gathers
        model = shape.decoding(adapted)
        work = pass_work(shape.decode(load, adapted), model, fused=shape.paged)
        work = self._packed(with_experts(work, model, load.concurrency, served.experts_frac), load.concurrency)
        if adapted and served.pairs is not None and shape.mixes:
            work = in_turns(work, distinct, sum(pair.count for pair in served.pairs), self.dtype)
        if distinct and gathers and not shape.prompt_positions:
            work += self._gathered(load.concurrency, distinct)
        return work + cache

    def prefill_work(self) -> Work:
        """One prompt, with one adapter."""
        shape = self.shape
        prompt, served = shape.prompt_tokens(shape.asked), shape.served
        gathers = shape.paged and served.pairs is not None
        model = served.base if gathers else served.adapted
        played = play_pass(model, shape.step, 1, prompt, 1)
        work = pass_work(played, model, fused=shape.paged)
        work = self._packed(with_experts(work, model, prompt, served.experts_frac), prompt)
        return work + self._gathered(prompt, 1) if gathers else work

    def _packed(self, work: Work, tokens: int) -> Work:
        return with_packed(work, tokens, self.shape.served.linears_frac, self.base_itemsize)

    def _gathered(self, tokens: int, distinct: int) -> Work:
        served = self.shape.served
        assert served.pairs is not None
        how = Gather(self.itemsize, served.scale, self.dtype, missed_frac(served.base))
        return gathered_work(served.pairs, tokens, distinct, how)

    @property
    def context(self) -> int:
        """Tokens before the one that is generated, half way through the new ones."""
        shape = self.shape
        new = shape.serving.new_tokens or 1
        return shape.prompt_tokens(shape.asked) + new // 2 + shape.prompt_positions

    def decoded(self, work: Work) -> StepTime | None:
        """Seconds of a step; a paged server replays it."""
        return decode_time(work, self.gpu, replayed=self.shape.paged)


def speed_of(passes: Passes) -> answers.Speed | None:
    """Everything that takes time; None where no rate is known for a type that is computed in."""
    shape, load = passes.shape, passes.shape.asked
    distinct = shape.serving.distinct or 1
    work, merged = passes.decode_work(distinct), passes.decode_work(0)
    prompt_work = passes.prefill_work()
    step, alone = passes.decoded(work), passes.decoded(merged)
    prompt = prefill_time(prompt_work, passes.gpu)
    if step is None or alone is None or prompt is None:
        return None
    prompt_tokens = shape.prompt_tokens(load)
    return answers.Speed.model_construct(
        decode=_decode(passes, work, step),
        prefill=answers.Prefill.model_construct(
            prompt_tokens=prompt_tokens,
            prompt_s=prompt.step_s,
            tokens_per_s=prompt_tokens / prompt.step_s,
            num_flop=prompt.num_flop,
        ),
        bypass=_bypass(passes, work, merged, step.step_s, alone.step_s),
        mixed=tuple(_mixed(passes, number) for number in _numbers(distinct if shape.mixes else 1)),
        swap=_swap(shape, passes.gpu),
        load=_load(shape, prompt.step_s, step.step_s),
    )


def _decode(passes: Passes, work: Work, step: StepTime) -> answers.Decode:
    concurrency = passes.shape.asked.concurrency
    split = split_seconds(work, step, passes.gpu, replayed=passes.shape.paged)
    by_part: dict[str, list[Kernel]] = {}
    for row in work:
        by_part.setdefault(row.part, []).append(row)
    weights = sum(total_bytes(by_part.pop(part, ())) for part in _WEIGHTS)
    cache, adapters = (total_bytes(by_part.pop(part, ())) for part in ("cache", "adapter"))
    return answers.Decode.model_construct(
        step_s=step.step_s,
        tokens_per_s=concurrency / step.step_s,
        sequence_tokens_per_s=1 / step.step_s,
        bound=split.bound,
        terms=split.terms,
        bytes=answers.StepBytes.model_construct(
            weights=weights,
            cache=cache,
            adapters=adapters,
            other=sum(total_bytes(rows) for rows in by_part.values()),
        ),
        num_flop=step.num_flop,
        num_launches=num_launches(work),
    )


def _bypass(passes: Passes, work: Work, merged: Work, step_s: float, alone_s: float) -> answers.Bypass:
    shape = passes.shape
    served, tokens, distinct = shape.served, shape.asked.concurrency, shape.serving.distinct or 1
    if shape.prompt_positions:
        formula = f"{shape.prompt_positions} positions more in every sequence's cache; nothing beside the linears"
    elif served.pairs is not None and shape.paged:
        linears = sum(pair.count for pair in served.pairs)
        experts = any(pair.experts > 1 for pair in served.pairs)
        formula = (
            f"2 flop for each number of an adapter and token; {distinct} x {format_bytes(served.hot_bytes)} read a "
            f"step, and rows in and out; 2 launches x {linears:,} {'layers' if experts else 'linears'}"
            + ("; of experts those that tokens visit" if experts else "")
        )
    else:
        formula = "launches of the model with peft's layers, less those of the model without"
    return answers.Bypass.model_construct(
        flop_per_token=(total_flop(work) - total_flop(merged)) / tokens,
        bytes_per_step=total_bytes(work) - total_bytes(merged),
        launches_per_step=num_launches(work) - num_launches(merged),
        merged_step_s=alone_s,
        adds_s=step_s - alone_s,
        adds_frac=step_s / alone_s - 1,
        formula=formula,
    )


def _numbers(distinct: int) -> Sequence[int]:
    """1, 2, 4, ... up to what was asked for."""
    return [*(n for n in (2**k for k in range(distinct.bit_length())) if n < distinct), distinct]


def _mixed(passes: Passes, distinct: int) -> answers.Mixed:
    work = passes.decode_work(distinct)
    step, concurrency = passes.decoded(work), passes.shape.asked.concurrency
    assert step is not None
    return answers.Mixed.model_construct(
        distinct=distinct,
        adapter_bytes=total_bytes(row for row in work if row.part == "adapter"),
        step_s=step.step_s,
        tokens_per_s=concurrency / step.step_s,
    )


def _swap(shape: Shape, gpu: GpuRecord) -> answers.Swap:
    rate, size = host_bytes_per_s(gpu), shape.served.bytes
    return answers.Swap.model_construct(
        bytes=size,
        link=f"PCIe {gpu.pcie}",
        link_bytes_per_s=rate,
        from_host_s=size / rate,
        from_disk_s=shape.served.disk_bytes / DISK_BYTES_PER_S + size / rate,
    )


def _load(shape: Shape, prompt_s: float, step_s: float) -> answers.Load:
    """Each request takes its prompt's pass alone, and of every step of its new tokens a share of the batch."""
    new = shape.serving.new_tokens or 1
    request_s = prompt_s + new * step_s / shape.asked.concurrency
    return answers.Load.model_construct(
        requests_per_s=1 / request_s,
        generated_tokens_per_s=new / request_s,
        prefill_frac=prompt_s / request_s,
    )
