"""Work and seconds of generation: the model's own pass, what attention reads of the cache, adapters beside linears.

A step of generation is bound by what it reads: weights once for the whole batch, the cache of every sequence, the
adapters of the batch once each. The launches are those of the played pass, one by one, with these changes:

* experts: of a fused layer's weights those that the batch's tokens visit, E (1 - (1 - k / E)^tokens) of E experts;
* attention: every query reads what it sees of its cache (`memory.kv_cache`), and multiplies with each number twice;
* DynamicCache: each layer's keys and values are joined with the new ones, which reads and writes them once more;
  latents are expanded into whole keys and values of all tokens;
* adapters of a paged server (Punica's SGMV, S-LoRA's MBGMV): two launches for each adapted linear, one to the rank
  and one back, which read each distinct adapter's matrices once, at the rank of their place, and 2 flop for each
  number of a matrix and token; between them rows of fp32; of experts' adapters those of visited experts;
* adapters of peft in a mixed batch: its launches once for each adapter, and the rows' way in and out beside them.

Assumes: tokens visit experts evenly and independently of one another; nothing of weights and cache is left in the
last cache from step to step. A paged server replays its launches (CUDA graphs), so that the host takes no time.

Source: roofline, punica, s-lora
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from peftplan.catalog import GpuRecord
from peftplan.catalog.step_time_fit import Constants, step_time_fit
from peftplan.cost.fusion import fused_launches
from peftplan.cost.kinds import LABELS, kind_of
from peftplan.cost.parts import Parts
from peftplan.cost.rates import rates
from peftplan.cost.step_time import Setting, StepTime, step_time
from peftplan.cost.work import segments_of
from peftplan.memory.generation import Pass
from peftplan.memory.kv_cache import CachedLayers, CacheForm, seen_tokens
from peftplan.methods.bypass import Pair
from peftplan.specs.model import ModelSpec
from peftplan.specs.work import Kernel, Work

_EXPERTS = "_grouped_mm"
_FP32_BYTES = 4
# Beside what peft launches for the one adapter of a batch: rows of x and of the result taken out, the sum put back,
# and the three lists of rows that this takes to the device. Source: peft 0.21 tuners/lora/layer.py.
_MIXED_LAUNCHES = 6


@dataclass(frozen=True, slots=True)
class Rows:
    """What a pass works on: `tokens` new ones in all, each behind `context` earlier ones of its own sequence."""

    tokens: int
    context: int


def pass_work(played: Pass, model: ModelSpec, fused: bool) -> Work:
    """The launches of a played pass; `fused`: norms, rotary embeddings and activations run as one kernel each."""
    parts, found = Parts(model), Counter[Kernel]()
    for _, count, launches in segments_of(played.timeline):
        run = fused_launches(launches, parts, False, False) if fused else launches
        for phase, op, module, dtype, num_flop, read, written in run:
            kind = kind_of(op, num_flop)
            part = parts.of(module, kind, False)
            row = Kernel(phase, kind, part, op, LABELS.get(op, dtype), num_flop, read, written, 1)
            found[row] += count
    return tuple(row._replace(count=count) for row, count in found.items())


def missed_frac(model: ModelSpec) -> float:
    """The share of fused experts that one token does not visit; 0 without experts."""
    total = sum(p.numel * n for _, p, n in model.parameters() if p.role == "weight" and len(p.shape) == 3)
    return min(model.inactive_params / total, 1.0) if total else 0.0


def with_experts(work: Work, model: ModelSpec, tokens: int, packed_frac: float = 1.0) -> Work:
    """The same with the weights of visited experts alone, which take `packed_frac` of dense ones."""
    frac = packed_frac * (1 - missed_frac(model) ** tokens)
    return tuple(
        row._replace(bytes_read=round(row.bytes_read * frac)) if row.op == _EXPERTS else row for row in work
    )


def with_packed(work: Work, tokens: int, packed_frac: float, itemsize: int) -> Work:
    """The same where the base's linears are multiplied as they are packed, in `packed_frac` of a dense one's bytes.

    A product of n tokens computes 2 n flop with each weight, which it reads once.
    """
    if packed_frac == 1:
        return work
    found = []
    for row in work:
        if row.part == "base" and row.kind == "matmul" and row.op != _EXPERTS:
            saved = (1 - packed_frac) * itemsize * row.num_flop / (2 * tokens)
            row = row._replace(bytes_read=max(row.bytes_read - round(saved), 0))
        found.append(row)
    return tuple(found)


def cache_work(layers: Iterable[CachedLayers], form: CacheForm, rows: Rows, dtype: str) -> Work:
    """What attention adds over the cache, for one new token of each of `rows.tokens` sequences."""
    found: list[Kernel] = []
    for layer in layers:
        found += _attention(layer, form, rows, dtype)
    return tuple(found)


def _attention(layer: CachedLayers, form: CacheForm, rows: Rows, dtype: str) -> list[Kernel]:
    caches, count = layer.caches, layer.count
    seen = rows.tokens * seen_tokens(caches, rows.context)
    kept = seen * form.values(caches) * form.itemsize
    dims, read = (caches.key_dim, caches.value_dim), kept
    found: list[Kernel] = []
    if form.block is None:
        for numbers in (caches.keys, caches.values):
            joined = seen * numbers * form.itemsize
            found.append(Kernel("forward", "elementwise", "cache", "cat", dtype, 0, joined, joined, count))
    if caches.expansion is not None:
        if form.block is not None:
            dims = caches.expansion.key_dim, caches.expansion.value_dim
        else:
            made = seen * caches.expansion.num_made * form.itemsize
            num_flop = 2 * seen * caches.keys * caches.expansion.num_outputs
            found.append(Kernel("forward", "matmul", "cache", "expand", dtype, num_flop, kept, made, count))
            read = made
    num_flop = 2 * seen * caches.heads * sum(dims)
    found.append(Kernel("forward", "attention", "cache", "flash over the cache", dtype, num_flop, read, 0, count))
    return found


@dataclass(frozen=True, slots=True)
class Gather:
    """How adapters are gathered: bytes of their numbers, how many times as large as computed they are stated to be.

    `missed`: the share of experts that a token does not visit.
    """

    itemsize: int
    scale: float
    dtype: str
    missed: float


def gathered_work(pairs: Sequence[Pair], tokens: int, distinct: int, how: Gather) -> Work:
    """Gathered adapters of all tokens of a batch together, which are shared evenly among `distinct` adapters."""
    found = []
    for pair in pairs:
        rows, matrices = tokens, float(distinct)
        if pair.experts > 1:
            rows = round(tokens * pair.experts * (1 - how.missed))
            matrices *= pair.experts * (1 - how.missed ** (tokens / distinct))
        middle = rows * pair.rank * _FP32_BYTES
        for wide, flows_in in ((pair.inputs, True), (pair.outputs, False)):
            weights = round(matrices * wide * pair.rank * how.itemsize * how.scale)
            beside = rows * wide * how.itemsize
            read = weights + beside + (0 if flows_in else middle)
            written = middle if flows_in else beside
            num_flop = 2 * rows * wide * pair.rank
            op = "to the rank" if flows_in else "from the rank"
            found.append(Kernel("forward", "gather", "adapter", op, how.dtype, num_flop, read, written, pair.count))
    return tuple(found)


def in_turns(work: Work, distinct: int, num_linears: int, dtype: str) -> Work:
    """peft's own launches with so many adapters in a batch: one adapter after the other."""
    if distinct == 1:
        return work
    turned = tuple(row._replace(count=row.count * distinct) if row.part == "adapter" else row for row in work)
    count = _MIXED_LAUNCHES * distinct * num_linears
    return (*turned, Kernel("forward", "gather", "adapter", "rows of an adapter", dtype, 0, 0, 0, count))


