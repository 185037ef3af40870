"""Serving against what others published: figures of papers and of a benchmark's README, and nothing measured here.

* gpt-fast: tokens a second of one sequence behind a prompt of 5 tokens, on an A100 80GB. Source: README.md of
  pytorch-labs/gpt-fast, table "Benchmarks".
* Punica: Llama-2 with adapters of rank 16 on all seven linears, on an A100 80GB. Source: arXiv:2310.18547, abstract
  and sections 7.1 and 7.2.
* gpt-oss: checkpoints of 60.8 GiB and 12.8 GiB with experts in MXFP4. Source: model card of gpt-oss-120b and
  gpt-oss-20b, table 1.
"""

from __future__ import annotations

import pytest

from peftplan import Request, Serving, serve
from peftplan.serving.answers import Speed
from peftplan.units import GIB


def speed(model: str, concurrency: int, seq_len: int, new_tokens: int) -> Speed:
    """Of a server with an adapter for every sequence, on an A100 80GB."""
    request = Request(model=model, rank=16, seq_len=seq_len, gpu="a100-80")
    options = Serving(adapters=1000, concurrency=concurrency, new_tokens=new_tokens)
    found = serve(request, options).speed
    assert found is not None
    return found


def test_a_dense_model_generates_as_fast_as_gpt_fast() -> None:
    """Llama-2-7B in bf16 gives 104.9 tokens a second without adapters, limited by bandwidth."""
    found = speed("llama-2-7b", concurrency=1, seq_len=205, new_tokens=200)
    assert 1 / found.bypass.merged_step_s == pytest.approx(104.9, rel=0.08)
    assert found.decode.bound == "memory bandwidth"


def test_adapters_add_what_punica_says() -> None:
    """Its abstract says 2 ms a token: here of 32 sequences, each with another adapter of a 7B model."""
    found = speed("llama-2-7b", concurrency=32, seq_len=2048, new_tokens=1024)
    assert found.bypass.adds_s == pytest.approx(2e-3, rel=0.25)


def test_a_batch_of_32_costs_what_punica_says() -> None:
    """A layer of the 7B model takes 72 % longer for 32 sequences than for one, behind 512 tokens."""
    one, many = (speed("llama-2-7b", concurrency=n, seq_len=514, new_tokens=2) for n in (1, 32))
    assert many.decode.step_s / one.decode.step_s == pytest.approx(1.72, rel=0.08)


@pytest.mark.parametrize(
    ("model", "with_adapters", "alone"), [("llama-2-7b", 1044, 1140), ("llama-2-13b", 693, 789)]
)
def test_throughput_with_adapters_against_the_base_alone(model: str, with_adapters: int, alone: int) -> None:
    """Punica's tokens a second over vLLM's without adapters, 32 sequences, 101 new tokens each on average.

    The lengths of its prompts are not stated: between 100 and 1,000 tokens the share lies around the published one.
    """
    published = with_adapters / alone
    for prompt in (100, 1000):
        found = speed(model, concurrency=32, seq_len=prompt + 101, new_tokens=101)
        assert found.bypass.merged_step_s / found.decode.step_s == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(("model", "gib"), [("openai/gpt-oss-120b", 60.8), ("openai/gpt-oss-20b", 12.8)])
def test_experts_in_mxfp4_take_what_the_model_card_says(model: str, gib: float) -> None:
    """On disk and in memory: a base that cannot train packed is served packed."""
    found = serve(Request(model=model, quant="mxfp4"), Serving(adapters=1))
    assert found.request["quant"] == "mxfp4"
    assert found.storage.base_disk_bytes / GIB == pytest.approx(gib, abs=0.06)
    assert found.device.breakdown.children[0].bytes / GIB == pytest.approx(gib, abs=0.06)
