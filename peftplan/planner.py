"""The service: a request in, a report out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass

from peftplan.catalog import GpuRecord
from peftplan.changes import single_changes
from peftplan.errors import BadInput, PeftplanError
from peftplan.memory.account import Account, account
from peftplan.memory.intervals import around_device, is_certain, kind_of_run
from peftplan.memory.load import Loading, evaluation_peak, load_bytes
from peftplan.memory.reserved import Replay
from peftplan.report import (
    SCHEMA_VERSION,
    Change,
    Comparison,
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
from peftplan.resolve import FULL_RECIPES, Plan, outside_allocator, resolve
from peftplan.specs.formats import DType
from peftplan.specs.model import ModelSpec

MATH_ATTENTION = (
    "attention: torch's flash and memory-efficient kernels do not take these heads, types and masks on "
    "this GPU, so its math form runs and holds scores of length x length for every head"
)
# By attention implementation: what a padded batch changes.
PADDING = {
    "sdpa": "padding: torch's flash kernel takes no mask; another runs, with a mask of length x length a sequence",
    "flash": "padding: the package drops padded tokens; all but one token are taken to be real, the most there are",
    "eager": "padding: attention written out takes a mask of length x length for every sequence, padded or not",
}


@dataclass(slots=True)
class Settled:
    """What a model, a method and a step come to, whatever the card: kept for the next like request."""

    model: ModelSpec
    num_params: int
    account: Account
    replay: Replay
    reserved_bytes: int
    evaluation_peak_bytes: int
    load: Loading
    least_capacity_bytes: int = 0  # found when a card is asked for


_KEPT: OrderedDict[Hashable, Settled] = OrderedDict()
_KEPT_AT_MOST = 64


def settle(plan: Plan) -> Settled:
    """Rewrite the model, play the step and account for it; like plans are answered from memory."""
    key = (plan.found.key(), plan.method.name, plan.method_spec, plan.step, plan.versions)
    settled = _KEPT.get(key)
    if settled is None:
        model, step = plan.model, plan.step
        num_params = model.num_params()
        plan.method.apply(model, plan.method_spec)
        settled_account = account(model, step)
        replay = Replay(model, step, settled_account)
        settled = _KEPT[key] = Settled(
            model=model,
            num_params=num_params,
            account=settled_account,
            replay=replay,
            reserved_bytes=replay.run(),
            evaluation_peak_bytes=evaluation_peak(model, step, settled_account.resident),
            load=load_bytes(model, settled_account.resident),
        )
        while len(_KEPT) > _KEPT_AT_MOST:
            _KEPT.popitem(last=False)
    return settled


def estimate(request: Request, *, recipes: bool = True) -> Report:
    """Memory of one run on one device, from the model's config alone; `recipes`: other precisions' totals too."""
    plan = resolve(request)
    settled = settle(plan)
    memory = _memory(plan, settled)
    resident, num_params = settled.account.resident, settled.num_params
    return Report.model_construct(
        schema_version=SCHEMA_VERSION,
        request=plan.request.model_dump(),
        model=ModelFacts.model_construct(
            id=plan.found.id,
            architecture=settled.model.family,
            num_params=num_params,
            num_active_params=num_params - settled.model.inactive_params,
        ),
        method=MethodFacts.model_construct(
            kind=plan.method.name,
            num_trainable_params=resident.num_trainable,
            trainable_frac=resident.num_trainable / (num_params + resident.num_adapter),
            adapter_checkpoint_bytes=resident.adapter_checkpoint_bytes,
        ),
        memory=memory,
        gpu=_fit(plan.gpu, plan, settled, memory) if plan.gpu is not None else None,
        time=None,
        cost=None,
        recipes=_other_recipes(plan) if recipes else (),
        versions=plan.versions.by_name(),
        notes=_notes(plan, settled),
    )


def _memory(plan: Plan, settled: Settled) -> Memory:
    outside = outside_allocator(plan.request, plan.gpu, plan.step)
    account, reserved = settled.account, settled.reserved_bytes
    resident = account.resident
    middle = reserved + resident.paged_bytes + outside.middle_bytes
    kind = kind_of_run(plan.method.frozen_base, plan.method_spec.quant is not None)
    return Memory.model_construct(
        peak_moment=account.peak_moment,
        peak_allocated_bytes=account.peak_allocated_bytes,
        peak_reserved_bytes=reserved,
        device_bytes=middle,
        interval=Interval.model_construct(**asdict(around_device(kind, reserved + resident.paged_bytes, outside))),
        resident=ResidentBytes.model_construct(
            weights=resident.weights.requested,
            adapters=resident.adapters.requested,
            gradients=resident.gradients.requested,
            master_weights=resident.master_weights.requested,
            optimizer_states=resident.optimizer_states.requested,
        ),
        activations_bytes=account.activations_bytes,
        moments=account.moments,
        evaluation_peak_bytes=settled.evaluation_peak_bytes,
        load=LoadBytes.model_construct(**asdict(settled.load)),
        breakdown=account.breakdown,
    )


def _fit(gpu: GpuRecord, plan: Plan, settled: Settled, memory: Memory) -> GpuFit:
    """Whether the run completes: the least memory in which it does against what the card can give.

    The allocator gives cached segments back before it fails, so the step is replayed against a capacity
    rather than its reserved peak compared with it. Paged optimizer states can move to the host.
    """
    outside = outside_allocator(plan.request, plan.gpu, plan.step)
    if not settled.least_capacity_bytes:
        settled.least_capacity_bytes = settled.replay.least_capacity_bytes(settled.reserved_bytes)
    least = settled.least_capacity_bytes
    needed = least + outside.middle_bytes
    fits = needed <= gpu.usable_bytes
    return GpuFit.model_construct(
        name=gpu.name,
        num_gpus=plan.request.gpus,
        sold_bytes=gpu.sold_bytes,
        driver_bytes=gpu.driver_bytes,
        usable_bytes=gpu.usable_bytes,
        fits=fits,
        certain=is_certain(fits, memory.interval.low_bytes, memory.interval.high_bytes, gpu.usable_bytes),
        headroom_bytes=gpu.usable_bytes - needed,
    )


def _other_recipes(plan: Plan) -> tuple[RecipeTotal, ...]:
    """Totals of every precision recipe for full fine-tuning: an unstated recipe is where tools disagree."""
    if plan.method.frozen_base:
        return ()
    totals = []
    for precision, (weights, _) in FULL_RECIPES.items():
        request = plan.request.model_copy(update={"precision": precision, "base_dtype": weights.short})
        try:
            other = settle(resolve(request))
        except BadInput:  # a recipe that the other options rule out
            continue
        peak = other.account.peak_allocated_bytes
        totals.append(
            RecipeTotal.model_construct(
                precision=precision,
                peak_allocated_bytes=peak,
                bytes_per_param=peak / other.num_params,
            )
        )
    return tuple(totals)


def _notes(plan: Plan, settled: Settled) -> tuple[str, ...]:
    request, model = plan.request, settled.model
    notes = [plan.found.origin, recipe_note(request, plan.method.frozen_base, plan.step.autocast)]
    notes += length_notes(request, model.max_seq_len)
    notes.extend(model.notes)
    if "math" in settled.account.timeline.player.attention_kernels:
        notes.append(MATH_ATTENTION)
    if request.padding:
        notes.append(PADDING[settled.account.timeline.player.attention])
    notes += gpu_notes(plan.gpu)
    notes.append(
        "peak_reserved_bytes is modelled, not derived to the byte; device_bytes adds a CUDA context from literature"
    )
    return tuple(notes)


def length_notes(request: Request, limit: int | None) -> list[str]:
    """What is to be said of a sequence longer than the model takes."""
    if limit is None or request.seq_len is None or request.seq_len <= limit:
        return []
    return [f"--seq-len {request.seq_len} is above the model's limit of {limit} positions"]


def gpu_notes(gpu: GpuRecord | None) -> list[str]:
    """Where the card's capacity comes from, and what is assumed of it."""
    if gpu is None:
        return []
    notes = [f"{gpu.name}: usable memory {gpu.capacity_basis}"]
    if gpu.compute_capability is None:
        notes.append(f"{gpu.name} is no CUDA device: kernels of an A100 are assumed")
    return notes


