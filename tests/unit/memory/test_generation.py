"""One pass of generation: what it holds and launches, of a prompt and of one token."""

from __future__ import annotations

from peftplan import Request
from peftplan.cost.serving import num_launches, pass_work
from peftplan.memory.generation import play_pass
from peftplan.resolve import Plan, resolve
from peftplan.specs.model import ModelSpec
from peftplan.specs.work import total_flop


def planned(**fields: object) -> tuple[Plan, ModelSpec]:
    """A plan without autocast, and its model with the method on it."""
    fixed = {"model": "llama-2-7b", "precision": "bf16", "adapter_dtype": "bf16", "checkpointing": False}
    plan = resolve(Request(**{**fixed, **fields}))  # type: ignore[arg-type]
    model = plan.model
    plan.method.apply(model, plan.method_spec)
    return plan, model


def test_a_token_multiplies_with_every_weight_twice() -> None:
    """2 flop for each weight that is multiplied with, the output head's among them, and a sequence."""
    plan, model = planned()
    weights = sum(
        p.numel * n
        for name, p, n in model.parameters()
        if len(p.shape) == 2 and p.role != "buffer" and "embed_tokens" not in name
    )
    work = pass_work(play_pass(model, plan.step, 4, 1, 4), model, fused=False)
    products = [row for row in work if row.kind == "matmul"]
    assert total_flop(products) == 2 * 4 * weights


def test_the_head_works_on_the_last_position_alone() -> None:
    """A prompt twice as long gives no more logits, and its pass holds twice as much."""
    plan, model = planned()
    short, long = (play_pass(model, plan.step, 1, length, 1) for length in (512, 1024))
    heads = [
        [row for row in pass_work(played, model, fused=False) if row.part == "head" and row.kind == "matmul"]
        for played in (short, long)
    ]
    assert heads[0] == heads[1]
    assert 1.9 < long.peak_bytes / short.peak_bytes < 2.1


def test_sequences_are_sampled_in_fp32() -> None:
    """A step of many sequences holds their logits in 16 bits, in fp32, and as probabilities."""
    plan, model = planned()
    played = play_pass(model, plan.step, 64, 1, 64)
    assert played.peak_bytes >= 64 * model.vocab_size * (2 + 4)
    assert played.blocks_bytes < played.peak_bytes


def test_fused_kernels_are_fewer() -> None:
    """Norms, rotary embeddings and activations in one kernel each launch less, and compute the same."""
    plan, model = planned()
    played = play_pass(model, plan.step, 1, 1, 1)
    eager, fused = pass_work(played, model, fused=False), pass_work(played, model, fused=True)
    assert num_launches(fused) < 0.7 * num_launches(eager)
    assert total_flop(fused) == total_flop(eager)


def test_positions_before_a_sequence_are_told() -> None:
    """Prompt and prefix tuning put their positions before a prompt; LoRA none."""
    for method, extra in (("lora", 0), ("prompt-tuning", 20), ("prefix-tuning", 20), ("p-tuning", 20)):
        plan, model = planned(method=method)
        assert play_pass(model, plan.step, 2, 8, 2).extra_positions == extra
