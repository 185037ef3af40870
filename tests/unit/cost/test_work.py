"""A step's work against formulas written down by themselves, and against the step played block by block."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pytest

from peftplan.cost.work import step_work
from peftplan.memory.step import EARLIER, play_step
from peftplan.planner import settle
from peftplan.request import Request
from peftplan.resolve import resolve
from peftplan.specs.work import KINDS, PHASES, Work, total_flop

LAYERS, HIDDEN, INNER, VOCAB, HEADS, KV_HEADS, RANK = 5, 256, 640, 1000, 8, 2, 8
BATCH, LENGTH = 2, 96
TOKENS = BATCH * LENGTH
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "vocab_size": VOCAB,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 2048,
}
KV_WIDTH = HIDDEN // HEADS * KV_HEADS
SHAPES = [(HIDDEN, HIDDEN)] * 2 + [(HIDDEN, KV_WIDTH)] * 2 + [(HIDDEN, INNER)] * 3  # seven linears of a block
BASE = LAYERS * sum(a * b for a, b in SHAPES)
ADAPTER = LAYERS * RANK * sum(a + b for a, b in SHAPES)
HEAD = HIDDEN * VOCAB
ATTENTION = 2 * BATCH * LENGTH * (LENGTH + 1) * HIDDEN * LAYERS  # two products over half of the pairs


class Played(NamedTuple):
    """What a request comes to."""

    work: Work
    settled: object
    plan: object


def played(method="lora", **fields) -> Played:
    asked = {"model": LLAMA, "micro_batch": BATCH, "seq_len": LENGTH, "rank": RANK, **fields}
    if method == "full":
        del asked["rank"]
    request = Request(method=method, **asked)
    plan = resolve(request)
    settled = settle(plan)
    return Played(step_work(settled.model, plan.step, settled.account), settled, plan)


def flop(work: Work, **where: str) -> int:
    return total_flop(k for k in work if all(getattr(k, name) == value for name, value in where.items()))


def total_bytes(work: Work, **where: str) -> int:
    chosen = (k for k in work if all(getattr(k, name) == value for name, value in where.items()))
    return sum(k.num_bytes * k.count for k in chosen)


def test_full_fine_tuning_takes_two_forward_and_four_backward_a_weight_and_token():
    """Forward 2 (N_b + N_h) + A a token, backward 4 (N_b + N_h) + 2.5 A, and without checkpointing no more."""
    work = played("full", checkpointing=False).work
    assert flop(work, phase="forward") == 2 * (BASE + HEAD) * TOKENS + ATTENTION
    assert flop(work, phase="backward") == 4 * (BASE + HEAD) * TOKENS + 5 * ATTENTION // 2
    assert flop(work, phase="recompute") == 0


def test_a_frozen_base_has_no_weight_gradients():
    """LoRA: forward 2 (N_b + N_h + N_a) + A a token, backward 2 (N_b + N_h) + 4 N_a + 2.5 A."""
    work = played("lora").work
    assert flop(work, phase="forward") == 2 * (BASE + HEAD + ADAPTER) * TOKENS + ATTENTION
    assert flop(work, phase="backward") == 2 * (BASE + HEAD + 2 * ADAPTER) * TOKENS + 5 * ATTENTION // 2


def test_checkpointing_repeats_the_blocks_up_to_the_last_saved_tensor():
    """The head is not repeated, nor what follows a block's last saved tensor: its last product."""
    full, lora = played("full", checkpointing=True).work, played("lora").work
    assert flop(full, phase="recompute") == 2 * (BASE - LAYERS * HIDDEN * INNER) * TOKENS + ATTENTION
    assert flop(lora, phase="recompute") == 2 * (BASE + ADAPTER - LAYERS * RANK * HIDDEN) * TOKENS + ATTENTION


