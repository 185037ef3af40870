"""Fake CUDA tensors on a build without CUDA: set up once, refused where they cannot be, harmless at exit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peftplan.measure.trace import fake_cuda  # noqa: E402

PROGRAM = """
import torch
from peftplan.measure.trace import fake_cuda
from torch._subclasses.fake_tensor import FakeTensorMode
fake_cuda.install()
kept = list(fake_cuda._kept)
fake_cuda.install()
assert fake_cuda._kept == kept
with FakeTensorMode():
    weight = torch.nn.Parameter(torch.ones(4, 4, device="cuda"))
    with torch.autocast("cpu", enabled=False):
        torch.nn.functional.silu(torch.ones(2, 4, device="cuda") @ weight).sum().backward()
    optimizer = torch.optim.AdamW([weight], foreach=True)
    optimizer.step()
    assert weight.grad.device.type == "cuda"
    assert optimizer.state[weight]["exp_avg"].device.type == "cuda"
assert not torch.cuda.is_available()
print("done")
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nothing is set up yet, on a build without CUDA."""
    monkeypatch.setattr(fake_cuda, "_kept", [])
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    threads = torch.autograd.is_multithreading_enabled()
    yield
    torch.autograd.set_multithreading_enabled(threads)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_a_training_step_runs_and_the_process_ends_well() -> None:
    """Forward, backward and optimizer step on fake CUDA tensors, set up twice; nothing crashes at exit."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_platforms_are_refused(bare: None, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    """Without a CUDA build, tables of native code are replaced on Linux only."""
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(fake_cuda.Unsupported, match=f"need Linux or a CUDA build of torch; this is {platform}"):
        fake_cuda.install()
    assert fake_cuda._kept == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize("error", [OSError("no such library"), AttributeError("no such symbol")])
def test_a_torch_of_another_build_is_refused(bare: None, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Where a library or a symbol is missing, the version is named and nothing is changed."""

    def missing(name: str) -> Any:
        raise error

    monkeypatch.setattr(fake_cuda, "_library", missing)
    with pytest.raises(fake_cuda.Unsupported, match=f"torch {torch.__version__.split('+')[0]}.*{error}"):
        fake_cuda.install()
    assert fake_cuda._kept == []
