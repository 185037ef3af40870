"""What an answer has to say beside its figures: what is arithmetic, what was fitted, what is assumed."""

from __future__ import annotations

from peftplan.catalog import GpuRecord
from peftplan.catalog.step_time_fit import step_time_fit
from peftplan.notes import gpu_notes, length_notes, unused_notes
from peftplan.resolve import Plan
from peftplan.serving import answers
from peftplan.serving.adapters import Served
from peftplan.serving.device import Shape
from peftplan.timing import NO_TIME
from peftplan.units import MILLION

NO_BF16 = "{} cannot multiply in bf16, which runs at a fraction of the fp16 rate there; take --base-dtype fp16"
NO_GPU = "no time and no cost: no GPU is named; --gpu names one"
MEMORY = "memory: arithmetic over tensors; CUDA graphs, fragments and a server's own tables are not in it"

TOO_LARGE = (
    "the base alone exceeds the GPU, and serve cuts no model over several: --quant packs it, --gpu names another"
)
TOO_MUCH = "no single change of --concurrency, --hot or --seq-len makes it fit: lower two, or take a larger GPU"


def server_notes(plan: Plan, models: Served, shape: Shape) -> list[str]:
    """Where figures of memory come from, and what stands for what."""
    method, serving = plan.method, shape.serving
    notes = [plan.found.origin]
    notes += length_notes(plan.request, plan.max_seq_len)
    notes += unused_notes(plan.request, method)
    notes += models.stored.notes
    notes.append(f"--method {method.name}, merging: {method.merging}; at inference: {method.inference}")
    notes += _cache_notes(shape)
    if serving.slot_rank is not None:
        notes.append(
            f"places of rank {serving.slot_rank} stand beside the targeted modules; vLLM makes them beside every "
            "module that it supports, unless its target_modules names some"
        )
    if not shape.mixes:
        notes.append(
            f"--server {serving.server} runs this adapter as peft does, which changes or replaces what its modules "
            "compute: a batch holds one adapter at a time"
        )
    if plan.request.gpus > 1:
        notes.append(f"each of {plan.request.gpus} GPUs holds all of it and serves its own sequences")
    if models.stored is not models.base:
        notes.append(
            "the base is multiplied as it is packed, by kernels that read what is stored at the rate of dense "
            "weights and compute in 16 bits: the best that such kernels reach (Marlin), up to some 16 rows"
        )
    if not method.merges:
        notes.append(f"--method {method.name} cannot be merged: copies of the model are ones trained whole")
    elif any(p.quant is not None for _, p, _ in models.stored.parameters()):
        notes.append("copies of the model are dense: an adapter is merged into weights that are unpacked first")
    return [*notes, MEMORY, *gpu_notes(plan.gpu)]


def fit_notes(shape: Shape, room_bytes: int, limits: answers.Limits) -> list[str]:
    """What would make a server fit that does not: less of one thing, or a smaller base."""
    found = []
    if limits.max_concurrency is not None:
        found.append(f"--concurrency {limits.max_concurrency}")
    if limits.max_hot is not None:
        found.append(f"--hot {limits.max_hot}")
    if limits.max_seq_len is not None:
        found.append(f"--seq-len {limits.max_seq_len}")
    if found:
        return [f"it would fit with {' or '.join(found)}"]
    if shape.weights.allocated > room_bytes:
        return [TOO_LARGE]
    return [TOO_MUCH]


def _cache_notes(shape: Shape) -> list[str]:
    if shape.paged:
        text = (
            f"cache: blocks of {shape.form.block} tokens from a pool as vLLM has it, every sequence at its full "
            "length; blocks that a window has left are given back"
        )
    else:
        text = "cache: what transformers' DynamicCache holds; a window is cut after the first generated token"
    notes = [text]
    kept = {(shape.form.values(x.caches), x.caches.expansion) for x in shape.layers if x.caches.expansion}
    for values, expansion in kept:
        text = f"latent attention: {values} numbers of a token and layer are kept, as vLLM and transformers 5.23 do"
        if shape.paged or expansion is None:
            notes.append(f"{text}; a server folds the projection into queries and results")
        else:
            notes.append(f"{text}, which makes {expansion.num_made:,} of them anew at each token, layer by layer")
    return notes


def speed_notes(gpu: GpuRecord | None, speed: answers.Speed | None, shape: Shape, base_dtype: str) -> list[str]:
    """Which figures of time and money are fitted, and which assumed."""
    if gpu is None:
        return [NO_GPU]
    if speed is None:
        return [NO_TIME.format(gpu.name)]
    fit = step_time_fit()
    known = fit.constants
    launches = "launches replayed from a graph" if shape.paged else "launches made by Python"
    time = (
        f"time: bytes and flop are arithmetic; {known.bandwidth_frac:.0%} of the memory's peak rate was fitted to "
        f"training steps up to {fit.date}; assumed are {launches} and {known.floor_s * MILLION:.1f} us of the "
        "shortest; kernels that gather adapters may take longer. No server was measured here"
    )
    load = (
        "load: requests wait at all times, prompts take turns with steps of generation, and every answer has all "
        "its new tokens"
    )
    notes = [time, "swap: at the link's rate and a disk of 125 MiB/s, which are assumed", load]
    if base_dtype == "bf16" and not gpu.bf16_native:
        notes.insert(0, NO_BF16.format(gpu.name))
    return notes
