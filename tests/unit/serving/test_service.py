"""One base and many adapters: sizes, limits, speed and money of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, Serving, estimate, serve
from peftplan.catalog import find_gpu, find_model
from peftplan.errors import BadInput
from peftplan.serving.answers import ServeReport
from peftplan.units import GB, HOUR_S, MILLION

SERVER = {"adapters": 100, "hot": 20}


def answer(request: dict[str, Any] | None = None, **serving: Any) -> ServeReport:
    """Of Llama 2 7B on an A100 80GB unless told otherwise."""
    asked = {"model": "llama-2-7b", "gpu": "a100-80", **(request or {})}
    return serve(Request(**asked), Serving(**{**SERVER, **serving}))


# ---- where adapters lie


def test_an_adapter_takes_two_bytes_a_parameter() -> None:
    """It is served in the base's 16 bits, whatever it was trained in."""
    found = answer({"rank": 8})
    trained = estimate(Request(model="llama-2-7b", rank=8)).method.num_trainable_params
    assert found.adapter.num_params == trained
    assert found.adapter.bytes == found.adapter.disk_bytes == found.adapter.hot_bytes == 2 * trained
    assert answer({"rank": 8, "adapter_dtype": "fp32"}).adapter.bytes == 4 * trained


def test_adapters_are_counted_where_they_lie() -> None:
    """All on disk, some in host memory, fewer in GPU memory, beside one base."""
    found = answer(resident=50)
    each, storage = found.adapter.bytes, found.storage
    assert storage.adapters_disk_bytes == 100 * each
    assert storage.host_bytes == 50 * each
    assert storage.hot_bytes == 20 * each
    assert storage.base_disk_bytes == 2 * found.model.num_params
    assert storage.disk_bytes == storage.base_disk_bytes + storage.adapters_disk_bytes


def test_a_stated_size_takes_the_place_of_the_computed_one() -> None:
    """--adapter-size is what an adapter takes, everywhere."""
    found = answer(adapter_size=50 * MILLION)
    assert found.adapter.stated
    assert found.storage.adapters_disk_bytes == 5 * GB
    assert found.storage.hot_bytes == GB


def test_places_of_a_higher_rank_take_more_than_what_lies_in_them() -> None:
    """--slot-rank 64 makes places four times as large as adapters of rank 16, on the GPU alone."""
    found = answer(slot_rank=64)
    assert found.adapter.hot_bytes == 4 * found.adapter.bytes
    assert found.storage.host_bytes == 100 * found.adapter.bytes
    assert any(note.startswith("places of rank 64 stand beside") for note in found.notes)
    assert found.speed is not None
    assert found.speed.decode.bytes.adapters > 3 * answer().speed.decode.bytes.adapters  # type: ignore[union-attr]


def test_only_what_a_prompt_encoder_computes_is_kept() -> None:
    """P-tuning's network makes 20 rows, which are saved and served; it is not."""
    found = answer({"method": "p-tuning"})
    assert found.adapter.bytes == found.adapter.disk_bytes == 4 * 20 * 4096
    assert found.adapter.num_params > 10 * MILLION
    assert found.adapter.prompt_positions == 20


# ---- memory


def test_the_breakdown_sums_to_the_device() -> None:
    """Base, hot adapters, cache, a pass, workspace and context are the GPU's memory, and leave its headroom."""
    found = answer()
    parts = found.device.breakdown.children
    assert sum(part.bytes for part in parts) == found.device.device_bytes == found.device.breakdown.bytes
    assert found.gpu is not None
    assert found.gpu.headroom_bytes == found.gpu.usable_bytes - found.device.device_bytes
    spread = found.device.spread
    assert spread.low_bytes < found.device.device_bytes < spread.high_bytes


