"""FourierFT: few trained numbers in the spectrum of the delta weight. Mirrors peft 0.21 tuners/fourierft/layer.py.

On every pass a spectrum of the weight's size is filled, transformed (in complex numbers, twice the size in
fp32), and its real part scaled: the delta weight, which the product keeps. Source: fourierft
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.merging import add_to_weight, refuse_packed_merge
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_packed
from peftplan.specs.formats import FP32, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class FourierOptions(Options):
    """The spectrum."""

    n_frequency: Annotated[int, Field(ge=1, le=10**9, description="trained numbers in each target's spectrum")] = (
        1000
    )
    random_loc_seed: Annotated[int | None, Field(ge=0, description="seed of where they lie; no bytes")] = None


class FourierLinear(Module):
    """base(x) + ifft2(spectrum).real x."""

    def __init__(self, base: Linear, count: int, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.fourierft_spectrum = adapter((count,), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        delta = self._weight(t)
        x = t.to(x, delta.dtype)
        added = t.linear(x, delta)
        result = t.add(result, added)
        del added, delta
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add what the spectrum stands for to a dense weight."""
        weight = self.base_layer.weight
        refuse_packed_merge(weight, "peft 0.21 adds fourierft's delta to the packed numbers, which fails")
        add_to_weight(t, weight, self._weight)

    def _weight(self, t: Ops) -> Tensor:
        spectrum = self.fourierft_spectrum
        index = t.from_host((2, spectrum.numel), 2 * spectrum.numel, INT64)
        dense = t.filled_from(t.to(spectrum, FP32), self.base_layer.weight.shape, index)
        delta = t.mul_scalar(t.inverse_fft_real(dense))
        return t.to(delta, spectrum.dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a spectrum beside every target."""
    refuse_packed(method, "fourierft", ("nf4", "fp4"))
    count = method.options.n_frequency
    for linear in adapt(model, method, lambda base: FourierLinear(base, count, method.adapter_dtype)):
        if count > linear.weight.numel:
            raise BadInput(
                f"--method-option n_frequency={count} is more than the {linear.weight.numel} numbers of a target's "
                "spectrum; give fewer"
            )


METHODS = (
    Method(
        "fourierft",
        "few trained numbers in the spectrum of what is added to the weight",
        "fourierft",
        apply,
        peft={"peft_type": "FOURIERFT"},
        options=FourierOptions,
        takes=("targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
