"""PVeRA: VeRA whose inner activations are drawn from a normal distribution of learned mean and deviation.

Mirrors peft 0.21 tuners/pvera.

The first matrix has twice the rank's rows: half of them make means, half log-variances. Both are frozen, random and
shared by all targets, as in VeRA. Source: pvera
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.methods.merging import add_to_weight, pack_with, refuse_foreign
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit, Linear8bit
from peftplan.methods.vera import share_matrices
from peftplan.methods.wrapping import adapter
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class PveraOptions(Options):
    """What is kept of the shared matrices, and when samples are drawn."""

    projection_prng_key: Annotated[int | None, Field(ge=0, description="seed of the shared matrices; no bytes")] = (
        None
    )
    save_projection: Annotated[bool, Field(description="the shared matrices are saved with the adapter")] = True
    sample_at_inference: Annotated[bool, Field(description="evaluation draws samples too")] = False


class Shared(Module):
    """The matrices that all layers share."""

    def __init__(self, rank: int, inputs: int, outputs: int, dtype: DType) -> None:
        super().__init__()
        self.pvera_A = Parameter((2 * rank, inputs), dtype, role="buffer")
        self.pvera_B = Parameter((outputs, rank), dtype, role="buffer")


class PveraLinear(Module):
    """base(x) + b * (B @ sample(d * (A @ x)))."""

    shared: Shared

    def __init__(self, base: Linear, shared: Shared, method: MethodSpec) -> None:
        super().__init__()
        self.dropout, self.rank = method.dropout, method.rank
        self.samples = method.options.sample_at_inference
        self.base_layer = base
        object.__setattr__(self, "shared", shared)  # no child: the model's stem owns it
        self.pvera_lambda_b = adapter((base.out_features,), method.adapter_dtype)
        self.pvera_lambda_d = adapter((2 * method.rank,), method.adapter_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, dtype = self.base_layer, x.dtype
        result = t.call("base_layer", base, x)
        packed = isinstance(base, (Linear4bit, Linear8bit))
        if isinstance(base, Linear4bit) and base.four_bit:
            result = t.clone(result)
        converts = packed and t.autocast is None
        if converts or not packed:
            x = t.to(x, self.pvera_lambda_d.dtype)
        dropped = t.dropout(t.to(x, self.pvera_lambda_d.dtype), self.dropout)
        held = (dropped,) if packed else ()
        inner = t.linear(dropped, t.part(self.shared.pvera_A, (2 * self.rank, base.in_features)))
        del dropped
        both = t.mul(self.pvera_lambda_d, inner)
        del inner
        half = (*x.shape[:-1], self.rank)
        mean, log_variance = t.split(both, (half, half))
        del both
        added = self._outer(t, self._sample(t, mean, log_variance))
        if packed:
            added = t.to(added, result.dtype) if converts else added
            held, dtype = (*held, added), x.dtype  # which was cast
        result = t.add(result, added)
        del added, held
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def _outer(self, t: Ops, drawn: Tensor) -> Tensor:
        made = t.linear(drawn, t.part(self.shared.pvera_B, (self.base_layer.out_features, self.rank)))
        del drawn
        return t.mul(self.pvera_lambda_b, made)  # type: ignore[no-any-return]

    def _sample(self, t: Ops, mean: Tensor, log_variance: Tensor) -> Tensor:
        if not (t.training or self.samples):
            return mean
        deviation = t.exp(t.mul_scalar(log_variance))
        noise = t.like(deviation, "randn_like", 0)
        return t.add(mean, t.mul(noise, deviation))  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add what the means alone come to: to the weight, or to what it unpacks to."""
        base = self.base_layer
        if not isinstance(base, Linear4bit):
            add_to_weight(t, base.weight, self._delta_weight)
            return
        refuse_foreign(base.weight)
        delta = self._delta_weight(t)
        if base.four_bit:
            summed = t.add(t.dense_weight(base), delta)
        else:
            dense = t.dense_weight(base)
            summed = t.add(t.to(dense, delta.dtype), delta)
        pack_with(t, base.weight, summed)

    def _delta_weight(self, t: Ops) -> Tensor:
        base, rank, shared = self.base_layer, self.rank, self.shared
        dtype, narrow = shared.pvera_B.dtype, t.narrow_on_host(shared.pvera_B)
        a, b = t.widened(shared.pvera_A), t.widened(shared.pvera_B)
        means = t.widened(self.pvera_lambda_d) if narrow else self.pvera_lambda_d
        second = t.widened(self.pvera_lambda_b) if narrow else self.pvera_lambda_b
        left = t.mul(t.view(second, (second.numel, 1)), t.part(b, (base.out_features, rank)))
        first = t.part(t.view(means, (2 * rank, 1)), (rank, 1))
        right = t.mul(first, t.part(a, (rank, base.in_features)))
        out = t.matmul(left, right, base.weight.shape)
        del left, right
        return t.to(out, dtype) if narrow else out  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, make the shared matrices, and put vectors on the targets."""
    share_matrices(model, method, "pvera", Shared, lambda base, shared: PveraLinear(base, shared, method))


METHODS = (
    Method(
        "pvera",
        "VeRA whose inner activations are drawn around learned means",
        "pvera",
        apply,
        default_rank=256,
        peft={"peft_type": "PVERA"},
        options=PveraOptions,
        takes=("rank", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
        merging="into the weights: the mean, without samples",
    ),
)
