"""What peft does around its layers, whatever the method: freeze, pack, put layers on targets, save modules whole.

Source: peft-kbit, peft-targets; peft 0.21 utils/other.py (ModulesToSaveWrapper).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from peftplan.errors import BadInput
from peftplan.methods.base import cast_as_trl, mark_loaded_from, prepare_for_kbit, quantize_base, set_base_dtype
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.targets import matched
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Conv1D, Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor

# Makes the layer that stands in a module's place.
Wrap = Callable[[Linear], Module]
WrapEmbedding = Callable[[Embedding], Module]
Found = list[tuple[Module, str, Module]]


class TrainedCopy(Module):
    """peft's modules_to_save: the module stays, and a copy of it trains in its place."""

    def __init__(self, original: Module) -> None:
        super().__init__()
        self.original_module = original
        self.modules_to_save = deepcopy(original)
        for _, parameter in self.modules_to_save.named_parameters():
            if parameter.role != "buffer":
                parameter.role = "adapter"
                parameter.set_trainable(True)

    def forward(self, t: Ops, x: Tensor, *args: Any) -> Any:
        return t.call("modules_to_save", self.modules_to_save, x, *args)


def adapter_linear(in_features: int, out_features: int, dtype: DType) -> Linear:
    """A trained linear without bias that counts as part of the adapter."""
    linear = Linear(in_features, out_features, False, dtype)
    linear.weight.role = "adapter"
    return linear


def adapter(shape: tuple[int, ...], dtype: DType, trainable: bool = True) -> Parameter:
    """A parameter that counts as part of the adapter."""
    return Parameter(shape, dtype, trainable=trainable, role="adapter")


def buffer_dtype(method: MethodSpec, linears: Sequence[Linear], made_in: DType = FP32) -> DType:
    """The type of an adapter's buffers: fp32, or the base's where peft is told to leave adapters in that.

    Beside 4-bit linears that is the type they compute in; beside others that are packed, the one it is `made_in`.
    Source: peft 0.21 tuners/tuners_utils.py, cast_adapter_dtype and _move_adapter_to_device_of_base_layer.
    """
    if method.adapter_dtype is FP32 or not linears:
        return FP32
    if isinstance(linears[0], Linear4bit) and linears[0].four_bit:
        return linears[0].compute_dtype
    return linears[0].weight.dtype if linears[0].weight.quant is None else made_in


def adapter_bytes(model: ModelSpec) -> int:
    """Bytes of all that a method added, trained or not."""
    return sum(p.num_bytes() * count for _, p, count in model.parameters() if p.role == "adapter")


def factoring_note(model: ModelSpec, adapted: Sequence[Linear]) -> None:
    """Say what factoring every target once holds: a copy in fp32 and its singular vectors and values."""
    shapes = [(linear.in_features, linear.out_features) for linear in adapted]
    most = max(
        (4 * (rows * columns + min(rows, columns) * (rows + columns + 1)) for rows, columns in shapes), default=0
    )
    model.notes.append(
        f"initialisation factors every target once (SVD in fp32), at most {most:,} bytes at a time beside the model"
    )


def freeze(model: ModelSpec, method: MethodSpec) -> None:
    """Load the base frozen, packed and prepared as asked."""
    set_base_dtype(model, method.base_dtype, trainable=False)
    if method.quant is not None:
        compute = method.base_dtype if method.base_dtype is not FP32 else BF16
        quantize_base(model, method.quant, compute, method.quant_skips)
    elif method.loaded_from is not None:
        mark_loaded_from(model, method.loaded_from)
    if method.kbit_prepare:
        prepare_for_kbit(model, method.quant)
    if method.trl_casts:
        cast_as_trl(model)


def finish(model: ModelSpec, method: MethodSpec) -> None:
    """After the layers are on: modules saved whole, biases that train, the head as it stands now."""
    _save_whole_modules(model, method.modules_to_save)
    _train_biases(model, method.bias)
    model.head = model.stem.child(model.head_path)


def adapt(
    model: ModelSpec, method: MethodSpec, wrap: Wrap, wrap_embedding: WrapEmbedding | None = None
) -> list[Linear]:
    """Freeze the base, put a layer on every target and finish; the linears that were adapted."""
    freeze(model, method)
    found = matched(model, method.targets)
    adapted = put_on(model, method, found, wrap, wrap_embedding)
    finish(model, method)
    return adapted


def put_on(
    model: ModelSpec,
    method: MethodSpec,
    found: Found,
    wrap: Wrap,
    wrap_embedding: WrapEmbedding | None = None,
) -> list[Linear]:
    """Wrap what was found, apart from modules that are saved whole."""
    adapted = []
    for owner, name, module in found:
        if any(part in method.modules_to_save for part in name.split(".")):
            continue
        if isinstance(module, Embedding):
            if wrap_embedding is None:
                raise BadInput(
                    f"--targets names {name}, an embedding, and this method adapts linears only; leave it out, "
                    "or take --method lora"
                )
            owner.replace(name, wrap_embedding(module))
            continue
        assert isinstance(module, Linear)
        owner.replace(name, wrap(module))
        adapted.append(module)
    return adapted


def refuse_packed(method: MethodSpec, name: str, kinds: tuple[str, ...] = ("nf4", "fp4", "int8")) -> None:
    """A one-line refusal where peft has no layers of this method over such a base."""
    if method.quant is not None and method.quant.kind in kinds:
        raise BadInput(
            f"--method {name} with --quant {method.quant.kind}: peft 0.21 has no layers of it over such linears; "
            "leave --quant out, or take --method qlora"
        )


def refuse_conv1d(adapted: list[Linear], name: str) -> None:
    """A one-line refusal where peft's layers of this method take nn.Linear alone."""
    for linear in adapted:
        if isinstance(linear, Conv1D):
            raise BadInput(
                f"--method {name}: peft 0.21 has no layers of it over GPT-2's Conv1D; take --method lora"
            )


def _save_whole_modules(model: ModelSpec, names: tuple[str, ...]) -> None:
    if not names:
        return
    found = 0
    for owner, _, _ in model.groups():
        for path, module in list(owner.walk()):
            if not path or not path.endswith(names):
                continue
            # copied leaf by leaf: the forward program reaches into a container, and finds the copies there
            for below, leaf in list(module.walk(path)):
                if not leaf.children:
                    owner.replace(below, TrainedCopy(leaf))
                    found += 1
    if not found:
        raise BadInput(
            f"--modules-to-save {','.join(names)} names no module of {model.family}; "
            f"for example {model.head_path} or embed_tokens"
        )


def _train_biases(model: ModelSpec, bias: str) -> None:
    if bias == "none":
        return
    for owner, _, _ in model.groups():
        for path, module in owner.walk():
            for name, parameter in module.parameters.items():
                of_adapted = name == "bias" and path.endswith("base_layer")
                if parameter.role != "buffer" and (of_adapted or (bias == "all" and "bias" in name)):
                    parameter.set_trainable(True)