def test_packed_weights_are_unpacked_in_every_pass_and_multiplied_like_dense_ones():
    """QLoRA has LoRA's flop; each pass reads half a byte a weight and its scales, and writes two bytes."""
    lora, qlora = played("lora", seq_len=2048).work, played("qlora", seq_len=2048).work
    assert flop(lora) == flop(qlora)
    for phase in ("forward", "recompute", "backward"):
        unpacked = [
            k for k in qlora if k.phase == phase and k.op in ("gemm_4bit dequantised weight", "dequantize_4bit")
        ]
        assert sum(k.count for k in unpacked) == 7 * LAYERS
        assert sum(k.bytes_read * k.count for k in unpacked) == BASE // 2 + 4 * BASE // 64
        assert sum(k.bytes_written * k.count for k in unpacked) == 2 * BASE


def test_few_rows_are_multiplied_with_the_packed_weight():
    """With few tokens the fused 4-bit kernel reads what is packed, and nothing is unpacked in forward."""
    work = played("qlora", seq_len=2, micro_batch=1).work
    ops = {kernel.op for kernel in work if kernel.phase == "forward" and kernel.kind == "dequantise"}
    assert ops == {"gemm_4bit packed"}


def test_experts_work_for_the_tokens_that_visit_them():
    """Of eight experts two are visited: flop of two, traffic of all eight weights."""
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    grouped = [k for k in played("full", model=config, checkpointing=False).work if k.op == "_grouped_mm"]
    forward = [k for k in grouped if k.phase == "forward"]
    assert total_flop(forward) == 2 * TOKENS * 2 * 3 * HIDDEN * INNER * LAYERS
    assert sum(k.bytes_read * k.count for k in forward) >= 2 * 8 * 3 * HIDDEN * INNER * LAYERS


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        ({"optimizer": "adamw"}, 20 * 2),  # eight operations over tensors of two bytes an element
        ({"optimizer": "adamw-fused"}, 7 * 2),
        ({"optimizer": "sgd"}, 3 * 2),
        ({"optimizer": "sgd-momentum"}, 8 * 2),
        ({"optimizer": "lion"}, 3 * 2 + 2 * 4),
        ({"precision": "bf16-mixed"}, 20 * 4),
        ({"precision": "bf16-master"}, 20 * 4 + 2 * 6),  # gradients cast, weights copied back
    ],
    ids=str,
)
def test_an_update_moves_what_its_kernels_read_and_write(fields, moved):
    """Bytes a trained element, of an update of all weights."""
    run = played("full", **fields)
    counters = total_bytes(run.work, op="_foreach_add_") if fields.get("optimizer") == "adamw-fused" else 0
    trained = run.settled.account.resident.num_trainable
    assert total_bytes(run.work, phase="optimizer_step") - counters == moved * trained


def test_eight_bit_states_are_one_byte_an_element_and_scales():
    """adamw-8bit reads weight and gradient and writes the weight; states move both ways, scales with them."""
    run = played("full", optimizer="adamw-8bit")
    resident = run.settled.account.resident
    tables = 2048
    states = resident.optimizer_states.requested - tables
    assert total_bytes(run.work, phase="optimizer_step") == 6 * resident.num_trainable + 2 * states


def test_trainer_clips_and_does_not_decay():
    """Gradients are read for their norm, then scaled; the fused update follows."""
    run = played("lora", loop="trainer")
    ops = Counter(k.op for k in run.work if k.phase == "optimizer_step")
    assert {"_foreach_norm", "_foreach_mul_", "_fused_adamw_"} <= set(ops)
    scaled = total_bytes(run.work, op="_foreach_mul_")
    assert scaled == 2 * 4 * ADAPTER  # no second one, which would decay the weights


