"""One step's account: optimizers, accumulation, losses, loops, loading and evaluation."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Report, Request, estimate
from peftplan.optimizers import OPTIMIZERS, Weight
from peftplan.specs.formats import BF16, FP32, QuantFormat

# Optimizers whose states of one weight are written out here.
ESTABLISHED = (
    *("adamw", "adamw-fused", "adamw-8bit", "paged-adamw-8bit", "sgd", "sgd-momentum", "adafactor", "lion"),
    *("paged-adamw", "ademamix-8bit", "lion-8bit", "muon", "adafactor-torch", "adam-mini", "galore-adamw"),
    *("apollo-mini", "adamw-torchao-8bit", "adamw-torchao-4bit", "lomo", "adalomo", "schedule-free-adamw"),
)


def report(method: str = "full", **options: Any) -> Report:
    """One answer for Llama 3.2 1B (tied embeddings, a large vocabulary)."""
    return estimate(Request(model="llama-3.2-1b", method=method, **{"seq_len": 512, **options}))


def test_states_by_optimizer() -> None:
    """Bytes kept for a 100 x 64 bf16 weight."""
    weight = Weight((100, 64), BF16, "layers.0.mlp.up_proj.weight")
    states = {
        name: sum(size for _, size in row.states(weight, row.options.model_construct(dim=64, n_heads=8)))
        for name, row in OPTIMIZERS.items()
    }
    assert {name: size for name, size in states.items() if name in ESTABLISHED} == {
        "adamw": 2 * 2 * 6400,
        "adamw-fused": 2 * 2 * 6400 + 4,
        "adamw-8bit": 2 * 6400 + 2 * 4 * 25,
        "paged-adamw-8bit": 2 * 6400 + 2 * 4 * 25,  # too small for a page
        "sgd": 0,
        "sgd-momentum": 2 * 6400,
        "adafactor": 4 * 100 + 4 * 64 + 4,
        "lion": 4 * 6400,
        "paged-adamw": 2 * 4 * 6400,
        "ademamix-8bit": 3 * 6400 + 3 * 4 * 25,
        "lion-8bit": 6400 + 4 * 25,
        "muon": 2 * 6400,
        "adafactor-torch": 2 * (100 + 64),
        "adam-mini": 2 * 6400 + 2 * 100,  # one second moment for each neuron
        "galore-adamw": 2 * (64 * 64 + 2 * 100 * 64),  # a rank above the narrow side is that side
        "apollo-mini": 2 * (64 + 2 * 100 + 1),
        "adamw-torchao-8bit": 2 * (6400 + 4 * 25 + 4 * 256),
        "adamw-torchao-4bit": 2 * (3200 + 4 * 50 + 4 * 16),
        "lomo": 0,
        "adalomo": 4 * 100 + 4 * 64,
        "schedule-free-adamw": 2 * 2 * 6400,
    }


def test_small_tensors_stay_in_fp32_under_8_bit_optimizers() -> None:
    """Below 4096 elements bitsandbytes keeps two fp32 moments."""
    assert [size for _, size in OPTIMIZERS["adamw-8bit"].states(Weight((100,), FP32), None)] == [400, 400]


def test_foreach_holds_a_copy_of_the_second_moment() -> None:
    """The optimizer step of foreach AdamW lies one set of states above the fused one's."""
    foreach = report(optimizer="adamw").memory.moments["optimizer_step"]
    fused = report(optimizer="adamw-fused").memory.moments["optimizer_step"]
    assert foreach - fused == pytest.approx(2 * report().model.num_params, rel=0.001)


def test_accumulation_keeps_the_gradients_through_forward() -> None:
    """A later micro-step finds the full set of gradients there already."""
    once = report(optimizer="adamw-fused").memory
    later = report(optimizer="adamw-fused", grad_accum=2).memory
    assert later.moments["forward_end"] - once.moments["forward_end"] == pytest.approx(
        once.resident.gradients, rel=0.001
    )
    assert later.activations_bytes == once.activations_bytes


