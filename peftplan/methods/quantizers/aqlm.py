"""AQLM: groups of eight weights, each the sum of one vector from every codebook, and a scale for each output.

Read in aqlm 1.1.7 (inference.py, inference_kernels/cuda_kernel.cpp), traced but for its kernels; not run on a GPU.
Above six tokens forward dequantises the whole weight for a linear, scales the result in place and hands out a copy
of it; backward scales a copy of the gradient and dequantises again. The autograd function saves its input, which
nothing reads. Source: aqlm
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field

from peftplan.methods.quantize import PackedLinear
from peftplan.methods.quantizers.quantizer import (
    BESIDE_LINEARS,
    Asked,
    Quantizer,
    QuantOptions,
    Settled,
    is_linear,
)
from peftplan.specs.formats import PackedFormat
from peftplan.specs.modules import Linear, Ops
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

_MOST_AS_VECTORS = 6  # tokens that are multiplied one by one, from packed weights
# Codebooks and bits of a code, by their usual names: those that CUDA kernels of the library take.
CODEBOOKS = {"1x16": (1, 16), "2x8": (2, 8), "1x8": (1, 8)}


class AqlmOptions(QuantOptions):
    """The codebooks."""

    codebooks: Annotated[
        Literal["1x16", "2x8", "1x8"], Field(description="how many codebooks and bits of a code, 1x16 or 2x8")
    ] = "1x16"


@dataclass(frozen=True, slots=True)
class AqlmFormat(PackedFormat):
    """Codes [out, in / group, codebooks], codebooks [n, 2**bits, 1, group] of the layer's own, scales [out]."""

    num_codebooks: int = 1
    code_bits: int = 16
    group_size: int = 8

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """Codes in the smallest signed type that holds them; codebooks and scales in 16 bits."""
        codes = num_rows * (num_columns // self.group_size) * self.num_codebooks
        return [
            ("codebooks", 2 * self.num_codebooks * 2**self.code_bits * self.group_size),
            ("codes", codes * (1 if self.code_bits <= 8 else 2)),
            ("scales", 2 * num_rows),
        ]


class _Product:
    """QuantizedLinear's autograd function: both passes."""

    name = "_QuantizedMatmulBackward"
    saves_input = True

    @staticmethod
    def product(t: Ops, x: Tensor, weight: Parameter, bias: Parameter | None) -> Tensor:
        """x @ W.T scaled, and a copy of that."""
        rows, outputs = x.numel // x.shape[-1], weight.shape[0]
        shape, numel, num_flop = (*x.shape[:-1], outputs), rows * outputs, 2 * x.numel * outputs
        size = x.dtype.itemsize
        if rows > _MOST_AS_VECTORS:
            dense = _unpacked(t, weight, x)
            flat = t.new(shape, numel, x.dtype, "mm", (x.numel + weight.numel) * size, num_flop)
        else:
            dense = None
            flat = t.new(shape, numel, x.dtype, "packed product", x.numel * size + weight.num_bytes(), num_flop)
        t.write("mul_", x.dtype, bytes_of(flat), bytes_of(flat))
        if bias is not None:
            t.write("add_", x.dtype, bytes_of(flat, bias), bytes_of(flat))
        out = t.like(flat, "clone")
        del flat, dense
        return out  # type: ignore[no-any-return]

    @staticmethod
    def gradient(t: Ops, g: Tensor, weight: Parameter, shape: tuple[int, ...], numel: int) -> Tensor:
        """(g * scales) @ W."""
        scaled = t.like(g, "mul")
        dense = _unpacked(t, weight, g)
        read = (g.numel + weight.numel) * g.dtype.itemsize
        out = t.new(shape, numel, g.dtype, "mm", read, 2 * numel * weight.shape[0])
        del scaled, dense
        return out  # type: ignore[no-any-return]


def _unpacked(t: Ops, weight: Parameter, like: Tensor) -> Tensor:
    return t.new(  # type: ignore[no-any-return]
        weight.shape, prod(weight.shape), like.dtype, "packed weight dequantised", weight.num_bytes()
    )


class AqlmLinear(PackedLinear):
    """aqlm's QuantizedLinear."""

    scales_last = True
    adds_in_place = True

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.packed_linear(x, self.weight, self.bias, _Product)  # type: ignore[no-any-return]


def _make(asked: Settled) -> AqlmFormat:
    codebooks, bits = CODEBOOKS[asked.options.codebooks]
    return AqlmFormat("aqlm", codebooks, bits, asked.block_size)


def _packs(linear: Linear, in_block: bool) -> bool:
    """Every nn.Linear, classes derived from it too, but no Conv1D."""
    return is_linear(linear) or linear.derived


def _reads(config: Mapping[str, Any]) -> Asked:
    name = f"{config.get('num_codebooks', 1)}x{config.get('nbits_per_codebook', 16)}"
    return Asked(block_size=config.get("in_group_size"), options={"codebooks": name})


QUANTIZERS = (
    Quantizer(
        "aqlm",
        "about 2 bits a weight: vectors from codebooks of each layer's own, summed (aqlm)",
        "aqlm",
        bits=(2,),
        default_bits=2,
        block_sizes=(8, 16),
        default_block_size=8,
        make=_make,
        wrap=AqlmLinear,
        packs=_packs,
        options=AqlmOptions,
        forward="the whole weight in 16 bits above 6 tokens, and a second copy of the result; in backward again",
        carries=BESIDE_LINEARS | {"LORA", "MISS", "VERA", "OFT", "BOFT"},
        merging="peft has no merge over such linears",
        spared_by_prepare=True,
        reads=_reads,
        explains={
            "codebooks": "each linear's own: 2 B for each of {block} numbers of every vector",
            "codes": "one for each codebook and group of {block} inputs",
            "scales": "2 B for each output",
        },
        skips=("linear_weights_not_to_quantize",),
        notes=("aqlm: read in aqlm 1.1.7, not measured; its kernels take 16-bit inputs only",),
    ),
)