def test_many_tensors_take_several_launches():
    """A foreach kernel takes 2240 chunks of 65536 elements: more elements are more launches of the same bytes."""
    run = played("full", model={**LLAMA, "vocab_size": 600_000})
    kernels = [k for k in run.work if k.op == "_foreach_lerp_"]
    elements = run.settled.account.resident.num_trainable
    assert sum(k.count for k in kernels) == -(-elements // (2240 * 65536)) > 1
    assert sum(k.num_bytes * k.count for k in kernels) == 3 * 2 * elements


REQUESTS = [
    {"method": "full"},
    {"method": "lora", "checkpointing": False},
    {"method": "qlora", "dropout": 0.1, "kbit_prepare": True},
    {"method": "lora", "use_reentrant": True},
    {"method": "full", "attention": "eager", "padding": True},
    {"method": "full", "loss": "fused"},
    {"method": "lora", "loss": "chunked", "loop": "trainer"},
    {"method": "lora", "model": "google/gemma-3-1b-pt"},
    {"method": "full", "model": "google-t5/t5-small"},
    {"method": "qlora", "model": "deepseek-ai/DeepSeek-V2-Lite"},
    {"method": "lora", "model": "openai/gpt-oss-20b", "grad_accum": 2},
    {"method": "boft"},
    {"method": "c3a", "method_options": {"block_size": 64}},
    {"method": "hra", "checkpointing": False},
    {"method": "randlora", "quant": "nf4"},
    {"method": "road"},
    {"method": "shira"},
    {"method": "vblora", "method_options": {"vector_length": 64}},
]


@pytest.mark.parametrize("fields", REQUESTS, ids=str)
def test_blocks_that_stand_for_others_count_as_often_as_they_do(fields):
    """A step whose blocks are played one by one has the same work as one whose like blocks are multiplied."""
    run = played(**fields)
    step, settled = run.plan.step, run.settled
    each = replace(settled.account, timeline=play_step(settled.model, step, each=True))
    assert counted(step_work(settled.model, step, each)) == counted(run.work)


def counted(work: Work) -> Counter:
    """Launches alike, added up."""
    found: Counter = Counter()
    for kernel in work:
        found[kernel[:-1]] += kernel.count
    return found


@pytest.mark.parametrize("fields", REQUESTS, ids=str)
def test_what_is_allocated_is_written(fields):
    """Launches write at least what a phase allocates, workspaces of single kernels left out."""
    run = played(**fields)
    records = play_step(run.settled.model, run.plan.step, each=True).records
    phases = {
        "forward": ("activation",),
        "recompute": ("recomputed activation",),
        "backward": ("temporary", "gradient"),
    }
    for phase, kinds in phases.items():
        allocated = sum(
            r.nbytes for r in records if r.kind in kinds and not r.op.endswith(" workspace") and r.op != EARLIER
        )
        written = sum(k.bytes_written * k.count for k in run.work if k.phase == phase)
        assert written >= allocated


@pytest.mark.parametrize("fields", REQUESTS, ids=str)
def test_launches_are_whole_and_named(fields):
    """Every launch is of a known phase and kind and moves a whole number of bytes."""
    for kernel in played(**fields).work:
        assert kernel.phase in PHASES
        assert kernel.kind in KINDS
        assert kernel.part in ("base", "adapter", "attention", "head", "loss", "optimizer", "other")
        assert min(kernel.num_flop, kernel.bytes_read, kernel.bytes_written) >= 0
        assert all(isinstance(value, int) for value in kernel[5:])
        assert kernel.num_bytes > 0
        assert kernel.count >= 1


def test_parts_divide_the_work_by_module():
    """Products of a LoRA step belong to base, adapter and head as the weights that they multiply do."""
    work = played("lora").work
    assert flop(work, part="base", phase="forward") == 2 * BASE * TOKENS
    assert flop(work, part="adapter", phase="backward") == 4 * ADAPTER * TOKENS
    assert flop(work, part="head") == 4 * HEAD * TOKENS
    assert flop(work, part="attention", phase="forward") == ATTENTION
    assert flop(work, part="other") == flop(work, part="loss") == 0


@pytest.mark.parametrize(
    ("window", "pairs"), [(None, LENGTH * (LENGTH + 1) // 2), (16, 16 * LENGTH - 16 * 15 // 2)]
)
def test_the_flash_package_passes_over_keys_before_the_window(window, pairs):
    """Each query meets the keys before it, as many as the window has; sdpa is handed a mask, and skips nothing."""
    config = {**LLAMA, "model_type": "mistral", "sliding_window": window}
    products = 2 * 2 * BATCH * HIDDEN * LAYERS  # per pair of positions
    flash = played("lora", model=config, attention="flash").work
    assert flop(flash, kind="attention", phase="forward") == products * pairs
    sdpa = played("lora", model=config).work
    assert flop(sdpa, kind="attention", phase="forward") == products * (pairs if window is None else LENGTH**2)
