"""What `fit` answers holds for every model, method and card."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftplan import Request, estimate, fit
from peftplan.catalog import all_gpus, all_models

FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
}
# One small model of every family that has one.
SMALLEST = {
    record.config["model_type"]: record.id
    for record in sorted(all_models(), key=lambda r: -r.num_params)
    if record.num_params < 10**10
}


def fits(request: Request, **fields: Any) -> bool:
    gpu = estimate(request.model_copy(update=fields)).gpu
    assert gpu is not None
    return gpu.fits


def check(request: Request, axis: str) -> None:
    """The value fits and one more does not; where there is none, one does not fit."""
    (limit,) = fit(request, [axis]).axes
    if limit.value is None:
        assert not fits(request, **{axis: 1})
        return
    assert fits(request, **{axis: limit.value})
    assert limit.next_value == limit.value + 1
    assert not fits(request, **{axis: limit.next_value})
    assert limit.headroom_bytes >= 0 > -limit.next_short_bytes
    assert limit.sure_value is None or limit.sure_value <= limit.value


@given(
    method=st.sampled_from(["full", "lora", "qlora"]),
    gpu=st.sampled_from([gpu.key for gpu in all_gpus() if gpu.usable_bytes < 30 * 2**30]),
    axis=st.sampled_from(["micro_batch", "seq_len"]),
    layers=st.integers(1, 6),
    micro_batch=st.integers(1, 40),
    seq_len=st.integers(64, 4096),
    checkpointing=st.booleans(),
    loss=st.sampled_from(["standard", "chunked", "fused"]),
)
@FEW
def test_the_answer_fits_and_one_step_more_does_not(layers: int, axis: str, **options: Any) -> None:
    """Whatever the run and the card, from wherever the search starts."""
    check(Request(model={**CONFIG, "num_hidden_layers": layers}, **options), axis)


@pytest.mark.parametrize("family", SMALLEST)
def test_every_family_has_a_largest_batch(family: str) -> None:
    """The smallest model of every family of the catalogue, on a small card."""
    check(Request(model=SMALLEST[family], method="lora", gpu="rtx3060-12", seq_len=512), "micro_batch")


@given(
    method=st.sampled_from(["full", "lora", "qlora"]),
    layers=st.integers(4, 8),
    micro_batch=st.integers(8, 128),
    checkpointing=st.booleans(),
    optimizer=st.sampled_from(["adamw", "adamw-fused", "adamw-8bit", "sgd"]),
)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_changes_make_it_fit(layers: int, **options: Any) -> None:
    """A set of changes says truly whether it is enough, and its savings add up to the room that it makes."""
    request = Request(model={**CONFIG, "num_hidden_layers": layers}, gpu="rtx3060-12", **options)
    report = fit(request, ["micro_batch"])
    asked = report.estimate.gpu
    assert report.fits is asked.fits
    assert report.fits is not bool(report.sets)
    for made in report.sets:
        after = estimate(Request.model_validate(made.request)).gpu
        assert (after.fits, after.headroom_bytes) == (made.fits, made.headroom_bytes)
        saved = sum(change.saves_bytes for change in made.changes)
        assert saved == made.headroom_bytes - asked.headroom_bytes
