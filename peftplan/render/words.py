"""The words of a report's figures: short labels, and what each figure means."""

from __future__ import annotations

from peftplan.report import Report
from peftplan.units import format_bytes

# Moments of a step, in PyTorch's own words: (label, meaning).
MOMENTS = {
    "loaded": ("model loaded", "weights and adapters on the device, before the first step"),
    "generation": ("generation", "the most allocated at once while completions are generated, before the step"),
    "forward": ("forward", "the most allocated at once during the forward pass"),
    "forward_end": ("forward end", "what is alive when the forward pass ends: everything saved for backward"),
    "loss": ("loss", "the most allocated from the head's output to the end of the log-softmax backward"),
    "backward": ("backward", "the most allocated at once during the rest of the backward pass"),
    "optimizer_step": ("optimizer step", "the most allocated at once while the optimizer updates"),
}

RESIDENT = {
    "weights": ("weights", "the base with its quantisation state and buffers, as it stays on the device"),
    "adapters": ("adapters", "what the method adds beside the base and trains"),
    "gradients": ("gradients", "the full set alive just before the optimizer step; they are freed after it"),
    "master_weights": ("master weights", "fp32 copies that the optimizer updates"),
    "optimizer_states": ("optimizer states", "what the optimizer keeps for every trained parameter"),
}

# Parts of the peak that belong to the training state: what is left belongs to the moment.
RESIDENT_PARTS = frozenset(label for label, _ in RESIDENT.values())

BEYOND_TENSORS = "segments and CUDA context"


def moment_label(name: str) -> str:
    """`optimizer_step` as people say it."""
    return MOMENTS[name][0] if name in MOMENTS else name.replace("_", " ")


def peak_owner(report: Report) -> tuple[str, int, str]:
    """The largest part of the peak beside the training state: name, bytes, its largest kind of tensor."""
    parts = [n for n in report.memory.breakdown.children if n.name not in RESIDENT_PARTS]
    owner = max(parts, key=lambda node: node.bytes)
    largest = max(owner.children, key=lambda node: node.bytes, default=None)
    detail = f"{largest.name}, {largest.formula}" if largest is not None and largest.formula else ""
    return owner.name, owner.bytes, detail


def verdict(report: Report) -> tuple[str, str]:
    """Whether the run fits the card, in one line, and the line's tone."""
    gpu = report.gpu
    assert gpu is not None
    room = format_bytes(abs(gpu.headroom_bytes))
    usable = format_bytes(gpu.usable_bytes)
    doubt = "" if gpu.certain else " - uncertain: the interval straddles the limit"
    if gpu.fits:
        return f"{gpu.name}: fits, {room} of {usable} to spare{doubt}", "good" if gpu.certain else "warn"
    return f"{gpu.name}: does not fit, {room} more than its {usable}{doubt}", "bad" if gpu.certain else "warn"


def percent(frac: float) -> str:
    """A share for people: `0.30 %`, `52.1 %`."""
    return f"{frac:.1%}" if frac >= 0.1 else f"{frac:.2%}"