def prefill_time(work: Work, gpu: GpuRecord) -> StepTime | None:
    """Seconds of a prompt's pass, launched one by one as a training step's forward pass is."""
    return step_time(work, gpu, Setting())


def decode_time(work: Work, gpu: GpuRecord, replayed: bool) -> StepTime | None:
    """Seconds of a step of generation; `replayed`: its launches wait in a graph, so that the host takes no time."""
    known: Constants = replace(step_time_fit().constants, near_speed=1.0)
    if replayed:
        known = replace(known, host_s=0.0)
    return step_time(work, gpu, Setting(), known)


@dataclass(frozen=True, slots=True)
class Split:
    """A step's seconds by what the GPU works on, and what binds it; they sum to the step."""

    terms: dict[str, float]
    bound: str


_TERM_OF_PART = {"base": "weights", "head": "weights", "cache": "cache", "adapter": "adapters"}


def split_seconds(work: Work, step: StepTime, gpu: GpuRecord, replayed: bool) -> Split:
    """The step part by part, and what most of it is: bytes, flop, the shortest of launches, or the host."""
    by_term: dict[str, list[Kernel]] = {}
    for row in work:
        by_term.setdefault(_TERM_OF_PART.get(row.part, "other"), []).append(row)
    terms = {}
    for name in ("weights", "cache", "adapters", "other"):
        alone = decode_time(tuple(by_term[name]), gpu, replayed) if name in by_term else None
        if alone is not None:
            terms[name] = alone.step_s - alone.terms.get("launches", 0.0)
    host_s = step.terms.get("launches", 0.0)
    if host_s:
        terms["launches"] = host_s
    found, known = rates(gpu), step_time_fit().constants
    bytes_s = sum(row.num_bytes * row.count for row in work) / (found.num_bytes * known.bandwidth_frac)
    flop_s = sum(row.num_flop * row.count / found.flop[row.dtype] for row in work if row.num_flop)
    shares = {
        "memory bandwidth": bytes_s,
        "compute": flop_s,
        "host launches": host_s,
        "the shortest launches": step.step_s - host_s - bytes_s - flop_s,
    }
    return Split(terms, max(shares, key=lambda name: shares[name]))


def num_launches(work: Work) -> int:
    """Kernels that are launched."""
    return sum(row.count for row in work)
