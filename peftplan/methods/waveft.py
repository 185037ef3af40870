"""WaveFT: few trained numbers among the wavelet coefficients of what is added to the weight.

Mirrors peft 0.21 tuners/waveft (waverec2d.py: one level of the inverse transform, as a transposed convolution of
the four quarters of a matrix of coefficients).

That matrix, its quarters stacked, and the delta weight are each as large as the weight, and made on every pass.
Filters longer than Haar's pad the coefficients and crop the result. Source: waveft
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from peftplan.errors import BadInput
from peftplan.methods.merging import add_to_weight
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter
from peftplan.specs.formats import BOOL, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

# Families of wavelets: the length of a filter for each step of its number, and the numbers that peft knows.
_FAMILIES = {"db": (2, range(1, 11)), "sym": (2, range(2, 11)), "coif": (6, range(1, 6))}


def filter_length(wavelet: str) -> int | None:
    """How many numbers a filter of this wavelet has; None where peft has no such filter."""
    name = wavelet.rstrip("0123456789")
    number = wavelet[len(name) :]
    if name not in _FAMILIES or not number or int(number) not in _FAMILIES[name][1]:
        return None
    return _FAMILIES[name][0] * int(number)


class WaveftOptions(Options):
    """The coefficients, and the wavelet."""

    n_frequency: Annotated[int, Field(ge=1, le=10**9, description="trained numbers of each target")] = 2592
    wavelet_family: Annotated[
        str,
        Field(description="db1 (Haar) to db10, sym2 to sym10, coif1 to coif5: the longer, the wider the padding"),
    ] = "db1"
    use_idwt: Annotated[bool, Field(description="numbers are coefficients; else entries of the delta weight")] = (
        True
    )
    random_loc_seed: Annotated[int | None, Field(ge=0, description="seed of where they lie; no bytes")] = None

    @field_validator("wavelet_family")
    @classmethod
    def _known(cls, name: str) -> str:
        if filter_length(name) is None:
            raise ValueError("should be one of db1 to db10, sym2 to sym10, coif1 to coif5")
        return name


class WaveftLinear(Module):
    """base(x) + idwt(coefficients) x."""

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        options = method.options
        self.base_layer = base
        self.inverts, self.length = options.use_idwt, filter_length(options.wavelet_family) or 2
        self.waveft_spectrum = adapter((options.n_frequency,), method.adapter_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        delta = self._delta_weight(t)
        x = t.to(x, delta.dtype)
        added = t.linear(x, delta)
        result = t.add(result, added)
        del added
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add what every pass makes; on the host the transform takes buffers of its library's own choice."""
        if t.host and self.inverts:
            raise BadInput("waveft's transform on the CPU is not in the closed form; merge on a GPU")
        add_to_weight(t, self.base_layer.weight, self._delta_weight)

    def _delta_weight(self, t: Ops) -> Tensor:
        return self._inverted(t) if self.inverts else self._sparse(t)

    def _sparse(self, t: Ops) -> Tensor:
        base, spectrum = self.base_layer, self.waveft_spectrum
        index = t.new((2, spectrum.numel), 2 * spectrum.numel, INT64, "_to_copy")
        dense = t.filled_from(spectrum, (base.out_features, base.in_features), index)
        return t.mul_scalar(dense)  # type: ignore[no-any-return]

    def _inverted(self, t: Ops) -> Tensor:
        base, spectrum, count = self.base_layer, self.waveft_spectrum, self.waveft_spectrum.numel
        added = self.length - 2  # as peft pads, which is what the transform takes away on one side
        rows, columns = (n + added + (n + added) % 2 for n in (base.out_features, base.in_features))
        index = t.new((2, count), 2 * count, INT64, "_to_copy")
        zeros = t.new((rows, columns), rows * columns, spectrum.dtype, "zeros", 0)
        placed = t.like(index, "clone")
        first = t.new((count,), count, BOOL, "lt", 8 * count)
        second = t.new((count,), count, BOOL, "lt", 8 * count)
        valid = t.new((count,), count, BOOL, "bitwise_and", 2 * count)
        del first, second
        where = t.masked(placed, valid, count, placed.shape)
        values = t.masked(spectrum, valid, count, (count,))
        dense = t.put_into(zeros, values, where)
        delta = t.mul_scalar(self._transformed(t, dense))
        del zeros, index, placed, valid, where, values
        shape = (base.out_features, base.in_features)
        if delta.shape != shape:
            delta = t.slice(t.slice(delta, (shape[0], delta.shape[1])), shape)
        return delta  # type: ignore[no-any-return]

    def _transformed(self, t: Ops, dense: Tensor) -> Tensor:
        """One level of the inverse transform of the quarters of `dense`."""
        rows, columns = dense.shape
        half, across = rows // 2, columns // 2
        quarters = [t.slice(t.slice(dense, (half, columns)), (half, across)) for _ in range(4)]
        filters, *held = self._filters(t, dense.dtype)
        stacked = t.cat(quarters, (1, 4, half, across))
        shape = (rows - 2 + self.length, columns - 2 + self.length)
        out = t.conv_transpose(stacked, filters, shape)
        del stacked
        for side in range(2):  # as much is cut before as behind
            for _ in range(2):
                cut = (2 * self.length - 3) // 2
                if cut:
                    shape = (shape[0] - cut, shape[1]) if side == 0 else (shape[0], shape[1] - cut)
                    out = t.slice(out, shape)
        held.clear()
        return out  # type: ignore[no-any-return]

    def _filters(self, t: Ops, dtype: DType) -> list[Tensor]:
        """Outer products of the filters, and the filters that peft holds beside them."""
        length = self.length
        copied = [t.new((length,), length, dtype, "_to_copy") for _ in range(4)]
        copied.pop(0)
        products = [t.new((length, length), length**2, dtype, "mul", 8 * length) for _ in range(4)]
        made = t.new((4, 1, length, length), 4 * length**2, dtype, "stack")
        del products
        return [made, *copied]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put coefficients beside every target."""
    count = method.options.n_frequency
    for linear in adapt(model, method, lambda base: WaveftLinear(base, method)):
        if count > linear.weight.numel:
            raise BadInput(
                f"--method-option n_frequency={count} is more than the {linear.weight.numel} entries of a target's "
                "weight; give fewer"
            )


METHODS = (
    Method(
        "waveft",
        "few trained wavelet coefficients of what is added to the weight",
        "waveft",
        apply,
        peft={"peft_type": "WAVEFT"},
        options=WaveftOptions,
        takes=("targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