@pytest.mark.parametrize("server", ["paged", "transformers"])
def test_limits_are_the_last_that_fit(server: str) -> None:
    """As many sequences as fit do, and one more does not; so do tokens of a sequence."""
    request = {"model": "llama-3-70b", "quant": "nf4", "gpu": "a100-80"}
    limits = answer(request, server=server).limits
    most = limits.max_concurrency
    assert most is not None
    for concurrency, fits in ((most, True), (most + 1, False)):
        found = answer(request, server=server, concurrency=concurrency)
        assert found.gpu is not None
        assert found.gpu.fits is fits


def test_hot_adapters_fill_what_is_left() -> None:
    """As many as the headroom holds beside those that are asked for."""
    found = answer({"rank": 256}, adapters=1000, hot=8)
    most = found.limits.max_hot
    assert most is not None
    assert 8 < most < 1000
    assert answer({"rank": 256}, adapters=1000, hot=most).gpu.fits  # type: ignore[union-attr]
    assert not answer({"rank": 256}, adapters=1000, hot=most + 1).gpu.fits  # type: ignore[union-attr]


def test_a_share_of_the_card_may_be_given() -> None:
    """--memory-frac leaves the rest of the card to others."""
    half, whole = answer(memory_frac=0.5), answer()
    assert half.gpu is not None
    assert whole.gpu is not None
    difference = whole.gpu.headroom_bytes - half.gpu.headroom_bytes
    assert difference == pytest.approx(whole.gpu.usable_bytes / 2, abs=1)


def test_what_does_not_fit_says_what_it_lacks() -> None:
    """A base beyond the card: not fit, surely, and nothing fits beside it."""
    found = answer({"model": "llama-2-70b", "gpu": "a100-80"})
    assert found.gpu is not None
    assert not found.gpu.fits
    assert found.gpu.certain
    assert found.limits.max_concurrency is found.limits.max_hot is found.limits.max_seq_len is None


# ---- speed


def test_parts_of_a_step_sum_to_it() -> None:
    """Seconds by what is read are the step, and tokens follow from it."""
    speed = answer().speed
    assert speed is not None
    assert sum(speed.decode.terms.values()) == pytest.approx(speed.decode.step_s)
    assert speed.decode.tokens_per_s == pytest.approx(8 / speed.decode.step_s)
    assert speed.bypass.adds_s == pytest.approx(speed.decode.step_s - speed.bypass.merged_step_s)


def test_adapters_beside_linears_take_two_launches_and_their_flop() -> None:
    """2 flop for each number of an adapter and token, two launches a linear."""
    found = answer()
    assert found.speed is not None
    assert found.speed.bypass.flop_per_token == 2 * found.adapter.num_params
    assert found.speed.bypass.launches_per_step == 2 * 7 * 32


def test_more_adapters_in_a_batch_read_more() -> None:
    """1, 2, 4, ... of them up to those that were asked for, each read once a step."""
    found = answer(concurrency=12, distinct=6)
    assert found.speed is not None
    rows = found.speed.mixed
    assert [row.distinct for row in rows] == [1, 2, 4, 6]
    assert rows[1].adapter_bytes - rows[0].adapter_bytes == found.adapter.bytes
    assert rows[3].adapter_bytes - rows[0].adapter_bytes == 5 * found.adapter.bytes


def test_peft_in_python_is_bound_by_its_launches() -> None:
    """transformers with peft launches each adapter's products by themselves, from Python."""
    paged, plain = answer().speed, answer(server="transformers").speed
    assert paged is not None
    assert plain is not None
    assert plain.decode.bound == "host launches"
    assert plain.decode.num_launches > 10 * paged.decode.num_launches
    assert plain.decode.step_s > 10 * paged.decode.step_s


def test_a_cold_adapter_comes_over_the_card_s_lanes() -> None:
    """PCIe 4.0 x16 moves 31.5 GB a second."""
    found = answer()
    assert found.speed is not None
    swap = found.speed.swap
    assert swap.link_bytes_per_s == pytest.approx(31.5 * GB, rel=1e-3)
    assert swap.from_host_s == pytest.approx(found.adapter.bytes / swap.link_bytes_per_s)


