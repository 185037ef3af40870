"""What an answer has to say beside its figures: what was taken for granted, and what means nothing."""

from __future__ import annotations

from peftplan.catalog import GpuRecord
from peftplan.memory.player import Player
from peftplan.methods import SHARED, Method
from peftplan.methods.quantizers import QUANTIZERS
from peftplan.optimizers import OPTIMIZERS
from peftplan.optimizers.asked import optimizer_notes
from peftplan.packing import is_packed
from peftplan.report import Memory
from peftplan.request import Request
from peftplan.resolve import Plan
from peftplan.specs.formats import DType
from peftplan.specs.model import ModelSpec
from peftplan.styles import style_notes
from peftplan.units import format_bytes

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
RESERVED = "reserved memory is replayed through a model of torch's allocator; device adds a CUDA context"


def plan_notes(plan: Plan, model: ModelSpec, played: Player) -> list[str]:
    """Notes on a planned run, as its step was played."""
    request = plan.request
    notes = [plan.found.origin, recipe_note(request, plan.method.frozen_base, plan.step.autocast)]
    notes += plan.method_spec.base_notes
    notes += length_notes(request, model.max_seq_len)
    notes += plan.method.notes
    notes += optimizer_notes(OPTIMIZERS[plan.step.optimizer], plan.step.optimizer_in_backward, plan.step.trainer)
    notes += unused_notes(request, plan.method)
    notes += style_notes(request)
    notes.extend(model.notes)
    if "math" in played.attention_kernels:
        notes.append(MATH_ATTENTION)
    if request.padding:
        notes.append(PADDING[played.attention])
    notes += gpu_notes(plan.gpu)
    notes.append(RESERVED)
    return notes


def unused_notes(request: Request, method: Method) -> list[str]:
    """Fields that were given and mean nothing to the method."""
    unused = [name for name in SHARED if name not in method.takes and name != "alpha"]
    given = [name for name in unused if getattr(request, name) != Request.model_fields[name].default]
    return [f"--{name.replace('_', '-')} changes nothing with --method {method.name}" for name in given]


def length_notes(request: Request, limit: int | None) -> list[str]:
    """What is to be said of a sequence longer than the model takes, or that grows longer."""
    if limit is None or request.seq_len is None:
        return []
    length, generated = request.seq_len, request.eval_generate or 0
    if length > limit:
        return [f"--seq-len {length} is above the model's limit of {limit} positions"]
    if length + generated > limit:
        made = f"--seq-len {length} and --eval-generate {generated} make {length + generated} positions"
        return [f"{made}, above the model's limit of {limit}"]
    return []


def evaluation_notes(request: Request, memory: Memory) -> list[str]:
    """That an evaluation needs more than a step, where it generates and does."""
    peak = memory.evaluation_peak_bytes
    if request.eval_generate is None or peak is None or peak <= memory.peak_allocated_bytes:
        return []
    told = f"evaluation: {format_bytes(peak)} allocated at its peak, more than a training step"
    return [f"{told}; what fits counts it, reserved and device are the step's"]


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
    if is_packed(request.quant):
        row = QUANTIZERS[str(request.quant)]
        text += f", linears packed as {row.name}"
        text += f" in {request.quant_bits} bits" if len(row.bits) > 1 else ""
        text += " with double quantisation" if request.double_quant and row.double_quant else ""
    if frozen_base:
        text += f", adapters in {request.adapter_dtype}"
    text += f", autocast to {autocast.short}" if autocast else ", no autocast"
    return text + f", optimizer {request.optimizer}, {request.loop} loop"