def test_the_fused_loss_holds_no_logits_and_chunks_hold_less_than_whole_logits() -> None:
    """Standard, chunked and fused losses need less and less."""
    peaks = [report("lora", loss=loss).memory for loss in ("standard", "chunked", "fused")]
    losses = [memory.moments["loss"] for memory in peaks]
    assert losses == sorted(losses, reverse=True)
    logits = 512 * 128256
    assert peaks[0].activations_bytes - peaks[2].activations_bytes > 5 * logits


def test_trainer_converts_logits_to_fp32_and_takes_fused_adamw() -> None:
    """HF Trainer keeps outputs of mixed precision in fp32; its default optimizer is fused AdamW."""
    plain, trainer = report("lora"), report("lora", loop="trainer")
    assert trainer.request["optimizer"] == "adamw-fused"
    gained = trainer.memory.activations_bytes - plain.memory.activations_bytes
    assert gained == 512 * 128256 * (4 - 2)


def test_evaluation_needs_less_than_training_and_more_than_the_loaded_model() -> None:
    """Without gradients nothing is kept, but logits are made all the same."""
    memory = report("lora", checkpointing=False).memory
    assert memory.moments["loaded"] < memory.evaluation_peak_bytes < memory.peak_allocated_bytes


def test_a_packed_base_is_loaded_one_layer_at_a_time() -> None:
    """While it loads, the largest linear is there in 16 bits beside everything packed."""
    memory = estimate(Request(model="llama-2-7b", method="qlora", seq_len=128)).memory
    extra = memory.load.device_peak_bytes - memory.moments["loaded"]
    assert 2 * 4096 * 11008 <= extra <= 1.1 * 2 * 4096 * 11008 + 4 * 4096 * 32000
    assert memory.load.checkpoint_bytes == 2 * 6_738_415_616


def test_an_int8_base_keeps_inputs_even_under_checkpointing() -> None:
    """bitsandbytes' 8-bit product keeps its input as an attribute, which checkpointing cannot drop."""
    dense = report("lora", precision="bf16").memory.activations_bytes
    packed = report("lora", precision="bf16", quant="int8").memory.activations_bytes
    assert packed > dense + 16 * 512 * 2048 * 2 * 6


def test_master_weights_stand_beside_sixteen_bit_ones() -> None:
    """bf16-master: fp32 masters and moments, bf16 weights and gradients."""
    answer = report(precision="bf16-master")
    resident, num = answer.memory.resident, answer.model.num_params
    assert resident.master_weights == 4 * num
    assert resident.optimizer_states == 8 * num
    assert resident.gradients == 2 * num


@pytest.mark.parametrize(
    ("kind", "double", "expected"),
    [
        ("nf4", True, 2048 * 2048 // 2 + 65536 + 64 + 4 + 4 * 256 + 1024),
        ("fp4", False, 2048 * 2048 // 2 + 4 * 65536 + 64),
        ("int8", True, 2048 * 2048 + 4 * 2048),
    ],
)
def test_packed_weights_to_the_byte(kind: str, double: bool, expected: int) -> None:
    """Packed weights, block scales, code tables, offsets and second-level constants of one square linear."""
    assert QuantFormat(kind, double_quant=double).num_bytes(2048, 2048) == expected


def test_other_recipes_are_shown_for_full_fine_tuning() -> None:
    """An unstated recipe is where tools disagree: every answer for full fine-tuning shows them all."""
    recipes = {row.precision: row.bytes_per_param for row in report().recipes}
    assert set(recipes) == {"bf16", "fp16", "fp32", "bf16-mixed", "fp16-mixed", "bf16-master"}
    assert recipes["bf16-master"] > recipes["fp32"] > recipes["bf16"]
    assert report("lora").recipes == ()


def test_a_card_is_judged_by_what_must_be_held() -> None:
    """Full fine-tuning of a 7B fits an 80 GB card with fused AdamW and not a 24 GB one."""

    def ask(gpu: str) -> Any:
        return estimate(
            Request(model="llama-2-7b", method="full", optimizer="adamw-fused", gpu=gpu, seq_len=512)
        ).gpu

    assert ask("a100-80").fits
    assert ask("a100-80").headroom_bytes > 0
    assert not ask("rtx4090").fits
    assert ask("rtx4090").certain
    assert ask("rtx4090").headroom_bytes < 0
