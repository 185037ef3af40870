"""The service: a request in, a report out."""

from __future__ import annotations

from dataclasses import asdict

from peftplan.catalog import GpuRecord
from peftplan.memory.account import Account, account
from peftplan.memory.load import evaluation_peak, load_bytes
from peftplan.memory.overheads import context
from peftplan.memory.reserved import reserved_bytes
from peftplan.report import (
    SCHEMA_VERSION,
    GpuFit,
    Interval,
    LoadBytes,
    Memory,
    MethodFacts,
    ModelFacts,
    RecipeTotal,
    Report,
    ResidentBytes,
)
from peftplan.request import Request
from peftplan.resolve import FULL_RECIPES, Plan, resolve

# The libraries whose behaviour the answer mirrors.
REFERENCE_VERSIONS = {
    "torch": "2.13",
    "transformers": "5.23",
    "peft": "0.21",
    "bitsandbytes": "0.50",
}


def estimate(request: Request) -> Report:
    """Memory of one run on one device, from the model's config alone."""
    plan = resolve(request)
    num_params = plan.model.num_params()
    plan.method.apply(plan.model, plan.method_spec)
    settled = account(plan.model, plan.step)
    reserved = reserved_bytes(plan.model, plan.step, settled)
    memory = _memory(plan, settled, reserved)
    resident = settled.resident
    return Report.model_construct(
        schema_version=SCHEMA_VERSION,
        request=plan.request.model_dump(),
        model=ModelFacts.model_construct(
            id=plan.found.id,
            architecture=plan.model.family,
            num_params=num_params,
            num_active_params=num_params - plan.model.inactive_params,
        ),
        method=MethodFacts.model_construct(
            kind=plan.method.name,
            num_trainable_params=resident.num_trainable,
            trainable_frac=resident.num_trainable / (num_params + resident.num_adapter),
            adapter_checkpoint_bytes=resident.adapter_checkpoint_bytes,
        ),
        memory=memory,
        gpu=_fit(plan.gpu, plan, memory) if plan.gpu is not None else None,
        time=None,
        cost=None,
        recipes=_other_recipes(plan),
        versions=dict(REFERENCE_VERSIONS),
        notes=_notes(plan),
    )


def _memory(plan: Plan, settled: Account, reserved: int) -> Memory:
    outside = context(plan.step.compute_capability)
    resident = settled.resident
    middle = reserved + resident.paged_bytes + outside.middle_bytes
    return Memory.model_construct(
        peak_moment=settled.peak_moment,
        peak_allocated_bytes=settled.peak_allocated_bytes,
        peak_reserved_bytes=reserved,
        device_bytes=middle,
        interval=Interval.model_construct(
            low_bytes=settled.peak_allocated_bytes + outside.low_bytes,
            high_bytes=reserved + resident.paged_bytes + outside.high_bytes,
            coverage=0.9,
            basis=outside.basis,
        ),
        resident=ResidentBytes.model_construct(
            weights=resident.weights.requested,
            adapters=resident.adapters.requested,
            gradients=resident.gradients.requested,
            master_weights=resident.master_weights.requested,
            optimizer_states=resident.optimizer_states.requested,
        ),
        activations_bytes=settled.activations_bytes,
        moments=settled.moments,
        evaluation_peak_bytes=evaluation_peak(plan.model, plan.step, settled.resident),
        load=LoadBytes.model_construct(**asdict(load_bytes(plan.model, settled.resident))),
        breakdown=settled.breakdown,
    )


def _fit(gpu: GpuRecord, plan: Plan, memory: Memory) -> GpuFit:
    """Whether the run completes: what must be held against what the card can give.

    The allocator returns cached blocks before it fails, so reserved memory beyond the allocated peak
    counts only in the cautious end of the interval.
    """
    outside = context(plan.step.compute_capability)
    needed = memory.peak_allocated_bytes + outside.middle_bytes
    high = memory.interval.high_bytes
    fits = needed <= gpu.usable_bytes
    certain = high <= gpu.usable_bytes or memory.interval.low_bytes > gpu.usable_bytes
    return GpuFit.model_construct(
        name=gpu.name,
        num_gpus=plan.request.gpus,
        sold_bytes=gpu.sold_bytes,
        driver_bytes=gpu.driver_bytes,
        usable_bytes=gpu.usable_bytes,
        fits=fits,
        certain=certain,
        headroom_bytes=gpu.usable_bytes - needed,
    )


def _other_recipes(plan: Plan) -> tuple[RecipeTotal, ...]:
    """Totals of every precision recipe for full fine-tuning: an unstated recipe is where tools disagree."""
    if plan.method.frozen_base:
        return ()
    totals = []
    for precision, (weights, _) in FULL_RECIPES.items():
        request = plan.request.model_copy(
            update={"precision": precision, "base_dtype": weights.short}
        )
        other = resolve(request)
        other.method.apply(other.model, other.method_spec)
        peak = account(other.model, other.step).peak_allocated_bytes
        totals.append(
            RecipeTotal.model_construct(
                precision=precision,
                peak_allocated_bytes=peak,
                bytes_per_param=peak / other.model.num_params(),
            )
        )
    return tuple(totals)


def _notes(plan: Plan) -> tuple[str, ...]:
    request, model = plan.request, plan.model
    notes = [plan.found.origin, _recipe_note(plan)]
    limit = model.max_seq_len
    if limit is not None and request.seq_len is not None and request.seq_len > limit:
        notes.append(f"--seq-len {request.seq_len} is above the model's limit of {limit} positions")
    notes.extend(model.notes)
    if plan.gpu is not None:
        notes.append(f"{plan.gpu.name}: usable memory {plan.gpu.capacity_basis}")
        if plan.gpu.compute_capability is None:
            notes.append(f"{plan.gpu.name} is no CUDA device: kernels of an A100 are assumed")
    notes.append("peak_reserved_bytes is modelled, not derived to the byte; device_bytes adds a CUDA context from literature")
    return tuple(notes)


def _recipe_note(plan: Plan) -> str:
    request = plan.request
    text = f"recipe {request.precision}: base in {request.base_dtype}"
    if request.quant:
        text += f", linears packed as {request.quant}" + (
            " with double quantisation" if request.double_quant and request.quant != "int8" else ""
        )
    if plan.method.frozen_base:
        text += f", adapters in {request.adapter_dtype}"
    autocast = plan.step.autocast
    text += f", autocast to {autocast.short}" if autocast else ", no autocast"
    return text + f", optimizer {request.optimizer}, {request.loop} loop"
