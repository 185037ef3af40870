"""Real runs on the CPU in this process: equal to their traces to the byte; memory running out is an outcome."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)

from tiny_models import tiny_job  # noqa: E402

from peftplan.measure.profile import runner  # noqa: E402
from peftplan.measure.profile.build import build  # noqa: E402
from peftplan.measure.profile.device import is_out_of_memory, open_device  # noqa: E402
from peftplan.measure.profile.task import Task  # noqa: E402
from peftplan.measure.trace import runner as trace_runner  # noqa: E402
from peftplan.measure.trace.account import (  # noqa: E402
    activations_bytes,
    breakdown,
    moments,
    peak_event,
    resident,
)
from peftplan.measure.trace.replay import replay  # noqa: E402

QUICK = {"num_warmup": 1, "num_steps": 1}
CASES = {
    "full": ("llama-gqa", "full", {}),
    "packed, checkpoints": ("llama-gqa", "nf4", {"kbit_prepare": True, "checkpointing": True, "autocast": "bf16"}),
}


def quiet(*_):
    """No progress is shown."""


@pytest.mark.parametrize("name", CASES)
def test_a_real_run_is_its_trace(name):
    """Moments, state, activations and every part of the peak are those of the trace on fake CPU tensors."""
    family, method, changes = CASES[name]
    job = tiny_job(family, method, **changes)
    answer = runner.measure(Task(job, **QUICK), open_device("cpu"), quiet)
    recording = trace_runner.run(job, quiet)
    replayed = replay(recording)
    moment, at = peak_event(recording, replayed)
    figures = answer["figures"]
    assert answer["outcome"] == "completed"
    assert figures["moments"] == moments(recording, replayed)
    assert figures["resident"] == resident(recording)
    assert figures["activations_bytes"] == activations_bytes(recording)
    assert figures["categories"] == {n.name: n.bytes for n in breakdown(recording, moment, at).children}
    assert len(figures["step_s_each"]) == 1
    assert answer["facts"]["num_trainable_params"] == recording.facts["num_trainable_params"]


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_a_model_is_built_without_a_tensor_on_meta(method):
    """Every weight, scale and buffer is on the device, packed by the library, and ties are kept."""
    built = build(tiny_job("llama-tied", method), None, quiet)
    held = [*built.model.parameters(), *built.model.buffers()]
    assert {tensor.device.type for tensor in held} == {"cpu"}
    packed = [p for p in built.model.parameters() if type(p).__name__ in ("Params4bit", "Int8Params")]
    assert len(packed) == 2 * 7
    assert built.inner.get_output_embeddings().weight is built.inner.get_input_embeddings().weight
    frequencies = dict(built.inner.named_buffers())["model.rotary_emb.inv_freq"]
    assert frequencies[0] == 1.0
    assert (frequencies[1:] < 1.0).all()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")])
def test_running_out_of_memory_is_an_outcome(monkeypatch, error):
    """An allocation that fails in a step ends the run with its moment and the allocator's words."""

    def fail(*_):
        raise error

    monkeypatch.setattr(runner, "_take_time", fail)
    answer = runner.measure(Task(tiny_job("llama-gqa", "full"), **QUICK), open_device("cpu"), quiet)
    assert answer["outcome"] == "out_of_memory"
    assert any("taking time" in note and "2.00 GiB" in note for note in answer["notes"])


def test_other_failures_are_raised(monkeypatch):
    """What is no lack of memory is no outcome."""

    def fail(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(runner, "build", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        runner.measure(Task(tiny_job("llama-gqa", "full"), **QUICK), open_device("cpu"), quiet)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("expected a tensor"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_running_out(error, is_memory):
    """torch's allocators and the libraries below them say it in their own words."""
    assert is_out_of_memory(error) is is_memory
