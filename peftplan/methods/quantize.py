"""Packed linears: what a quantised load makes of nn.Linear; bitsandbytes' here, others' in `quantizers/`."""

from __future__ import annotations

from peftplan.specs.formats import BF16, FP32, DType, PackedFormat
from peftplan.specs.modules import Linear, Ops
from peftplan.specs.tensors import Parameter, Tensor


class PackedLinear(Linear):
    """A frozen linear whose weight a quantiser keeps; the bias stays dense.

    What peft's LoRA layer over it does differently from the one over nn.Linear, as peft 0.21 writes them: `clones`
    its result first, `casts_always` input and result (else only where autocast does not), `scales_last`: the
    product is scaled once it is cast back, `adds_in_place`. `taken_for_dense`: it is an nn.Linear to peft, whose
    layers over those it gets.
    """

    taken_for_dense = False

    clones = False
    casts_always = False
    scales_last = False
    adds_in_place = False

    def __init__(self, base: Linear, quant: PackedFormat, compute_dtype: DType = BF16) -> None:
        super().__init__(base.in_features, base.out_features, False, base.weight.dtype)
        self.compute_dtype = compute_dtype
        self.weight = Parameter(
            (base.out_features, base.in_features), base.weight.dtype, trainable=False, quant=quant
        )
        if base.bias is not None:
            self.bias = base.bias

    def unpacked(self, t: Ops) -> Tensor:
        """The dense weight, outside the graph."""
        raise NotImplementedError(type(self).__name__)


class Linear4bit(PackedLinear):
    """bnb.nn.Linear4bit: packed weight, frozen; the bias stays dense."""

    four_bit = True
    clones = True

    def __init__(self, base: Linear, quant: PackedFormat, compute_dtype: DType = BF16) -> None:
        super().__init__(base, quant, compute_dtype)
        if base.bias is not None and self.four_bit:
            # the first forward pass casts it in place to the compute type
            base.bias.loaded_dtype = base.bias.dtype
            base.bias.set_dtype(compute_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.linear_4bit(x, self.weight, self.bias, self.compute_dtype)  # type: ignore[no-any-return]

    def unpacked(self, t: Ops) -> Tensor:
        return t.dequantize_4bit(self.weight)  # type: ignore[no-any-return]


class Linear8bit(Linear4bit):
    """bnb.nn.Linear8bitLt: one signed byte a weight and a scale for each output row, frozen."""

    four_bit = False
    clones = False

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        bias = self.bias
        if bias is not None and bias.dtype is not x.dtype:  # the first forward pass casts it in place
            bias.loaded_dtype = bias.loaded_dtype or bias.dtype
            bias.set_dtype(x.dtype)
        return t.linear_8bit(x, self.weight, bias)  # type: ignore[no-any-return]

    def unpacked(self, t: Ops) -> Tensor:
        shape, numel = self.weight.shape, self.weight.numel
        return t.new(shape, numel, FP32, "int8_vectorwise_dequant", numel)  # type: ignore[no-any-return]
