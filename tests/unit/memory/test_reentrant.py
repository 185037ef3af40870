"""Reentrant checkpointing: what its second run holds beyond that of the non-reentrant kind."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.catalog import find_model
from peftplan.errors import BadInput
from peftplan.memory.player import Player
from peftplan.memory.reentrant import ReentrantOps
from peftplan.planner import settle
from peftplan.report import Memory
from peftplan.resolve import resolve
from peftplan.specs.formats import BF16
from peftplan.specs.modules import Module
from peftplan.specs.tensors import Tensor

LENGTH = 256


def memories(model: Any, **options: Any) -> tuple[Memory, Memory]:
    """The non-reentrant kind's memory and the reentrant one's."""
    plain, reentrant = (
        estimate(Request(model=model, use_reentrant=kind, **{"seq_len": LENGTH, **options})).memory
        for kind in (False, True)
    )
    return plain, reentrant


def config(name: str, **changes: Any) -> dict[str, Any]:
    """A catalogue model's config with a small vocabulary, so that blocks make the backward peak."""
    return {**find_model(name).config, "vocab_size": 1000, **changes}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("model", ["llama-3.2-1b", "gpt2", "t5-small", "bloom-560m", "mixtral-8x7b"])
def test_both_kinds_keep_the_same_and_train_the_same(model: str, method: str) -> None:
    """At the end of forward each block's input is kept either way; backward makes the same gradients."""
    grads = []
    for kind in (False, True):
        settled = settle(resolve(Request(model=model, method=method, seq_len=64, use_reentrant=kind)))
        timeline = settled.account.timeline
        shapes = sorted((key[1], grad.shape, grad.dtype.name) for key, grad in timeline.player.grads.items())
        grads.append((settled.account.activations_bytes, timeline.player.gradient_bytes, shapes))
    assert grads[0] == grads[1]


def test_the_second_run_holds_the_blocks_output() -> None:
    """A block that runs whole keeps its output and its input's gradient through its backward."""
    plain, reentrant = memories(config("llama-3.2-1b"), method="lora")
    more = reentrant.moments["backward"] - plain.moments["backward"]
    assert more >= LENGTH * 2048 * 2
    assert reentrant.moments["forward_end"] == plain.moments["forward_end"]


def test_weights_of_attention_that_a_block_returns_are_given_zeros() -> None:
    """BLOOM's blocks return their attention weights: unused, they get a gradient of zeros in full size."""
    plain, reentrant = memories(config("bloom-560m"), method="lora")
    more = reentrant.moments["backward"] - plain.moments["backward"]
    assert more >= 16 * LENGTH**2 * 2  # heads, in bf16


def test_a_bias_that_blocks_hand_on_gets_a_gradient_even_when_frozen() -> None:
    """T5's position bias leaves the first block as an output of its node, which asks for a gradient."""
    found = []
    for kind in (False, True):
        settled = settle(resolve(Request(model="t5-small", method="lora", seq_len=64, use_reentrant=kind)))
        found.append({r.module for r in settled.account.timeline.records if r.op == "grad bias"})
    of_encoder = [{module for module in modules if module.startswith("encoder")} for modules in found]
    assert not of_encoder[0]
    # the first makes the bias, and one stands for those between
    assert of_encoder[1] == {f"encoder.block.{i}.layer.0.SelfAttention" for i in (1, 5)}


def test_keywords_outlive_the_backward_pass() -> None:
    """Llama's rotary tables and mask are attributes of the graph, which goes with the loss."""
    options = {"method": "lora", "optimizer": "sgd"}
    plain, reentrant = memories(config("llama-3.2-1b"), **options)
    tables = 2 * LENGTH * 64 * 2
    assert reentrant.moments["optimizer_step"] - plain.moments["optimizer_step"] == tables + 8 * LENGTH
    plain, reentrant = memories(config("llama-3.2-1b"), padding=True, **options)
    more = reentrant.moments["optimizer_step"] - plain.moments["optimizer_step"]
    assert more == tables + 8 * LENGTH + LENGTH**2


def test_a_graph_that_all_blocks_are_given_is_refused() -> None:
    """DeBERTa's normalised distances, trained: torch would run their graph backward once for every block."""
    with pytest.raises(BadInput, match="--use-reentrant: every block is given"):
        estimate(Request(model="deberta-v3-base", method="full", seq_len=64, use_reentrant=True))
    plain, reentrant = memories("deberta-v3-base", method="lora", seq_len=64)
    assert reentrant.activations_bytes == plain.activations_bytes


def test_reentrant_needs_checkpointing() -> None:
    """A kind of checkpointing without checkpointing is a contradiction."""
    with pytest.raises(BadInput, match="--use-reentrant"):
        estimate(Request(model="gpt2", use_reentrant=True, checkpointing=False))


class Doubled(Module):
    """A block that adds its input to itself times a number, and hands on what it is given."""

    positional = (0,)
    hands_on = (0,)


def run(t: ReentrantOps, given: Any, x: Tensor) -> Any:
    """The block's program."""
    return t.add(t.mul_scalar(x), t.mul(x, given[0])), given


def test_gradients_meet_at_every_input_and_output() -> None:
    """Inputs used twice, and one that is handed on, get one gradient each; nothing else outlives the step."""
    t = Player()
    x, other = (t.new((4, 1024), 4096, BF16, "input") for _ in range(2))
    for tensor in (x, other):
        t.ask_gradient(tensor)
    given: Any = (other,)
    out = x
    for _ in range(3):
        out, given = t.checkpoint_reentrant(lambda given, x: run(t, given, x), Doubled(), given, out)
    assert t.requested_bytes == 5 * 2 * 4096  # inputs, and an output for each block
    node = out.edge[0] if out.edge else None
    assert node is not None
    grad = t.new(out.shape, out.numel, out.dtype, "ones_like")
    node.grad = [grad, None]
    del out, given, node, grad
    t.backward()
    assert [leaf.grad is not None for leaf in t.leaves] == [True, True]
    assert t.requested_bytes == 4 * 2 * 4096  # two inputs and a gradient each
