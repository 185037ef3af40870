"""RoAd: pairs of a target's outputs rotated and scaled by trained numbers. Mirrors peft 0.21 tuners/road.

Each output meets its own product of scale and cosine, and its partner that of scale and sine. Beside packed linears
peft casts no result back: what comes out is as wide as the trained numbers.
Source: road
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

# Trained angles (and as many scales) for two outputs.
_ANGLES = {"road_1": 1, "road_2": 2, "road_4": 4}


class RoadOptions(Options):
    """How many numbers a pair of outputs has, and which outputs are pairs."""

    variant: Annotated[
        Literal["road_1", "road_2", "road_4"],
        Field(description="road_1, road_2 or road_4: one, two or four angles and scales for each pair of outputs"),
    ] = "road_1"
    group_size: Annotated[
        int, Field(ge=2, le=10**6, description="outputs in a group, which are paired half by half; even")
    ] = 64

    @field_validator("group_size")
    @classmethod
    def _even(cls, size: int) -> int:
        if size % 2:
            raise ValueError("should be even")
        return size


class RoadLinear(Module):
    """base(x) * scale * cos(angle) + partners of base(x) * scale * sin(angle)."""

    applied_often = True

    def __init__(self, base: Linear, options: RoadOptions, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.variant, self.half = options.variant, options.group_size // 2
        count = base.out_features * _ANGLES[options.variant] // 2
        self.road_theta = adapter((count,), dtype)
        self.road_alpha = adapter((count,), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        dtype = result.dtype
        packed = isinstance(self.base_layer, Linear4bit)
        if not packed or t.autocast is None:
            result = t.to(result, self.road_theta.dtype)
        result = self._rotated(t, result)
        return result if packed else t.to(result, dtype)

    def _rotated(self, t: Ops, x: Tensor) -> Tensor:
        first, second = self._columns(t)
        pairs = x.numel // (2 * self.half)
        front, back = t.slice(x, (pairs, self.half)), t.slice(x, (pairs, self.half))
        turned = t.cat((t.neg(back), front), x.shape)
        stays, moves = t.mul(x, first), t.mul(turned, second)
        return t.add(stays, moves)  # type: ignore[no-any-return]

    def _columns(self, t: Ops) -> tuple[Tensor, Tensor]:
        """What each output is multiplied with, and what its partner is."""
        theta, alpha, outputs = self.road_theta, self.road_alpha, (self.base_layer.out_features,)
        if self.variant == "road_1":
            theta, alpha = t.expand_copy(theta, outputs), t.expand_copy(alpha, outputs)
        if self.variant != "road_4":
            cos, sin = t.cos(theta), t.sin(theta)
            return t.mul(alpha, cos), t.mul(alpha, sin)
        cos, sin = t.cos(t.slice(theta, outputs)), t.sin(t.slice(theta, outputs))
        scales = [t.contiguous(t.slice(alpha, outputs)) for _ in range(2)]
        return t.mul(scales[0], cos), t.mul(scales[1], sin)


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and rotate the outputs of every target."""
    options = method.options
    adapted = adapt(model, method, lambda base: RoadLinear(base, options, method.adapter_dtype))
    refuse_conv1d(adapted, "road")
    for linear in adapted:
        if linear.out_features % options.group_size:
            raise BadInput(
                f"--method-option group_size={options.group_size} does not divide the {linear.out_features} "
                "outputs of a target; give an even divisor of all targets' outputs"
            )


METHODS = (
    Method(
        "road",
        "pairs of outputs rotated and scaled by trained numbers",
        "road",
        apply,
        peft={"peft_type": "ROAD"},
        options=RoadOptions,
        takes=("targets", "modules_to_save", "adapter_dtype"),
    ),
)