def recipe_note(request: Request, frozen_base: bool, autocast: DType | None) -> str:
    """The precision recipe in words; the request has its defaults filled in."""
    text = f"recipe {request.precision}: base in {request.base_dtype}"
    if request.quant:
        text += f", linears packed as {request.quant}" + (
            " with double quantisation" if request.double_quant and request.quant != "int8" else ""
        )
    if frozen_base:
        text += f", adapters in {request.adapter_dtype}"
    text += f", autocast to {autocast.short}" if autocast else ", no autocast"
    return text + f", optimizer {request.optimizer}, {request.loop} loop"


def compare(requests: Iterable[Request]) -> Comparison:
    """Runs side by side: every answer, and the parts of their peaks row by row."""
    return Comparison.of(tuple(estimate(request) for request in requests))


def suggest_changes(request: Request, report: Report) -> tuple[Change, ...]:
    """Single changes of a request that lower its peak, the largest saving first.

    `request` is what was asked, its open fields left open: with another method they follow it. Without a
    GPU nothing is known to fit.
    """
    found = []
    for text, fields in single_changes(report.request):
        try:
            plan = resolve(request.model_copy(update=fields))
            settled = settle(plan)
        except PeftplanError:  # a change that contradicts the rest of the request is no advice
            continue
        saves = report.memory.peak_allocated_bytes - settled.account.peak_allocated_bytes
        if saves <= 0:
            continue
        fits = plan.gpu is not None and _fit(plan.gpu, plan, settled, _memory(plan, settled)).fits
        found.append(Change.model_construct(change=text, saves_bytes=saves, fits=fits))
    return tuple(sorted(found, key=lambda change: -change.saves_bytes))
