"""Makes fake CUDA tensors usable - forward, backward, optimizer - on a torch that was built without CUDA.

Two things are missing in such a build. A device guard for CUDA, which autograd asks for (without one the
process aborts): an object whose virtual methods all answer 0 is put into c10's registry, whereupon torch's
own `_ensureCUDADeviceGuardSet` replaces it by its fake guard. And CUDA as the accelerator, whose current
stream the engine asks for: the hooks object is given a copy of its table of virtual methods in which
`isBuilt` answers yes. Only native functions stand in these tables. A CUDA build without a GPU needs neither.

Assumes: Linux, the Itanium C++ ABI, and the layout of AcceleratorHooksInterface in torch 2.9 to 2.13; it
checks itself, and raises Unsupported where something is not as expected.

Source: torch-fake-tensors (AcceleratorHooksInterface.h, DeviceGuardImplInterface.h).
"""

from __future__ import annotations

import atexit
import ctypes
import sys
from pathlib import Path
from typing import Any

import torch

_CUDA = 1  # c10::DeviceType::CUDA
_POINTER = ctypes.sizeof(ctypes.c_void_p)
# Places in the hooks' table of virtual methods, after the two destructors.
_IS_BUILT, _IS_AVAILABLE, _HAS_PRIMARY_CONTEXT = 2, 3, 4
_TABLE_LENGTH = 96
_BEFORE_TABLE = 2  # offset-to-top and type information stand before the table's address
_kept: list[Any] = []  # what native code points to must not be freed


class Unsupported(Exception):
    """This platform or torch build has no place for a fake CUDA device."""


def install() -> None:
    """Set the fake device up, once in a process; raises Unsupported where it cannot be."""
    # one thread runs the whole backward, so that modes of this thread see it
    torch.autograd.set_multithreading_enabled(False)
    if _kept:
        return
    if torch.backends.cuda.is_built():
        torch._C._ensureCUDADeviceGuardSet()
        _kept.append("CUDA build")
        return
    if not sys.platform.startswith("linux"):
        raise Unsupported(f"fake CUDA tensors need Linux or a CUDA build of torch; this is {sys.platform}")
    try:
        _install_guard()
        _install_accelerator()
    except (AttributeError, OSError, ValueError) as error:  # a symbol or library that is not there
        raise Unsupported(f"torch {torch.__version__} has no place for a fake CUDA device ({error})") from None
    _claim_cuda_kernels()


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"lib{name}.so"))


def _install_guard() -> None:
    registry = (ctypes.c_void_p * 32).in_dll(_library("c10"), "_ZN3c104impl26device_guard_impl_registryE")
    if registry[_CUDA]:
        return
    zero = _virtual_table(_hooks()[0])[_IS_AVAILABLE]
    table = (ctypes.c_void_p * 64)(*([zero] * 64))
    guard = (ctypes.c_void_p * 1)(ctypes.addressof(table))
    _kept.extend([table, guard])
    registry[_CUDA] = ctypes.addressof(guard)
    torch._C._ensureCUDADeviceGuardSet()
    if registry[_CUDA] == ctypes.addressof(guard):
        registry[_CUDA] = None
        raise Unsupported(f"torch {torch.__version__} does not install its fake CUDA guard")


def _install_accelerator() -> None:
    hooks = _hooks()
    old = hooks[0]
    before = _BEFORE_TABLE * _POINTER
    size = _TABLE_LENGTH + _BEFORE_TABLE
    table = (ctypes.c_void_p * size).from_buffer_copy((ctypes.c_void_p * size).from_address(old - before))
    yes = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value
    table[_BEFORE_TABLE + _HAS_PRIMARY_CONTEXT] = table[_BEFORE_TABLE + _IS_AVAILABLE]  # answers no
    table[_BEFORE_TABLE + _IS_BUILT] = yes
    _kept.append(table)
    hooks[0] = ctypes.addressof(table) + before
    atexit.register(hooks.__setitem__, 0, old)
    accelerator = torch.accelerator.current_accelerator(check_available=False)
    if accelerator is None or accelerator.type != "cuda":
        hooks[0] = old
        raise Unsupported(f"torch {torch.__version__} does not take CUDA for the accelerator")


def _hooks() -> Any:
    get = _library("torch_cpu")._ZN2at6detail12getCUDAHooksEv
    get.restype = ctypes.c_void_p
    return ctypes.cast(get(), ctypes.POINTER(ctypes.c_void_p))


def _virtual_table(address: int) -> Any:
    return (ctypes.c_void_p * _TABLE_LENGTH).from_address(address)


def _claim_cuda_kernels() -> None:
    """Keep composite operations whole that have a CUDA kernel.

    Under autograd an operation without a kernel for the device is taken apart (`silu_backward` into five
    buffers). What has a CPU kernel of its own has a CUDA one; a stub in its place restores what a CUDA
    build does. It is never called: the fake tensors answer first.
    """
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)

    def stub(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fake CUDA kernel was called")

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        composite = name.startswith("aten::") and has(name, "CompositeImplicitAutograd")
        if composite and has(name, "CPU") and not has(name, "CUDA"):
            library.impl(name.removeprefix("aten::"), stub, "CUDA")
