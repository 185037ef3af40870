"""What holds for every server: more of anything takes no less, and an answer survives JSON."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from peftplan import Request, Serving, serve
from peftplan.serving.answers import ServeReport

MODELS = st.sampled_from(
    [
        "llama-2-7b",
        "google/gemma-2-2b",
        "mistralai/Mistral-7B-v0.1",
        "deepseek-ai/DeepSeek-V2-Lite",
        "tiiuae/falcon-7b",
        "openai/gpt-oss-20b",
    ]
)
SERVERS = st.sampled_from(["paged", "transformers"])
FEW = settings(max_examples=25, deadline=None)
# field, whether it is of the request, smallest value, what is the larger one
GROWING = {
    "adapters": (False, st.integers(8, 10**6)),
    "hot": (False, st.integers(8, 1000)),
    "concurrency": (False, st.integers(8, 200)),
    "seq_len": (True, st.integers(1025, 8000)),
    "rank": (True, st.integers(1, 256)),
}


def answered(model: str, server: str, fields: dict[str, Any]) -> ServeReport:
    """On an H200, attention adapted."""
    asked = {"adapters": 1000, "hot": 8, "concurrency": 8, "new_tokens": 1024, "seq_len": 2048, "rank": 16}
    asked |= fields
    asked["adapters"] = max(asked["adapters"], asked["hot"])
    of_request = {name: asked.pop(name) for name in ("seq_len", "rank")}
    request = Request(model=model, targets="attention", gpu="h200", price=1.0, **of_request)
    return serve(request, Serving(server=server, distinct=1, **asked))


@FEW
@given(st.data(), MODELS, SERVERS, st.sampled_from(sorted(GROWING)))
def test_more_takes_no_less(data: st.DataObject, model: str, server: str, field: str) -> None:
    """More adapters, hot ones, sequences, tokens or ranks take no less memory, storage and time of a step."""
    one, other = sorted(data.draw(st.tuples(GROWING[field][1], GROWING[field][1])))
    small, large = (answered(model, server, {field: value}) for value in (one, other))
    assert large.device.device_bytes >= small.device.device_bytes
    assert large.storage.disk_bytes >= small.storage.disk_bytes
    assert large.storage.hot_bytes >= small.storage.hot_bytes
    assert large.cache.bytes >= small.cache.bytes
    assert large.copies.disk_bytes >= small.copies.disk_bytes
    assert small.speed is not None
    assert large.speed is not None
    assert large.speed.decode.step_s >= small.speed.decode.step_s * (1 - 1e-9)
    assert small.money is not None
    assert large.money is not None
    assert large.money.usd_per_tenant_month <= small.money.usd_per_tenant_month


@FEW
@given(MODELS, SERVERS, st.integers(1, 500), st.integers(1, 64))
def test_an_answer_survives_json(model: str, server: str, adapters: int, concurrency: int) -> None:
    """Read back, it is the same; its parts sum to the whole, and its step lies above that without adapters."""
    request = Request(model=model, gpu="a100-80")
    report = serve(request, Serving(adapters=adapters, concurrency=concurrency, server=server))
    assert ServeReport.model_validate_json(report.model_dump_json()) == report
    parts = report.device.breakdown.children
    assert sum(part.bytes for part in parts) == report.device.device_bytes
    assert report.speed is not None
    assert report.speed.bypass.adds_s >= 0
