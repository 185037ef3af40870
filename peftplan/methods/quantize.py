"""bitsandbytes linears: what a 4-bit or 8-bit load makes of nn.Linear."""

from __future__ import annotations

from peftplan.specs.formats import BF16, DType, QuantFormat
from peftplan.specs.modules import Linear, Ops
from peftplan.specs.tensors import Parameter, Tensor


class Linear4bit(Linear):
    """bnb.nn.Linear4bit: packed weight, frozen; the bias stays dense."""

    four_bit = True

    def __init__(self, base: Linear, quant: QuantFormat, compute_dtype: DType = BF16) -> None:
        super().__init__(base.in_features, base.out_features, False, base.weight.dtype)
        self.compute_dtype = compute_dtype
        self.weight = Parameter(
            (base.out_features, base.in_features), base.weight.dtype, trainable=False, quant=quant
        )
        if base.bias is not None:
            self.bias = base.bias
            if self.four_bit:
                # the first forward pass casts it in place to the compute type
                base.bias.loaded_dtype = base.bias.dtype
                base.bias.set_dtype(compute_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.linear_4bit(x, self.weight, self.bias, self.compute_dtype)  # type: ignore[no-any-return]


class Linear8bit(Linear4bit):
    """bnb.nn.Linear8bitLt: one signed byte a weight and a scale for each output row, frozen."""

    four_bit = False

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        bias = self.bias
        if bias is not None and bias.dtype is not x.dtype:  # the first forward pass casts it in place
            bias.loaded_dtype = bias.loaded_dtype or bias.dtype
            bias.set_dtype(x.dtype)
        return t.linear_8bit(x, self.weight, bias)  # type: ignore[no-any-return]
