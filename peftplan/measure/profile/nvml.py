"""What the driver says of the GPU while a run goes on: memory of process and device, load, power, energy.

The library (nvidia-ml-py) is optional; without it these figures are missing and the record says so.

Source: nvml (nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetTotalEnergyConsumption).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from statistics import mean
from typing import Any

_EVERY_S = 0.05
_MILLI = 1000.0
MISSING = (
    "nvidia-ml-py is not installed (pip install 'peftplan[profile]'): no process memory, load, power or energy"
)


@dataclass(slots=True)
class Readings:
    """Samples of one stretch of a run; empty where the driver does not tell."""

    utilisation_frac: list[float] = field(default_factory=list)
    power_w: list[float] = field(default_factory=list)
    energy_j: float | None = None

    def averages(self) -> dict[str, float]:
        """The mean of each kind of sample, and the energy of the stretch."""
        found = {}
        if self.utilisation_frac:
            found["utilisation_frac"] = mean(self.utilisation_frac)
        if self.power_w:
            found["power_w"] = mean(self.power_w)
        if self.energy_j is not None:
            found["energy_j"] = self.energy_j
        return found


class Nvml:
    """One GPU as NVML sees it. Made before anything touches the device, so that its memory before is known."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle
        self.before_bytes = self.device_bytes() or 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._readings = Readings()
        self._energy_begin: float | None = None

    def driver(self) -> str | None:
        """Version of the driver."""
        found = self._ask(self.library.nvmlSystemGetDriverVersion)
        return found.decode() if isinstance(found, bytes) else found

    def total_bytes(self) -> int | None:
        """Memory of the device as the driver shows it."""
        info = self._ask(self.library.nvmlDeviceGetMemoryInfo, self.handle)
        return None if info is None else int(info.total)

    def device_bytes(self) -> int | None:
        """Memory used on the device, by whomever."""
        info = self._ask(self.library.nvmlDeviceGetMemoryInfo, self.handle)
        return None if info is None else int(info.used)

    def process_bytes(self) -> tuple[int | None, str]:
        """Memory of this process and how it is known.

        A container's process has another number outside, where the driver looks; then what the device has
        beyond its state before is this process's, as long as no other comes or goes.
        """
        for process in self._ask(self.library.nvmlDeviceGetComputeRunningProcesses, self.handle) or []:
            if process.pid == os.getpid() and process.usedGpuMemory:
                return int(process.usedGpuMemory), "the driver's figure for the process"
        used = self.device_bytes()
        if used is None:
            return None, ""
        return used - self.before_bytes, "what the device uses beyond its state before the run"

    # ---- a stretch of the run

    def start(self) -> None:
        """Begin to sample."""
        self._readings = Readings()
        self._energy_begin = self._energy_j()
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> Readings:
        """What was sampled since the start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        ended = self._energy_j()
        if ended is not None and self._energy_begin is not None:
            self._readings.energy_j = ended - self._energy_begin
        return self._readings

    def _sample(self) -> None:
        while not self._stop.wait(_EVERY_S):
            rates = self._ask(self.library.nvmlDeviceGetUtilizationRates, self.handle)
            if rates is not None:
                self._readings.utilisation_frac.append(rates.gpu / 100)
            power = self._ask(self.library.nvmlDeviceGetPowerUsage, self.handle)
            if power is not None:
                self._readings.power_w.append(power / _MILLI)

    def _energy_j(self) -> float | None:
        found = self._ask(self.library.nvmlDeviceGetTotalEnergyConsumption, self.handle)
        return None if found is None else found / _MILLI

    def _ask(self, question: Callable[..., Any], *args: Any) -> Any:
        """An answer; None where this device or driver has none."""
        try:
            return question(*args)
        except self.library.NVMLError:
            return None


def open_nvml(uuid: str | None, index: int, library: Any = None) -> Nvml | None:
    """The device of this identifier, or else of this number; None without the library or its driver."""
    if library is None:
        try:
            library = import_module("pynvml")
        except ImportError:
            return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    for find, name in ((library.nvmlDeviceGetHandleByUUID, uuid), (library.nvmlDeviceGetHandleByIndex, index)):
        if name is None:
            continue
        try:
            return Nvml(library, find(name))
        except library.NVMLError:
            continue
    return None


def visible_device() -> tuple[str | None, int]:
    """(identifier, number) of the first device that CUDA shows to this process, before CUDA is asked."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return first, 0
    return None, int(first) if first.isdigit() else 0
