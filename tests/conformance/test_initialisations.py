"""Programs of initialisations against peft's own functions on small matrices: the same bytes at their highest."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.utils.incremental_pca import IncrementalPCA
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peftplan.memory.player import Player
from peftplan.methods import initialised
from peftplan.specs.formats import BF16, FP32, allocated_bytes
from peftplan.specs.modules import Linear

SHAPES = [(512, 512), (256, 1024), (1024, 256)]  # outputs, inputs
TYPES = {BF16: torch.bfloat16, FP32: torch.float32}
RANK, TOKENS = 8, 64


class Watched(TorchDispatchMode):
    """The most that storages made inside take together, rounded as the caching allocator does."""

    def __init__(self, *there: torch.Tensor) -> None:
        super().__init__()
        self.level_bytes = self.peak_bytes = 0
        self.alive: dict[int, int] = {}
        for tensor in there:
            self.see(tensor, 0)

    def see(self, tensor: torch.Tensor, size: int) -> None:
        """A storage that was not there before."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = size
            self.level_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.level_bytes)
            weakref.finalize(storage, self.end, storage._cdata)

    def end(self, key: int) -> None:
        """It ended."""
        self.level_bytes -= self.alive.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and see what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor, allocated_bytes(tensor.untyped_storage().nbytes()))
        return out


def played(program: Any, outputs: int, inputs: int, dtype: Any) -> int:
    """The program's highest level on the tape."""
    player = Player()
    player.grad_enabled = player.training = False
    out = program(Linear(inputs, outputs, False, dtype), RANK, player, TOKENS)
    del out
    return player.peak_bytes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.short)
@pytest.mark.parametrize("name", ["pissa", "olora", "lora_ga"])
def test_programs_hold_what_peft_holds(name: str, dtype: Any, shape: tuple[int, int]) -> None:
    """To the byte, whatever the matrix's shape and type."""
    outputs, inputs = shape
    base = torch.nn.Linear(inputs, outputs, bias=False, dtype=TYPES[dtype])
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["x"], init_lora_weights=False)
    layer = PeftLinear(base, "default", config, r=RANK, lora_alpha=2 * RANK)
    there = list(layer.parameters())
    more: tuple[Any, ...] = ()
    if name == "lora_ga":
        config_of = pytest.importorskip("peft.tuners.lora.config").LoraGAConfig
        base._peft_loraga_grad = torch.randn_like(base.weight)
        there.append(base._peft_loraga_grad)
        more = (config_of(),)
    elif name == "pissa":
        more = ("pissa",)
    watched = Watched(*there)
    with watched, torch.no_grad():
        getattr(layer, f"{name}_init")("default", *more)
    assert played(getattr(initialised, f"_{name}"), outputs, inputs, dtype) == watched.peak_bytes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eva_holds_its_batch_in_fp64(shape: tuple[int, int]) -> None:
    """Beside what it has found before, within a hundredth."""
    inputs = shape[1]
    found = IncrementalPCA(n_components=2 * RANK, copy=True, lowrank=True, lowrank_seed=None)
    batch = torch.randn(TOKENS, inputs, dtype=torch.bfloat16)
    watched = Watched(batch)
    with watched:
        for _ in range(2):
            found.partial_fit(batch.to(torch.float32))
    earlier = 4 * (4 * RANK) * inputs + 2 * 8 * inputs  # directions of the first batch in fp32, two moments
    assert played(initialised._eva, *shape, BF16) + earlier == pytest.approx(watched.peak_bytes, rel=0.01)
