"""Properties that hold for every request and every config, however strange."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftplan import Report, Request, estimate
from peftplan.breakdown import Node
from peftplan.catalog import all_models
from peftplan.errors import PeftplanError

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
}
METHODS = st.sampled_from(["full", "lora", "qlora"])
FAMILIES = sorted({record.config["model_type"] for record in all_models()})


def smallest(family: str) -> dict[str, Any]:
    """The catalogue's smallest config of a family."""
    records = [r for r in all_models() if r.config["model_type"] == family]
    return dict(min(records, key=lambda r: r.num_params).config)


def check(report: Report) -> None:
    """No negative byte, and every tree sums to its root."""

    def sums(node: Node) -> None:
        assert node.bytes >= 0
        if node.children:
            assert sum(child.bytes for child in node.children) == node.bytes
            for child in node.children:
                sums(child)

    memory = report.memory
    assert memory.breakdown.bytes == memory.peak_allocated_bytes
    sums(memory.breakdown)
    assert memory.peak_allocated_bytes == memory.moments[memory.peak_moment]
    assert memory.peak_allocated_bytes <= memory.peak_reserved_bytes <= memory.device_bytes
    assert all(value >= 0 for value in memory.moments.values())
    assert memory.activations_bytes >= 0
    json.loads(report.model_dump_json())


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_and_adds_up(family: str, method: str, checkpointing: bool) -> None:
    """Every family of the catalogue is answered by every method, and its breakdown sums to the peak."""
    config = smallest(family)
    check(estimate(Request(model=config, method=method, checkpointing=checkpointing, seq_len=128)))


@given(
    method=METHODS,
    batch=st.integers(1, 8),
    length=st.integers(1, 600),
    rank=st.integers(1, 128),
    layers=st.integers(1, 12),
    checkpointing=st.booleans(),
    grad_accum=st.integers(1, 2),
    loss=st.sampled_from(["standard", "chunked", "fused"]),
    attention=st.sampled_from(["sdpa", "eager", "flash"]),
    optimizer=st.sampled_from(["adamw", "adamw-fused", "adamw-8bit", "sgd", "adafactor", "lion"]),
    loop=st.sampled_from(["plain", "trainer"]),
    padding=st.booleans(),
    reentrant=st.booleans(),
)
@FEW
def test_any_request_adds_up(
    method: str, batch: int, length: int, layers: int, reentrant: bool, **options: Any
) -> None:
    """Whatever is combined, bytes are whole, not negative, and sum to the peak."""
    config = {**SMALL, "num_hidden_layers": layers}
    options["use_reentrant"] = reentrant and options["checkpointing"]
    check(estimate(Request(model=config, method=method, micro_batch=batch, seq_len=length, **options)))


@given(method=METHODS, checkpointing=st.booleans(), size=st.integers(1, 700), more=st.integers(1, 300))
@FEW
def test_more_tokens_never_need_less(method: str, checkpointing: bool, size: int, more: int) -> None:
    """Peak and activations grow with sequence length and with the micro-batch."""

    def ask(**options: Any) -> Report:
        return estimate(Request(model=SMALL, method=method, checkpointing=checkpointing, **options))

    short, long = ask(seq_len=size).memory, ask(seq_len=size + more).memory
    assert short.activations_bytes <= long.activations_bytes
    one, two = ask(seq_len=size).memory, ask(seq_len=size, micro_batch=2).memory
    assert one.activations_bytes <= two.activations_bytes
    if method != "qlora":  # a 4-bit product of few rows needs no dequantised weight
        assert short.peak_allocated_bytes <= long.peak_allocated_bytes
        assert one.peak_allocated_bytes <= two.peak_allocated_bytes


@given(method=METHODS, rank=st.integers(1, 200), layers=st.integers(1, 20))
@FEW
def test_more_rank_or_layers_never_need_less(method: str, rank: int, layers: int) -> None:
    """Peak and resident state grow with rank and with depth."""

    def ask(rank: int, layers: int) -> Report:
        config = {**SMALL, "num_hidden_layers": layers}
        return estimate(Request(model=config, method=method, rank=rank, seq_len=200))

    base = ask(rank, layers).memory.peak_allocated_bytes
    assert base <= ask(rank + 8, layers).memory.peak_allocated_bytes
    assert base <= ask(rank, layers + 1).memory.peak_allocated_bytes


@given(
    method=METHODS,
    checkpointing=st.booleans(),
    kv_heads=st.sampled_from([1, 4, 8]),
    seq_len=st.integers(1, 700),
    micro_batch=st.integers(1, 4),
)
@FEW
def test_a_padded_batch_never_needs_less(method: str, kv_heads: int, **options: Any) -> None:
    """Under sdpa a mask adds to what is kept; attention written out has one either way."""
    config = {**SMALL, "num_key_value_heads": kv_heads}

    def ask(padding: bool, attention: Any) -> Any:
        request = Request(model=config, method=method, padding=padding, attention=attention, **options)
        return estimate(request).memory

    assert ask(False, "sdpa").activations_bytes <= ask(True, "sdpa").activations_bytes
    assert ask(False, "eager").moments == ask(True, "eager").moments


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reentrant_checkpoints_keep_what_others_keep(family: str, method: str, padding: bool) -> None:
    """Every family: the same at the end of forward, and an answer that adds up."""
    if family.startswith("deberta") and method == "full":
        pytest.skip("torch cannot run it: tests/unit/memory/test_reentrant.py")
    request = Request(model=smallest(family), method=method, padding=padding, seq_len=96)
    plain = estimate(request)
    reentrant = estimate(request.model_copy(update={"use_reentrant": True}))
    check(reentrant)
    assert reentrant.memory.activations_bytes == plain.memory.activations_bytes
    assert reentrant.memory.evaluation_peak_bytes == plain.memory.evaluation_peak_bytes


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(data=st.data(), family=st.sampled_from(FAMILIES), method=METHODS)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_config_is_answered_or_refused_in_one_line(data: st.DataObject, family: str, method: str) -> None:
    """Any key missing or holding anything: an answer that adds up, or one clear line; never a traceback."""
    config = smallest(family)
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            config.pop(key, None)
        else:
            config[key] = data.draw(ODD_VALUES)
    said = ""
    try:
        check(estimate(Request(model=config, method=method, seq_len=64)))
    except PeftplanError as error:
        said = str(error) or "nothing\nat all"
    assert "\n" not in said
