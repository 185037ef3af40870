"""What training stacks and older releases do beyond the reference: outputs, casts, inputs kept, heads repeated."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.errors import BadInput
from peftplan.memory.player import Player
from peftplan.report import Memory
from peftplan.specs.formats import FP16, FP32
from peftplan.specs.tensors import Tensor

TOKENS, VOCAB, HIDDEN, HEADS, KV_HEADS, LAYERS, INNER = 2048, 32000, 256, 8, 2, 3, 768
DIM = HIDDEN // HEADS


def mistral(**changes: Any) -> dict[str, Any]:
    """A small Mistral with a large vocabulary and grouped heads."""
    return {
        "model_type": "mistral",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 8192,
        "sliding_window": None,
        **changes,
    }


def memory(**options: Any) -> Memory:
    return estimate(Request(model=mistral(), seq_len=TOKENS, **options)).memory


def test_outputs_that_a_variable_names_hold_the_logits() -> None:
    """From the loss on, the logits in the forward pass's type stay: 2 bytes a token and word in bf16."""
    dropped, kept = (memory(method="lora", precision="bf16", keep_outputs=keep) for keep in (False, True))
    logits = 2 * TOKENS * VOCAB
    for moment in ("loss", "backward", "optimizer_step"):
        assert kept.moments[moment] - dropped.moments[moment] == logits
    assert kept.moments["forward_end"] == dropped.moments["forward_end"]


def test_trainer_keeps_no_outputs() -> None:
    """Trainer's loop drops them, so both options contradict each other."""
    with pytest.raises(BadInput, match="--keep-outputs"):
        estimate(Request(model=mistral(), loop="trainer", keep_outputs=True))


def test_trl_casts_head_and_embeddings_back() -> None:
    """After k-bit preparation head and embeddings are fp32; TRL's casts leave two bytes a weight of both."""
    before, after = (memory(method="qlora", trl_casts=casts) for casts in (False, True))
    assert before.resident.weights - after.resident.weights == 2 * 2 * VOCAB * HIDDEN
    assert before.resident.adapters == after.resident.adapters


@pytest.mark.parametrize("options", [{"method": "full"}, {"method": "lora"}, {"method": "qlora", "quant": "int8"}])
def test_trl_casts_are_of_four_bit_models(options: dict[str, str]) -> None:
    """They are asked for only where TRL does them."""
    with pytest.raises(BadInput, match="--trl-casts"):
        memory(trl_casts=True, **options)


def test_softmax_backward_makes_gradient_times_result_first() -> None:
    """Beside the gradient that comes in and the one that goes out, a third tensor of the scores' size."""
    t = Player()
    shape = (2, 4, 64, 64)
    numel = 2 * 4 * 64 * 64
    x = t.new(shape, numel, FP16, "scores")
    x.edge = (None, 0, FP16, numel)
    loss = t.softmax(x, FP32)
    assert loss.edge is not None
    node: Any = loss.edge[0]
    before, t.peak_bytes = t.level_bytes, 0
    out = node.fn(t, Tensor(shape, numel, FP32, loss.storage, None), (loss,), node.context)
    assert t.peak_bytes - before == 2 * numel + 4 * numel
    assert t.level_bytes - before == 2 * numel
    assert out[0].dtype is FP16


def test_older_bitsandbytes_keeps_the_input_of_each_product() -> None:
    """Before 0.43.2 each 4-bit product whose input needs a gradient keeps that input.

    It computes in the input's own type, fp32 behind prepared norms, so that q, k and v keep one tensor, and gate
    and up another. In the first layer q, k and v need none: no gradient leaves the frozen embeddings.
    """
    new, old = (
        memory(method="qlora", targets=["q_proj"], checkpointing=False, bitsandbytes=version, transformers="4.44")
        for version in ("0.43.3", "0.43.1")
    )
    widths = LAYERS * (2 * HIDDEN + INNER) - HIDDEN  # q, k, v; gate, up; down; o's input is kept anyway
    assert old.activations_bytes - new.activations_bytes == 4 * TOKENS * widths


def test_mistral_repeated_heads_before_flash_attention() -> None:
    """Before transformers 4.48 keys and values of all heads were saved, now those of each group."""
    old, new = (
        memory(method="full", attention="flash", checkpointing=False, transformers=version, torch="2.4")
        for version in ("4.47", "4.48")
    )
    more = 2 * 2 * TOKENS * (HEADS - KV_HEADS) * DIM
    assert old.activations_bytes - new.activations_bytes >= LAYERS * more


def test_rotary_tables_of_every_position_were_buffers() -> None:
    """Before transformers 4.42 each of Mistral's layers kept cosines and sines of all positions, in 16 bits."""
    old, new = (memory(method="lora", transformers=version) for version in ("4.41", "4.42"))
    assert old.resident.weights - new.resident.weights == LAYERS * 2 * 8192 * DIM * 2