def test_prompts_take_their_share_of_a_busy_gpu() -> None:
    """A request takes its prompt's pass, and its share of the steps of its new tokens."""
    speed = answer(new_tokens=100).speed
    assert speed is not None
    seconds = speed.prefill.prompt_s + 100 * speed.decode.step_s / 8
    assert speed.load.requests_per_s == pytest.approx(1 / seconds)
    assert speed.load.generated_tokens_per_s == pytest.approx(100 / seconds)


def test_experts_that_no_token_visits_are_not_read() -> None:
    """One sequence of a mixture reads the weights of a token's experts; many read nearly all."""
    request = {"model": "mistralai/Mixtral-8x7B-v0.1", "gpu": "h200", "targets": "attention"}
    one, many = (answer(request, hot=1, concurrency=n).speed for n in (1, 64))
    assert one is not None
    assert many is not None
    report = answer(request)
    assert one.decode.bytes.weights == pytest.approx(2 * report.model.num_active_params, rel=0.05)
    assert many.decode.bytes.weights == pytest.approx(2 * report.model.num_params, rel=0.05)


def test_packed_experts_are_read_packed() -> None:
    """What MXFP4 saves of the experts is saved at each step, too; the rest is read as it was."""
    request = {"model": "openai/gpt-oss-20b", "gpu": "h100"}
    dense, packed = (answer({**request, "quant": quant}) for quant in ("none", "mxfp4"))
    assert dense.speed is not None
    assert packed.speed is not None
    saved = dense.speed.decode.bytes.weights - packed.speed.decode.bytes.weights
    assert 0.6 < saved / dense.speed.decode.bytes.weights < 0.75
    assert packed.speed.decode.num_flop == dense.speed.decode.num_flop


def test_a_paged_server_multiplies_what_is_packed() -> None:
    """GPTQ's linears are read as they are stored, 3.87 times as fast as dense ones; transformers unpacks them."""
    dense, packed, unpacked = (
        answer({"quant": quant}, server=server).speed
        for quant, server in (("none", "paged"), ("gptq", "paged"), ("gptq", "transformers"))
    )
    assert dense is not None
    assert packed is not None
    assert unpacked is not None
    head = 2 * 32000 * 4096
    ratio = (dense.decode.bytes.weights - head) / (packed.decode.bytes.weights - head)
    assert ratio == pytest.approx(3.87, rel=0.02)
    assert packed.decode.num_launches == dense.decode.num_launches
    everything = sum(unpacked.decode.bytes.model_dump().values())
    assert everything > 2 * sum(packed.decode.bytes.model_dump().values())


def test_a_checkpoint_s_own_format_counts() -> None:
    """A config that says its experts are MXFP4 is served so, and adapters are as wide as the base allows."""
    found = find_model("openai/gpt-oss-20b")
    assert found is not None
    config = {**found.config, "quantization_config": {"quant_method": "mxfp4"}}
    assert answer({"model": config}).request["quant"] == "mxfp4"
    assert answer({"model": config}).device == answer({"model": "openai/gpt-oss-20b", "quant": "mxfp4"}).device
    assert answer({"quant": "fp8", "gpu": "h100"}).adapter.dtype == "bf16"
    assert answer({"quant": "fp8", "gpu": "h100"}, server="transformers").adapter.dtype == "fp32"


# ---- copies and money


def test_copies_take_the_model_for_each_tenant() -> None:
    """50 copies of a 7B model in 16 bits take 674 GB, one base and 50 adapters a fortieth of it."""
    copies = answer(adapters=50, hot=8).copies
    assert copies.disk_bytes == 50 * 2 * 6_738_415_616
    assert copies.disk_ratio == pytest.approx(copies.disk_bytes / copies.shared_disk_bytes)
    assert copies.copies_per_gpu == 5
    assert copies.num_gpus == 10
    assert copies.shared_num_gpus == 1


