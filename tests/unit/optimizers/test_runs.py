"""Optimizers in a run: gradients that do not wait, states on the host, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Report, Request, estimate
from peftplan.errors import BadInput
from peftplan.planner import work_of
from peftplan.specs.work import TRANSFER


def report(**fields: Any) -> Report:
    """One answer for Llama 3.2 1B."""
    return estimate(Request(**{"model": "llama-3.2-1b", "method": "full", "seq_len": 256, **fields}))


def test_gradients_that_are_used_as_they_come_are_never_all_there() -> None:
    """With in-backward steps none wait; the peak falls by more than a set of gradients."""
    waiting, used = report(), report(optimizer_in_backward=True)
    assert used.memory.resident.gradients == 0
    assert used.memory.resident.optimizer_states == waiting.memory.resident.optimizer_states
    saved = waiting.memory.peak_allocated_bytes - used.memory.peak_allocated_bytes
    assert saved > 1.3 * waiting.memory.resident.gradients
    assert any("the full set is never there" in note for note in used.notes)


def test_each_tensors_own_optimizer_has_its_own_tables() -> None:
    """bitsandbytes' maps stand once for each optimizer, so once for each tensor that is kept in 8 bits."""
    together, apart = (report(optimizer="lion-8bit", optimizer_in_backward=own) for own in (False, True))
    maps = [
        {part.name: part.bytes for part in node.children}["code tables"]
        for answer in (together, apart)
        for node in answer.memory.breakdown.children
        if node.name == "optimizer states"
    ]
    assert maps == [1024, 1024 * (7 * 16 + 1)]  # seven linears a block, and embeddings tied to the head


def test_an_update_inside_backward_is_part_of_its_breakdown() -> None:
    """Where the peak lies in such an update, its tensors are named, and the parts still sum to the peak."""
    memory = report(optimizer="adafactor", optimizer_in_backward=True).memory
    parts = {node.name: node.bytes for node in memory.breakdown.children}
    assert memory.peak_moment == "backward"
    assert parts["optimizer step temporaries"] > 0
    assert sum(parts.values()) == memory.peak_allocated_bytes


def test_lomo_holds_a_gradient_until_the_next_one_comes() -> None:
    """It keeps no state, and updates in fp32: at the worst two copies of the head, and its gradient's successor."""
    memory = report(optimizer="lomo").memory
    assert memory.resident.optimizer_states == memory.resident.gradients == 0
    assert memory.peak_allocated_bytes < report(optimizer="sgd").memory.peak_allocated_bytes


def test_what_is_offloaded_is_told_apart_and_takes_its_way_over_pcie() -> None:
    """States, weights and gradients on the host are in no figure of the device; the step waits for the weights."""
    answer = report(optimizer="adamw-offload", gpu="a100-80")
    num = answer.model.num_params
    assert answer.memory.resident.optimizer_states < 10**6
    assert answer.memory.optimizer_host_bytes > 8 * num  # bf16: two moments, and two pinned copies
    assert answer.time is not None
    assert answer.time.terms["transfer"] > 2 * num / 32e9
    moved = sum(k.num_bytes * k.count for k in work_of(Request(**answer.request)) if k.kind == TRANSFER)
    assert moved == pytest.approx(2 * 2 * num, rel=0.01)
    kept = report(optimizer="adamw-offload", optimizer_options={"offload_gradients": True}).memory.resident
    assert kept.gradients < 10**6


def test_paged_states_are_shown_beside_the_others() -> None:
    """They are part of what nvidia-smi may show, and no states of torch's allocator."""
    paged, resident = report(optimizer="paged-adamw").memory, report(optimizer="ademamix").memory
    assert paged.optimizer_paged_bytes + paged.resident.optimizer_states == pytest.approx(
        resident.resident.optimizer_states * 2 / 3
    )
    assert report(optimizer="adamw").memory.optimizer_paged_bytes == 0


def test_muons_products_are_counted_as_such() -> None:
    """Five iterations of three products for each hidden matrix, in bf16."""
    work = work_of(Request(model="llama-3.2-1b", method="full", optimizer="muon", seq_len=256))
    products = [k for k in work if k.phase == "optimizer_step" and k.kind == "matmul"]
    assert {k.dtype for k in products} == {"bf16"}
    assert sum(k.count for k in products) == 15 * 7 * 16


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer_in_backward": True, "grad_accum": 2}, "--grad-accum 2 has nothing to sum"),
    ({"optimizer_in_backward": True, "gpus": 2}, "before those of --gpus 2 are summed"),
    ({"optimizer_in_backward": True, "precision": "bf16-master"}, "knows no masters"),
    ({"optimizer_in_backward": True, "optimizer": "muon"}, "muon is two"),
    ({"optimizer": "lomo", "grad_accum": 4}, "take another optimizer"),
    ({"optimizer": "galore-adamw-layerwise", "gpus": 2}, "take another optimizer"),
    ({"optimizer": "galore-adamw", "precision": "bf16-master"}, "knows no masters"),
    ({"optimizer": "galore-adamw", "model": "gpt2"}, "names none that trains here"),
    ({"optimizer": "galore-adamw", "optimizer_options": {"target_modules": "("}}, "no regular expression"),
    ({"optimizer": "muon", "method": "ln-tuning"}, "updates hidden matrices"),
    ({"optimizer": "adalomo", "method": "lora"}, "or --method full"),
    ({"optimizer": "adam-mini", "method": "lora"}, "cuts queries and keys into heads"),
    (
        {"optimizer": "adamw-offload", "optimizer_options": {"offload_gradients": True}, "grad_accum": 2},
        "has nothing to sum",
    ),
    ({"optimizer": "admaw"}, "all: `peftplan optimizers`; did you mean adamw?"),
    ({"optimizer": ""}, "'' is unknown; all: `peftplan optimizers`"),
    ({"optimizer": "galor"}, "did you mean galore?"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(fields: dict[str, Any], words: str) -> None:
    """Each refusal names what was given, and what to do."""
    with pytest.raises(BadInput) as refusal:
        report(**fields)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
