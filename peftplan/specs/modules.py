"""Modules: named weights and the program that runs them, as in the libraries they mirror.

An architecture composes modules; a method replaces some of them (a Linear by one with an adapter).
`forward` receives the reader `t` - the memory tape, or any other reader of the same vocabulary - and
calls its operations in the order in which the real code does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from peftplan.specs.cache import Cached
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.tensors import Parameter, Tensor

# The reader of a forward program: memory.player.Player is one. Programs call operations by name and the
# readers share no base class, so that a new reading (work, time) need not know the others.
Ops = Any


class Module:
    """Named parameters and children, walked in the order of definition as torch's modules are."""

    applied_often = False  # whether its forward applies some of its children more than once
    kept_by_model: tuple[str, ...] = ()  # adapters that end with the model, not with their layer, once merged
    drops_weights = False  # as attention: whether its weights end with it, and are not handed to the block
    caches: Cached | None = None  # as self-attention of a decoder: what it keeps of every token
    # As a block: which parts of what it takes the model passes by position, as checkpoints tell apart, and
    # which of those it returns beside the hidden states.
    positional: tuple[int, ...] = ()
    hands_on: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.children: dict[str, Module] = {}
        self.parameters: dict[str, Parameter] = {}

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, Parameter):
            self.parameters[name] = value
        elif isinstance(value, Module):
            self.children[name] = value
        object.__setattr__(self, name, value)

    def add(self, name: str, module: Module) -> None:
        """Register a child under a name."""
        setattr(self, name, module)

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Every module below and including this one, with its dotted name."""
        yield prefix, self
        for name, child in self.children.items():
            yield from child.walk(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Every parameter and buffer with its dotted name; a shared one appears under each name."""
        for path, module in self.walk(prefix):
            for name, parameter in module.parameters.items():
                yield (f"{path}.{name}" if path else name), parameter

    def child(self, path: str) -> Module:
        """The module at a dotted path below this one."""
        module = self
        for name in path.split("."):
            module = module.children[name]
        return module

    def replace(self, path: str, new: Module) -> None:
        """Put another module in the place of the one at `path`."""
        parent, _, name = path.rpartition(".")
        setattr(self.child(parent) if parent else self, name, new)

    def remove(self, path: str) -> None:
        """Take away the module at `path`."""
        parent, _, name = path.rpartition(".")
        owner = self.child(parent) if parent else self
        del owner.children[name]
        object.__delattr__(owner, name)

    def takes(self, given: Any) -> Any:
        """As a block: what it is handed of what the model gives its blocks; a checkpoint keeps only this."""
        return given

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        """Run the module on one input."""
        raise NotImplementedError(type(self).__name__)


class BareWeights(Module):
    """A module that multiplies by parameters of its own, not by those of linears: a router, fused experts.

    `folds` holds, while the module runs under a wrapper that adapts a parameter, what computes the
    adapted weight when the program asks for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folds: dict[str, Callable[[Ops], Tensor]] = {}

    def weight_of(self, t: Ops, name: str) -> Tensor:
        """The parameter called `name`, or what it becomes with an adapter."""
        fold = self.folds.get(name)
        return self.parameters[name] if fold is None else fold(t)


class Linear(Module):
    """nn.Linear: weight [out_features, in_features] and perhaps a bias.

    `convertible` is False for what bitsandbytes and transformers do not replace: subclasses, in newer releases,
    which `derived` tells from linears that must stay dense.
    """

    convertible = True
    derived = False

    def __init__(self, in_features: int, out_features: int, bias: bool = False, dtype: DType = BF16) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter((out_features, in_features), dtype)
        self.bias: Parameter | None = Parameter((out_features,), dtype) if bias else None

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.linear(x, self.weight, self.bias)  # type: ignore[no-any-return]


class Conv1D(Linear):
    """GPT-2's linear with a transposed weight [in_features, out_features]; peft sets fan_in_fan_out."""

    def __init__(self, in_features: int, out_features: int, dtype: DType = BF16) -> None:
        super().__init__(in_features, out_features, True, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.linear(x, self.weight, self.bias)  # type: ignore[no-any-return]


class Embedding(Module):
    """nn.Embedding: a table [rows, width]."""

    def __init__(self, rows: int, width: int, dtype: DType = BF16) -> None:
        super().__init__()
        self.weight = Parameter((rows, width), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.embedding(x, self.weight)  # type: ignore[no-any-return]


class RMSNorm(Module):
    """Llama's RMSNorm, written out in Python: statistics in fp32, scaled in the input's type."""

    def __init__(self, width: int, dtype: DType = BF16) -> None:
        super().__init__()
        self.weight = Parameter((width,), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = t.to(x, FP32)
        variance = t.mean_last(t.pow(x))
        x = t.mul(x, t.rsqrt(t.add_scalar(variance)))
        return t.mul(self.weight, t.to(x, dtype))  # type: ignore[no-any-return]


class LayerNorm(Module):
    """nn.LayerNorm with weight and, as a rule, bias; without either where `affine` is off."""

    def __init__(self, width: int, bias: bool = True, dtype: DType = BF16, affine: bool = True) -> None:
        super().__init__()
        self.weight: Parameter | None = Parameter((width,), dtype) if affine else None
        self.bias: Parameter | None = Parameter((width,), dtype) if bias and affine else None

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.layer_norm(x, self.weight, self.bias)  # type: ignore[no-any-return]
