"""Optimizers that want to know more than a list of tensors: names, modules, options; each by its own library.

What is renewed every few hundred steps is renewed in every step of a trace: that is when the most is held.

Source: torch-muon, galore, apollo, adam-mini, lomo, torchao-optimizers, torchao-offload, schedule-free.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from peftplan.errors import BadInput, MachineLacks
from peftplan.optimizers import OPTIMIZERS, Weight
from peftplan.specs.formats import BF16, FP16, FP32

LEARNING_RATE = 1e-4
_DTYPES = {torch.float32: FP32, torch.bfloat16: BF16, torch.float16: FP16}

Rows = list[dict[str, Any]]


class Ask(NamedTuple):
    """What a run says of its optimizer: `named` are the trained tensors, or their masters, in the model's order."""

    name: str
    groups: Sequence[Sequence[torch.nn.Parameter]]
    named: Sequence[tuple[str, torch.nn.Parameter]]
    model: Any
    options: dict[str, Any]

    @property
    def rows(self) -> Rows:
        """Groups as torch's optimizers take them."""
        return [{"params": list(group)} for group in self.groups]

    def weights(self) -> Iterator[tuple[torch.nn.Parameter, Weight]]:
        """The tensors as the closed form describes them."""
        kinds = _kinds(self.model)
        for name, parameter in self.named:
            short = name.removeprefix("base_model.model.")
            kind = kinds.get(name, "other")
            yield parameter, Weight(tuple(parameter.shape), _DTYPES[parameter.dtype], short, kind)


def _kinds(model: Any) -> dict[str, str]:
    """Of the weight of each module: what kind of module holds it."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    heads = [name for name, module in model.named_modules() if module is head]
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            found[f"{name}.weight"] = "embedding"
        elif isinstance(module, torch.nn.Linear):
            of_head = any(f"{name}.".startswith(f"{known}.") for known in heads)
            found[f"{name}.weight"] = "head" if of_head else "linear"
    return found


def _fake() -> bool:
    """Whether tensors are fake: the profile runs the same optimizers on real ones."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def library(package: str, pip: str, name: str) -> Any:
    """A class of a library that may not be installed."""
    try:
        return getattr(import_module(package), name)
    except ImportError:
        raise MachineLacks(f"this optimizer is {package}'s, which is not installed; pip install {pip}") from None


class Several:
    """Optimizers that step one after the other, as one."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)

    def step(self) -> None:
        """Step each of them."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of each of them."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


class InBackward(Several):
    """An optimizer for each tensor, which steps when that tensor's gradient is there."""

    def __init__(self, made: dict[torch.nn.Parameter, Any]) -> None:
        super().__init__(list(made.values()))
        self.made = made
        for parameter in made:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, parameter: torch.nn.Parameter) -> None:
        self.made[parameter].step()
        self.made[parameter].zero_grad()

    def step(self) -> None:
        """All has been done."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """No gradients are left."""


def _muon(ask: Ask) -> Any:
    row = OPTIMIZERS["muon"]
    taken = {id(p) for p, weight in ask.weights() if row.takes(weight, None)}
    muon = [[p for p in group if id(p) in taken] for group in ask.groups]
    rest = [[p for p in group if id(p) not in taken] for group in ask.groups]
    parts: list[Any] = [torch.optim.Muon([{"params": group} for group in muon if group], lr=LEARNING_RATE)]
    if any(rest):
        rows = [{"params": group} for group in rest if group]
        parts.append(torch.optim.AdamW(rows, lr=LEARNING_RATE, foreach=True))
    return Several(parts)


def _low_rank(package: str, pip: str, name: str, fixed: dict[str, Any]) -> Callable[[Ask], Any]:
    """GaLore's and APOLLO's, whose groups transformers' own code cuts: the rest first, then what is projected."""

    def make(ask: Ask) -> Any:
        kind = library(package, pip, name)
        options = {**ask.options, "scale": 1.0, "proj_type": "std", **fixed}
        if _fake():
            options["update_proj_gap"] = 1
        projected = _projected(ask, options.pop("target_modules"))
        own = {"relative_step": False, "scale_parameter": False} if "Adafactor" in name else {}
        trained = [p for group in ask.groups for p in group]
        rest = [p for _, p in ask.named if id(p) not in projected]
        chosen = [p for p in trained if id(p) in projected]
        groups = [{"params": rest}, {"params": chosen, **options}]
        return kind([group for group in groups if group["params"]], lr=LEARNING_RATE, **own)

    return make


# By model, since each tensor may have an optimizer of its own: what transformers' code chose.
_PROJECTED: WeakKeyDictionary[Any, dict[str, set[int]]] = WeakKeyDictionary()


def _projected(ask: Ask, targets: str) -> set[int]:
    """Which parameters transformers projects the gradients of."""
    from transformers.trainer_optimizer import _setup_low_rank_optimizer

    known = _PROJECTED.setdefault(ask.model, {})
    if targets not in known:
        args = SimpleNamespace(
            parallel_mode=None,
            optim_target_modules=targets if targets == "all-linear" else targets.split(","),
            gradient_accumulation_steps=1,
        )
        said = logging.getLogger("transformers.trainer_optimizer")
        before = said.level
        said.setLevel(logging.ERROR)  # it names every module that is no linear
        try:
            _, made = _setup_low_rank_optimizer(args, ask.model, ask.name, {ask.name: None}, {}, {})
        except ValueError as error:
            raise BadInput(f"--optimizer {ask.name}: {error}") from None
        finally:
            said.setLevel(before)
        known[targets] = {id(p) for p in made["params"][1]["params"]}
    return known[targets]


