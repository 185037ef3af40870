"""The device that a run is measured on: what it is, how its time is taken, how its memory is cleared."""

from __future__ import annotations

import gc
import platform
import time
from itertools import pairwise
from typing import Any

import torch

from peftplan.errors import MachineLacks
from peftplan.measure.profile import nvml
from peftplan.measure.profile.cpu_meter import CpuMeter
from peftplan.measure.profile.cuda_meter import CudaMeter

_MILLI = 1000.0
NO_GPU = (
    "torch sees no GPU here, and a profile runs real steps on one; with --device cpu a model of a few "
    "thousand parameters is trained for real and held against its trace, or `peftplan trace` needs no GPU"
)
_OUT_OF_MEMORY = (
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory: you tried to allocate"),
    "can't allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in torch's allocators or in a library below them."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


class Device:
    """The CPU; `Cuda` is the GPU."""

    kind = "cpu"
    nvml: nvml.Nvml | None = None

    def facts(self) -> dict[str, Any]:
        """What the machine says of it."""
        return {"gpu": _cpu_name(), "num_gpus": 0}

    def meter(self) -> CpuMeter | CudaMeter:
        """What looks at its memory."""
        return CpuMeter()

    def clear(self) -> None:
        """Give back what is not in use."""
        gc.collect()

    def mark_time(self) -> Any:
        """A moment of the device's own time."""
        return time.perf_counter()

    def seconds(self, marks: list[Any]) -> list[float]:
        """What lies between each mark and the next."""
        return [end - begin for begin, end in pairwise(marks)]

    def memory(self) -> dict[str, Any]:
        """What the process and the device hold."""
        return {}


class Cuda(Device):
    """The first GPU that torch shows; the driver is asked before torch touches it."""

    kind = "cuda"

    def __init__(self) -> None:
        self.nvml = nvml.open_nvml(*nvml.visible_device())
        if not torch.cuda.is_available():
            raise MachineLacks(NO_GPU)

    def facts(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "gpu": properties.name,
            "num_gpus": 1,
            "driver": self.nvml.driver() if self.nvml else None,
            "cuda": torch.version.cuda,
            "total_bytes": self.nvml.total_bytes() if self.nvml else None,
            "usable_bytes": properties.total_memory,
            "compute_capability": (properties.major, properties.minor),
        }

    def meter(self) -> CudaMeter:
        return CudaMeter(torch.cuda.get_device_capability(0))

    def clear(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def mark_time(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: list[Any]) -> list[float]:
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / _MILLI for begin, end in pairwise(marks)]

    def memory(self) -> dict[str, Any]:
        reserved = torch.cuda.memory_reserved()
        if self.nvml is None:
            free, total = torch.cuda.mem_get_info()
            return {"device_total_bytes": total - free}
        held, how = self.nvml.process_bytes()
        found: dict[str, Any] = {"device_total_bytes": self.nvml.device_bytes(), "device_bytes": held, "how": how}
        if held is not None:
            found["context_bytes"] = max(0, held - reserved)
        return found


def open_device(kind: str) -> Device:
    """The device of this kind; raises MachineLacks where there is none."""
    return Cuda() if kind == Cuda.kind else Device()


def _cpu_name() -> str:
    return f"CPU ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"