def test_a_copy_beyond_a_gpu_takes_several() -> None:
    """70B in 16 bits needs two cards of 80 GB at least, of which no copy shares one."""
    copies = answer({"model": "llama-2-70b", "quant": "nf4"}).copies
    assert copies.copies_per_gpu is None
    assert copies.gpus_per_copy == 2
    assert copies.num_gpus == 200
    assert copies.shared_num_gpus == 1


def test_dollars_are_those_of_gpus() -> None:
    """A price by the hour over tenants and over tokens."""
    found = answer({"price": 2.0, "gpus": 3})
    money, speed = found.money, found.speed
    assert money is not None
    assert speed is not None
    assert money.usd_per_hour == 6.0
    assert money.usd_per_tenant_month == pytest.approx(6.0 * 730 / 100)
    tokens_per_hour = speed.load.generated_tokens_per_s * HOUR_S
    assert money.usd_per_million_tokens == pytest.approx(2.0 / tokens_per_hour * MILLION)
    assert money.copies_usd_per_hour == pytest.approx(2.0 * found.copies.num_gpus)  # type: ignore[operator]


def test_without_a_gpu_there_is_no_time_and_no_money() -> None:
    """Sizes are answered, and a note says what to name."""
    found = answer({"gpu": None})
    assert found.gpu is None
    assert found.speed is None
    assert found.money is None
    assert any("--gpu names one" in note for note in found.notes)


# ---- what is refused


@pytest.mark.parametrize(
    ("request_fields", "serving", "words"),
    [
        ({"method": "full"}, {}, "trains the base itself"),
        ({"method": "bitfit", "model": "gpt2"}, {}, "changes weights of the base"),
        ({"model": "google-t5/t5-small"}, {}, "generate token by token, and t5 is none"),
        ({"optimizer": "sgd"}, {}, "--optimizer is of training"),
        ({"checkpointing": False}, {}, "--checkpointing is of training"),
        ({}, {"hot": 101}, "--hot 101 is more than --adapters 100"),
        ({}, {"resident": 10}, "--hot 20 is more than --resident 10"),
        ({}, {"resident": 101}, "--resident 101 is more than --adapters 100"),
        ({}, {"distinct": 9}, "--distinct 9 is more than a batch of --concurrency 8"),
        ({}, {"new_tokens": 2048}, "leaves no prompt"),
        ({}, {"slot_rank": 8}, "--slot-rank 8 has no place for --rank 16"),
        ({}, {"server": "transformers", "kv_dtype": "fp8"}, "--kv-dtype fp8"),
        ({"method": "dora"}, {"distinct": 2}, "--distinct 2: adapters of --method dora share no batch"),
    ],
)
def test_what_contradicts_itself_is_refused(
    request_fields: dict[str, Any], serving: dict[str, Any], words: str
) -> None:
    """One line that says what was given and what to do."""
    with pytest.raises(BadInput, match=words):
        answer(request_fields, **serving)


def test_the_reference_card_is_known() -> None:
    """The card of these tests stands in the catalogue."""
    assert find_gpu("a100-80") is not None


def test_notes_say_what_would_fit() -> None:
    """Fewer sequences or shorter ones where that is enough, else a smaller base."""
    many = answer(concurrency=100)
    assert many.gpu is not None
    assert not many.gpu.fits
    limits = many.limits
    assert f"it would fit with --concurrency {limits.max_concurrency}" in many.notes[0]
    assert f"--seq-len {limits.max_seq_len}" in many.notes[0]
    assert "the base alone exceeds the GPU" in answer({"model": "llama-2-70b"}).notes[0]


def test_a_base_in_fp32_is_served_too() -> None:
    """A kernel for 16 bits alone is not taken for it; its weights are twice as large."""
    wide, narrow = (answer({"base_dtype": name}).device.breakdown.children[0].bytes for name in ("fp32", "bf16"))
    assert wide == pytest.approx(2 * narrow, rel=1e-3)
