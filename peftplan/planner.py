"""The service: a request in, a report out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass, field

from peftplan.breakdown import NOT_BROKEN_DOWN
from peftplan.catalog import GpuRecord
from peftplan.changes import single_changes
from peftplan.cost.generating import generation_s
from peftplan.cost.work import step_work
from peftplan.errors import BadInput, PeftplanError
from peftplan.initialising import initialisation_notes, initialisation_of
from peftplan.memory.account import Account, account_of
from peftplan.memory.extrapolated import Extrapolated
from peftplan.memory.generated import before_a_step, within_evaluation
from peftplan.memory.intervals import around_device, is_certain, kind_of_run
from peftplan.memory.load import Loading, evaluation_peak
from peftplan.memory.repeated import Kind, Plays, shapeless
from peftplan.memory.reserved import Replay
from peftplan.memory.trained import check_optimizer
from peftplan.notes import evaluation_notes, plan_notes
from peftplan.report import (
    SCHEMA_VERSION,
    Change,
    Comparison,
    Cost,
    GpuFit,
    Interval,
    LoadBytes,
    Memory,
    MethodFacts,
    ModelFacts,
    RecipeTotal,
    Report,
    ResidentBytes,
    Time,
)
from peftplan.request import NO_LENGTH, Request, states_run
from peftplan.resolve import FULL_RECIPES, Plan, outside_allocator, resolve
from peftplan.specs.formats import BF16
from peftplan.specs.model import ModelSpec
from peftplan.specs.work import Work
from peftplan.styles import check_classifier, put_reference
from peftplan.timing import time_notes, time_of


@dataclass(slots=True)
class Settled:
    """What a model, a method and a step come to, whatever the card: kept for the next like request."""

    model: ModelSpec
    num_params: int
    account: Account
    replay: Replay | Extrapolated
    evaluation_peak_bytes: int
    load: Loading
    works: dict[str, Work] = field(default_factory=dict)  # by how kernels run; read when a card is named


_KEPT: OrderedDict[Hashable, Settled] = OrderedDict()
_KEPT_AT_MOST = 64


def settle(plan: Plan, plays: Plays | None = None) -> Settled:
    """Rewrite the model, play the step and account for it; like plans are answered from memory.

    `plays` keeps what steps of one kind have in common, for whoever asks for many, and says how what is reserved
    is found.
    """
    shaped = (plan.found.key(), plan.method.name, plan.method_spec, plan.versions)
    every_block = plays is None or plays.every_block
    key = (*shaped, plan.step, every_block)
    settled = _KEPT.get(key)
    if settled is None:
        step = plan.step
        kind = (plays or Plays()).kind((*shaped, shapeless(step)), lambda: _kind(plan))
        made = before_a_step(kind.model, step)
        settled_account = account_of(kind.step(step), kind.resident(step), step, made)
        settled = _KEPT[key] = Settled(
            model=kind.model,
            num_params=kind.num_params,
            account=settled_account,
            replay=kind.replay(step, settled_account, every_block),
            evaluation_peak_bytes=evaluation_peak(
                kind.evaluation, step, settled_account.resident, within_evaluation(kind.model, step)
            ),
            load=kind.load(step),
        )
        while len(_KEPT) > _KEPT_AT_MOST:
            _KEPT.popitem(last=False)
    return settled


def _kind(plan: Plan) -> Kind:
    model = plan.model
    num_params = model.num_params()
    plan.method.apply(model, plan.method_spec)
    check_classifier(model, plan.method_spec)
    if plan.step.style.reference in ("adapter-off", "model"):
        put_reference(model, plan.model, plan.method_spec, plan.step.style)
    check_optimizer(model, plan.step)
    return Kind(model, num_params)


def estimate(
    request: Request, *, recipes: bool = True, breakdown: bool = True, plays: Plays | None = None
) -> Report:
    """Memory of one run on one device, from the model's config alone.

    `recipes`: other precisions' totals too; `breakdown`: the parts of the peak (else it has none); `plays`: what
    many requests have in common.
    """
    plan = resolve(request)
    settled = settle(plan, plays)
    memory = memory_of(plan, settled, breakdown)
    resident, num_params = settled.account.resident, settled.num_params
    time = step_time_of(plan, settled)
    cost, cost_notes = cost_of(plan, memory, time)
    first = initialisation_of(settled.model, plan.step, plan.gpu, memory.moments["loaded"])
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
            initialisation=first,
        ),
        memory=memory,
        gpu=_fit(plan.gpu, plan, settled, memory) if plan.gpu is not None else None,
        time=time,
        cost=cost,
        recipes=_other_recipes(plan) if recipes else (),
        versions=plan.versions.by_name(),
        notes=(
            *plan_notes(plan, settled.model, settled.account.timeline.player),
            *evaluation_notes(plan.request, memory),
            *initialisation_notes(first),
            *time_notes(plan.gpu, time, "bf16" in (plan.request.precision or "")),
            *cost_notes,
        ),
    )


def step_time_of(plan: Plan, settled: Settled) -> Time | None:
    """Seconds of a step on the card that is named; None without one, or where its rates are not known."""
    if plan.gpu is None:
        return None
    gradients = settled.account.resident.gradients.requested
    made = settled.account.generated
    before_s = None
    if made is not None:
        before_s = generation_s(made, settled.model, plan.gpu, (plan.step.autocast or BF16).short)
    return time_of(plan.request, plan.gpu, _work(plan, settled), gradients, before_s)


def work_of(request: Request) -> Work:
    """What a step of a request computes and moves: of one micro-batch, and the update."""
    plan = resolve(request)
    return _work(plan, settle(plan))


def _work(plan: Plan, settled: Settled) -> Work:
    """The same of a run that is settled; read once for each way in which kernels run."""
    kernels = plan.request.kernels
    if kernels not in settled.works:
        settled.works[kernels] = step_work(settled.model, plan.step, settled.account, kernels)
    return settled.works[kernels]


def cost_of(plan: Plan, memory: Memory, time: Time | None) -> tuple[Cost | None, tuple[str, ...]]:
    """Hours and dollars of the run, and notes; nothing of it is loaded where nothing of it is asked."""
    if not states_run(plan.request):
        return None, (NO_LENGTH,) if time is not None else ()
    from peftplan.pricing import check_run, facts_of, run_cost

    return run_cost(check_run(plan.request), time, plan.gpu, facts_of(memory, plan.method.frozen_base))


def memory_of(plan: Plan, settled: Settled, breakdown: bool = True) -> Memory:
    """The three totals, and what they are made of."""
    outside = outside_allocator(plan.request, plan.gpu, plan.step)
    account, reserved = settled.account, settled.replay.reserved_bytes
    resident = account.resident
    middle = reserved + resident.paged_bytes + outside.middle_bytes
    kind = kind_of_run(plan.method.frozen_base, plan.method_spec.quant is not None)
    bounds = around_device(kind, reserved + resident.paged_bytes, outside, plan.step.compute_capability)
    return Memory.model_construct(
        peak_moment=account.peak_moment,
        peak_allocated_bytes=account.peak_allocated_bytes,
        peak_reserved_bytes=reserved,
        device_bytes=middle,
        interval=Interval.model_construct(**asdict(bounds)),
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
        optimizer_paged_bytes=resident.paged_bytes,
        optimizer_host_bytes=resident.host.requested,
        breakdown=account.breakdown if breakdown else NOT_BROKEN_DOWN,
    )


def _fit(gpu: GpuRecord, plan: Plan, settled: Settled, memory: Memory) -> GpuFit:
    """Whether the run completes with what the card can give, and how far that is from the least in which it does.

    The allocator gives cached segments back before it fails, so the step is replayed against a capacity
    rather than its reserved peak compared with it. Paged optimizer states can move to the host. An evaluation that
    is asked for must fit too.
    """
    fits = completes_on(gpu, plan, settled)
    evaluation = _evaluation_bytes(plan, settled)
    headroom = min(settled.replay.spare_bytes(_capacity(gpu, plan)), _capacity(gpu, plan) - evaluation)
    beyond = max(evaluation - memory.peak_reserved_bytes, 0)
    return GpuFit.model_construct(
        name=gpu.name,
        num_gpus=plan.request.gpus,
        sold_bytes=gpu.sold_bytes,
        driver_bytes=gpu.driver_bytes,
        usable_bytes=gpu.usable_bytes,
        fits=fits,
        certain=is_certain(
            fits, memory.interval.low_bytes + beyond, memory.interval.high_bytes + beyond, gpu.usable_bytes
        ),
        # the least capacity is known to within a little: the verdict decides on which side it lies
        headroom_bytes=max(headroom, 0) if fits else min(headroom, -1),
    )


def completes_on(gpu: GpuRecord, plan: Plan, settled: Settled) -> bool:
    """Whether the run completes on a card: the verdict of an estimate, and much cheaper than its headroom."""
    capacity = _capacity(gpu, plan)
    needed = max(settled.account.peak_allocated_bytes, _evaluation_bytes(plan, settled))
    return capacity >= needed and settled.replay.completes(capacity)


def _evaluation_bytes(plan: Plan, settled: Settled) -> int:
    """The allocated peak of an evaluation that the request asks for, 0 where it asks for none."""
    asked = plan.request.eval_generate is not None or plan.request.eval_tokens is not None
    return settled.evaluation_peak_bytes if asked else 0


def _capacity(gpu: GpuRecord, plan: Plan) -> int:
    """Bytes that a card leaves to torch's allocator."""
    return gpu.usable_bytes - outside_allocator(plan.request, plan.gpu, plan.step).middle_bytes


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


def compare(requests: Iterable[Request]) -> Comparison:
    """Runs side by side: every answer, and the parts of their peaks row by row."""
    return Comparison.of(tuple(estimate(request) for request in requests))


def suggest_changes(request: Request, report: Report) -> tuple[Change, ...]:
    """Single changes of a request that lower its peak, the largest saving first.

    `request` is what was asked, its open fields left open: with another method they follow it. Without a
    GPU nothing is known to fit.
    """
    found = []
    for text, fields, _ in single_changes(report.request):
        try:
            plan = resolve(request.model_copy(update=fields))
            settled = settle(plan)
        except PeftplanError:  # a change that contradicts the rest of the request is no advice
            continue
        saves = report.memory.peak_allocated_bytes - settled.account.peak_allocated_bytes
        if saves <= 0:
            continue
        fits = plan.gpu is not None and completes_on(plan.gpu, plan, settled)
        found.append(Change.model_construct(change=text, saves_bytes=saves, fits=fits))
    return tuple(sorted(found, key=lambda change: -change.saves_bytes))
