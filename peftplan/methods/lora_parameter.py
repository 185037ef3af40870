"""LoRA on a bare parameter: peft 0.21's ParamWrapper, which routers and fused experts get.

The adapted weight W + scale * B @ A is computed whole on every forward pass: a tensor of the parameter's
size, which the product that uses it saves. Registering it (torch.nn.utils.parametrize) computes it once more
and drops it. Source: peft 0.21 tuners/lora/layer.py, torch 2.13 nn/utils/parametrize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftplan.methods.merging import add_to_weight, low_rank
from peftplan.specs.formats import DType
from peftplan.specs.modules import BareWeights, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor

Fold = Callable[[Ops], Tensor]


class LoraParameter(Module):
    """Wraps the module that owns a parameter; its second parameter gets a wrapper around this one."""

    owner: BareWeights

    def __init__(self, base: Module, name: str, rank: int, dtype: DType) -> None:
        super().__init__()
        self.base_layer: Module = base
        owner = base
        while isinstance(owner, LoraParameter):
            owner = owner.base_layer
        assert isinstance(owner, BareWeights)
        object.__setattr__(self, "owner", owner)  # no child: it stands below base_layer
        self.name, self.rank = name, rank
        shape = owner.parameters[name].shape
        self.num_experts = shape[0] if len(shape) == 3 else 1
        self.out_features, self.in_features = shape[-2:]
        self.lora_A = Linear(self.in_features, rank * self.num_experts, False, dtype)
        self.lora_B = Linear(rank * self.num_experts, self.out_features, False, dtype)
        self.lora_A.weight.role = self.lora_B.weight.role = "adapter"

    def forward(self, t: Ops, x: Tensor, *args: Any) -> Any:
        owner = self.owner
        weight = owner.parameters[self.name]
        fold = self._experts_fold(t, weight) if self.num_experts > 1 else self._matrix_fold(t, weight)
        with t.no_grad():  # its graph goes with it
            checked = fold(t)
            del checked
        computed: list[Tensor] = []

        def once(t: Ops) -> Tensor:
            if not computed:
                computed.append(fold(t))
            return computed[0]

        owner.folds[self.name] = once
        try:
            return t.call("base_layer", self.base_layer, x, *args)
        finally:
            del owner.folds[self.name]

    def merge(self, t: Ops) -> None:
        """Add to the parameter, and then what the layer around which this one stands adds to its own."""
        weight = self.owner.parameters[self.name]
        add_to_weight(t, weight, self._delta_weight, named=True)
        if isinstance(self.base_layer, LoraParameter):
            self.base_layer.merge(t)

    def _delta_weight(self, t: Ops) -> Tensor:
        weight, a, b = self.owner.parameters[self.name], self.lora_A.weight, self.lora_B.weight
        if self.num_experts == 1:
            return t.to(low_rank(t, a, b, weight.shape), weight.dtype)  # type: ignore[no-any-return]
        left = t.view(b, (self.num_experts, self.out_features, self.rank))
        right = t.view(a, (self.num_experts, self.rank, self.in_features))
        product = t.mul_scalar(t.matmul(left, right, (self.num_experts, self.out_features, self.in_features)))
        return t.to(product, weight.dtype)  # type: ignore[no-any-return]

    def _experts_fold(self, t: Ops, weight: Parameter) -> Fold:
        """One batched product over the experts, added to the weight as it is computed."""
        experts, rank = self.num_experts, self.rank
        lhs = t.permuted(self.lora_B.weight, (experts, self.out_features, rank))
        lhs = t.to(lhs, weight.dtype)
        rhs = t.to(t.view(self.lora_A.weight, (experts, rank, self.in_features)), weight.dtype)
        return lambda t: t.baddbmm(weight, lhs, rhs)

    def _matrix_fold(self, t: Ops, weight: Parameter) -> Fold:
        """The product on its own, scaled and brought to the weight's type, then a sum."""
        shape = (self.out_features, self.in_features)
        delta = t.mul_scalar(t.matmul(self.lora_B.weight, self.lora_A.weight, shape))
        delta = t.to(delta, weight.dtype)
        return lambda t: t.add(weight, delta)
