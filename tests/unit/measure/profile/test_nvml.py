"""What the driver says, from a library that stands for NVML."""

# ruff: noqa: N802  # NVML's own names
from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from peftplan.measure.profile import nvml

GIB = 2**30


class FakeNvml:
    """One GPU; what `missing` names is not supported by it."""

    class NVMLError(Exception):
        """As the library raises it."""

    def __init__(self, missing=(), processes=()):
        self.missing, self.processes = missing, processes
        self.used = 2 * GIB
        self.energy = 1_000_000

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in object.__getattribute__(self, "missing"):
            return self._refuse
        return object.__getattribute__(self, name)

    def _refuse(self, *_):
        raise self.NVMLError

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        raise self.NVMLError

    def nvmlDeviceGetHandleByIndex(self, index):
        return f"device {index}"

    def nvmlSystemGetDriverVersion(self):
        return b"580.95"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 * GIB, used=self.used, free=0)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.processes

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=90, memory=50)

    def nvmlDeviceGetPowerUsage(self, handle):
        return 350_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.energy += 70_000
        return self.energy


def process(pid, num_bytes):
    return SimpleNamespace(pid=pid, usedGpuMemory=num_bytes)


def test_the_process_is_known_by_its_number():
    """Where the driver lists this process, its own figure is taken."""
    library = FakeNvml(processes=(process(1, GIB), process(os.getpid(), 5 * GIB)))
    device = nvml.open_nvml(None, 0, library)
    assert device.process_bytes()[0] == 5 * GIB
    assert device.driver() == "580.95"
    assert device.total_bytes() == 80 * GIB


@pytest.mark.parametrize("processes", [(), (process(1, 9 * GIB),), (process(os.getpid(), None),)])
def test_in_a_container_the_rest_of_the_device_is_taken_off(processes):
    """Where the driver does not list it, the process has what the device uses beyond its state before."""
    library = FakeNvml(processes=processes)
    device = nvml.open_nvml(None, 0, library)
    library.used += 7 * GIB
    held, how = device.process_bytes()
    assert held == 7 * GIB
    assert "beyond its state before" in how


def test_load_power_and_energy_of_a_stretch():
    """Samples are averaged, energy is a difference of the counter."""
    device = nvml.open_nvml(None, 0, FakeNvml())
    device.start()
    time.sleep(0.2)
    found = device.stop().averages()
    assert found == {"utilisation_frac": 0.9, "power_w": 350.0, "energy_j": 70.0}


def test_what_a_gpu_does_not_tell_is_missing():
    """A counter that this GPU has not leaves the others standing."""
    missing = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetComputeRunningProcesses")
    device = nvml.open_nvml(None, 0, FakeNvml(missing))
    device.start()
    time.sleep(0.15)
    assert set(device.stop().averages()) == {"utilisation_frac", "power_w"}
    assert device.process_bytes() == (0, "what the device uses beyond its state before the run")


def test_without_a_driver_there_is_no_device():
    """A library that finds no driver is the same as none."""
    assert nvml.open_nvml(None, 0, FakeNvml(("nvmlInit",))) is None
    assert nvml.open_nvml("GPU-1", 0, FakeNvml(("nvmlDeviceGetHandleByIndex",))) is None


@pytest.mark.parametrize(
    ("visible", "device"),
    [("2,3", (None, 2)), ("GPU-8f,1", ("GPU-8f", 0)), ("MIG-5", ("MIG-5", 0)), ("", (None, 0))],
)
def test_the_first_visible_device_is_looked_at(monkeypatch, visible, device):
    """NVML numbers all devices, CUDA the visible ones: the variable says which is the first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.visible_device() == device