def _adam_mini(ask: Ask) -> Any:
    kind = library("adam_mini", "adam-mini", "Adam_mini")
    return kind(ask.named, lr=LEARNING_RATE, verbose=False, **ask.options)


def _lomo(name: str) -> Callable[[Ask], Any]:
    def make(ask: Ask) -> Any:
        kind = library("lomo_optim", "lomo-optim", name)
        before = torch.Tensor.cuda
        torch.Tensor.cuda = lambda tensor: tensor.to(ask.groups[0][0].device)
        try:
            return kind(ask.model, lr=LEARNING_RATE)
        finally:
            torch.Tensor.cuda = before

    return make


def _torchao(name: str) -> Callable[[Ask], Any]:
    def make(ask: Ask) -> Any:
        kind = library("torchao.optim", "torchao", name)
        return kind(ask.rows, lr=LEARNING_RATE, **ask.options)

    return make


class _Stream:
    """A stream that nothing waits for."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self


class _TorchWithoutDevice:
    """torch, but for streams and pinned memory."""

    cuda = SimpleNamespace(Stream=_Stream, stream=lambda _: nullcontext(), current_stream=_Stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty_like(tensor: torch.Tensor, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        """As torch's, in memory that is not pinned."""
        return torch.empty_like(tensor, **options)


def _offloaded(ask: Ask) -> Any:
    kind = library("torchao.optim", "torchao", "CPUOffloadOptimizer")
    module = import_module("torchao.optim.cpu_offload")
    if _fake():
        vars(module).update(torch=_TorchWithoutDevice(), get_available_devices=lambda: ["cpu", "cuda"])
    return kind(ask.rows, lr=LEARNING_RATE, **ask.options)


def in_place_of_devices() -> list[tuple[Any, str, Any]]:
    """What would ask a device, in the libraries that are loaded: (module, name, what answers instead)."""
    found: list[tuple[Any, str, Any]] = []
    projector = sys.modules.get("apollo_torch.random_projector")
    if projector is not None:
        found += [(projector, "stable_randn", _drawn), (projector, "next_seed", lambda seed: seed)]
    low_bit = sys.modules.get("torchao.optim.adam")
    if low_bit is not None:
        found.append((low_bit, "single_param_adam", _compiled_update))
        found.append((torch, "compile", lambda function, **_: function))
    return found


def _compiled_update(weight: torch.Tensor, grad: torch.Tensor, step: Any, state: Any, *_: Any) -> None:
    """torchao's update as Inductor compiles it for CUDA: the buffers between its kernels, by the kind of state."""
    if not hasattr(state, "codes"):
        return
    held = [torch.empty_like(state.scale) for _ in range(2)]
    searches = hasattr(state, "qmap")
    held += [torch.empty(weight.shape, device=weight.device) for _ in range(2 * searches)]
    if searches and state.codes.numel() < weight.numel():  # two codes a byte
        held += [torch.empty(weight.shape, dtype=torch.int64, device=weight.device) for _ in range(2)]
    held.clear()


def _drawn(shape: Any, seed: int, device: Any = None, dtype: Any = None) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


def _schedule_free(name: str) -> Callable[[Ask], Any]:
    def make(ask: Ask) -> Any:
        made = library("schedulefree", "schedulefree", name)(ask.rows, lr=LEARNING_RATE, foreach=True)
        made.train()
        for group in made.param_groups:
            group["k"] = 10  # RAdam keeps to SGD in its first steps
        return made

    return make


_GALORE, _APOLLO = ("galore_torch", "galore-torch"), ("apollo_torch", "apollo-torch")
_BY_CHANNEL = {"proj": "random", "scale_type": "channel"}

MAKERS: dict[str, Callable[[Ask], Any]] = {
    "muon": _muon,
    "galore-adamw": _low_rank(*_GALORE, "GaLoreAdamW", {}),
    "galore-adamw-8bit": _low_rank(*_GALORE, "GaLoreAdamW8bit", {}),
    "galore-adafactor": _low_rank(*_GALORE, "GaLoreAdafactor", {}),
    "apollo-adamw": _low_rank(*_APOLLO, "APOLLOAdamW", _BY_CHANNEL),
    "apollo-mini": _low_rank(*_APOLLO, "APOLLOAdamW", {"proj": "random", "scale_type": "tensor"}),
    "adam-mini": _adam_mini,
    "lomo": _lomo("Lomo"),
    "adalomo": _lomo("AdaLomo"),
    "adamw-torchao-8bit": _torchao("AdamW8bit"),
    "adamw-torchao-4bit": _torchao("AdamW4bit"),
    "adamw-torchao-fp8": _torchao("AdamWFp8"),
    "adamw-offload": _offloaded,
    "schedule-free-adamw": _schedule_free("AdamWScheduleFree"),
    "schedule-free-radam": _schedule_free("RAdamScheduleFree"),
    "schedule-free-sgd": _schedule_free("SGDScheduleFree"),
}
