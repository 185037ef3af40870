"""The order of a run on a GPU, with an allocator that stands for CUDA's: a tiny model on the CPU takes its part."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)

from tiny_models import tiny_job  # noqa: E402

from peftplan.measure.profile import cuda_meter, runner  # noqa: E402
from peftplan.measure.profile.cuda_meter import CudaMeter  # noqa: E402
from peftplan.measure.profile.device import Device  # noqa: E402
from peftplan.measure.profile.task import Task  # noqa: E402

SOMETHING = 1000  # bytes that the stand-in says are asked for between two notes
MIB = 2**20


class StandIn:
    """Counters that grow, and a snapshot that knows the notes."""

    def __init__(self) -> None:
        self.meter = CudaMeter((8, 0))
        self.peak = 100 * MIB
        self.recording = False
        self.fails_at = ""

    def counters(self):
        self.peak += MIB
        if self.fails_at and self.meter.phase == self.fails_at:
            self.fails_at = ""
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return {"allocated_bytes": {"all": {"peak": self.peak}}, "reserved_bytes": {"all": {"peak": 2 * self.peak}}}

    def record(self, enabled=None, **_):
        self.recording = enabled == "all"

    def snapshot(self):
        block = {"state": "active_allocated", "address": 7, "size": 9 * MIB, "requested_size": 8519680}
        entries = []
        for number in range(len(self.meter._notes)):
            size = cuda_meter._FIRST_NOTE_BYTES + 2 * number
            entries += [
                {"action": "alloc", "addr": 1, "size": size},
                {"action": "free_requested", "addr": 1, "size": size},
            ]
            entries.append({"action": "alloc", "addr": 1000 + number, "size": SOMETHING})
        return {"segments": [{"address": 7, "blocks": [block]}], "device_traces": [entries]}


class FakeDevice(Device):
    """A GPU that is none."""

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in

    def facts(self):
        return {"gpu": "NVIDIA A100-SXM4-80GB", "num_gpus": 1}

    def meter(self):
        return self.stand_in.meter

    def memory(self):
        return {
            "device_bytes": 900 * MIB,
            "device_total_bytes": 950 * MIB,
            "context_bytes": 300 * MIB,
            "how": "said",
        }


@pytest.fixture
def stand_in(monkeypatch):
    """torch's CUDA allocator, replaced."""
    found = StandIn()
    monkeypatch.setattr(cuda_meter, "_DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", found.counters)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 50 * MIB)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", found.record)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", found.snapshot)
    return found


TASK = Task(tiny_job("llama-gqa", "lora", checkpointing=True, autocast="bf16"), num_warmup=1, num_steps=3)


def test_counters_are_read_where_phases_meet(stand_in):
    """Each phase has the peak since the one before; the timed steps are not looked at, and count as a whole."""
    answer = runner.measure(TASK, FakeDevice(stand_in), lambda *_: None)
    figures = answer["figures"]
    assert list(figures["moments"]) == ["loaded", "forward", "forward_end", "loss", "backward", "optimizer_step"]
    phases = [figures["moments"][name] for name in ("forward", "loss", "backward", "optimizer_step")]
    assert [after - before for before, after in pairwise(phases)] == [MIB] * 3
    assert figures["allocated_bytes"] == phases[-1] + MIB
    assert figures["reserved_bytes"] == 2 * figures["allocated_bytes"]
    assert len(figures["step_s_each"]) == 3
    assert (figures["device_bytes"], figures["context_bytes"]) == (900 * MIB, 300 * MIB)
    assert "process memory: said" in answer["notes"]
    assert not stand_in.recording


def test_the_history_gives_the_parts(stand_in):
    """The workspace is known by its size, other blocks by their phase, the rest is what was not split."""
    answer = runner.measure(TASK, FakeDevice(stand_in), lambda *_: None)
    figures = answer["figures"]
    parts = figures["categories"]
    assert parts["cuBLAS workspaces"] == 8519680
    assert sum(parts.values()) == figures["allocated_bytes"]
    assert parts["blocks not split"] > 0
    passing = sum(size for name, size in parts.items() if "activations" in name or "temporaries" in name)
    assert passing % SOMETHING == 0
    assert passing > 0


def test_running_out_keeps_what_was_seen(stand_in):
    """The record of a run that ran out has the peak so far and the phase in which it ended."""
    stand_in.fails_at = "loss"
    answer = runner.measure(TASK, FakeDevice(stand_in), lambda *_: None)
    assert answer["outcome"] == "out_of_memory"
    assert answer["figures"]["allocated_bytes"] > 100 * MIB
    assert any("warming up, loss" in note and "20.00 MiB" in note for note in answer["notes"])
