"""LoRA and QLoRA: a low-rank product beside a linear. Mirrors peft 0.21 tuners/lora/layer.py and bnb.py.

Source: peft-lora; the scaling, alpha/r or with rslora alpha/sqrt(r), changes values and no shape.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from peftplan.errors import BadInput
from peftplan.methods.base import cast_as_trl, prepare_for_kbit, quantize_base, set_base_dtype
from peftplan.methods.expert_targets import convert, wrap_parameters
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.targets import matched
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class LoraLinear(Module):
    """A linear with a rank-`rank` adapter: base(x) + B(A(dropout(x))) * scaling."""

    def __init__(self, base: Linear, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__()
        self.dropout = dropout
        self.base_layer = base
        self.lora_A = adapter_linear(base.in_features, rank, dtype)
        self.lora_B = adapter_linear(rank, base.out_features, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        dtype = result.dtype
        x = t.to(x, self.lora_A.weight.dtype)
        result = t.add(result, self.delta(t, x))
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def delta(self, t: Ops, x: Tensor) -> Tensor:
        """What the adapter adds, scaled."""
        return t.mul_scalar(  # type: ignore[no-any-return]
            t.call("lora_B", self.lora_B, t.call("lora_A", self.lora_A, t.dropout(x, self.dropout)))
        )


class LoraLinear4bit(LoraLinear):
    """Beside a packed linear: the 4-bit base's output is cloned, and under autocast no cast is made."""

    def __init__(self, base: Linear4bit, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__(base, rank, dropout, dtype)
        self.clones = base.four_bit

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        if self.clones:
            result = t.clone(result)
        convert = t.autocast is None
        dtype = result.dtype
        if convert:
            x = t.to(x, self.lora_A.weight.dtype)
        output = self.delta(t, x)
        if convert:
            output = t.to(output, dtype)
        result = t.add(result, output)
        return result  # type: ignore[no-any-return]


class LoraEmbedding(Module):
    """An embedding with an adapter: table(ids) + (A[ids] @ B) * scaling."""

    def __init__(self, base: Embedding, rank: int, dtype: DType) -> None:
        super().__init__()
        rows, width = base.weight.shape
        self.base_layer = base
        self.lora_embedding_A = Parameter((rank, rows), dtype, role="adapter")
        self.lora_embedding_B = Parameter((width, rank), dtype, role="adapter")

    @property
    def weight(self) -> Parameter:
        """The frozen table."""
        return self.base_layer.weight

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        asked, t.leaf_ids = t.leaf_ids, None  # the embeddings of this module ask for a gradient, not the table's
        result = t.call("base_layer", self.base_layer, x)
        t.leaf_ids = asked
        dtype = result.dtype
        a = self.lora_embedding_A
        after_a = t.embedding(x, t.view(a, (a.shape[1], a.shape[0])))
        output = t.mul_scalar(t.linear(after_a, self.lora_embedding_B))
        return t.to(t.add(result, output), dtype)  # type: ignore[no-any-return]


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


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze (and pack) the base, then put adapters beside the targeted modules."""
    set_base_dtype(model, method.base_dtype, trainable=False)
    if method.quant is not None:
        compute = method.base_dtype if method.base_dtype is not FP32 else BF16
        quantize_base(model, method.quant, compute)
    if method.kbit_prepare:
        prepare_for_kbit(model)
    if method.trl_casts:
        cast_as_trl(model)
    _wrap_targets(model, method)
    _save_whole_modules(model, method.modules_to_save)
    _train_biases(model, method.bias)
    head = model.stem.child(model.head_path)
    model.head = head


def _wrap_targets(model: ModelSpec, method: MethodSpec) -> None:
    rank, dtype = method.rank, method.adapter_dtype
    widest = 0
    targets, parameters = convert(model, method.targets)
    found = matched(model, targets, not parameters, method.targets)
    wrap_parameters(model, parameters, method)
    for owner, name, module in found:
        if any(part in method.modules_to_save for part in name.split(".")):
            continue  # a module that is saved whole gets no adapter
        if isinstance(module, Embedding):
            owner.replace(name, LoraEmbedding(module, rank, dtype))
            continue
        assert isinstance(module, Linear)
        if isinstance(module, Linear4bit):
            owner.replace(name, LoraLinear4bit(module, rank, method.dropout, dtype))
        else:
            owner.replace(name, LoraLinear(module, rank, method.dropout, dtype))
        widest = max(widest, min(module.in_features, module.out_features))
    if widest and rank > widest:
        model.notes.append(
            f"rank {rank} is above the smaller side of every targeted matrix (at most {widest}): "
            "peft allows it, but the product cannot have more than that rank"
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
