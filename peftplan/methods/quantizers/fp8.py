"""FP8: one byte a weight (e4m3) and a scale for each block of 128 x 128, as DeepSeek-V3's checkpoints have them.

transformers' FineGrainedFP8Config: every nn.Linear itself, and experts kept as one tensor a layer. Read in
transformers 5.23 (quantizers/quantizer_finegrained_fp8.py, integrations/finegrained_fp8.py, deepgemm.py), traced
with the product's kernel replaced by its result. Forward multiplies in fp8: the Triton kernel converts its input on
the way; on compute capability 9.x DeepGEMM, preferred there, has it converted first. Backward dequantises the
weight in the gradient's type; of experts, as many at once as fit into 1 GiB. Below compute capability 8.9
transformers dequantises everything while loading. Source: transformers-fp8, deepseek-v3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from peftplan.methods.quantize import PackedLinear
from peftplan.methods.quantizers.quantizer import (
    BESIDE_LINEARS,
    Asked,
    Quantizer,
    Settled,
    is_linear,
)
from peftplan.specs.formats import BF16, FP8, FP16, FP32, DType, PackedFormat
from peftplan.specs.modules import BareWeights, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor
from peftplan.units import GIB

FIRST = (8, 9)  # compute capability
_DEEPGEMM = 9  # generation that runs it with fp32 scales
_DEEPGEMM_BLOCK = 128
_EXPERTS_AT_ONCE_BYTES = GIB


@dataclass(frozen=True, slots=True)
class Fp8Format(PackedFormat):
    """A byte a weight, and an fp32 scale for each block."""

    block_size: int = 128

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """weight [.., out, in] and weight_scale_inv [.., out / block, in / block], rounded up."""
        blocks = -(-num_rows // self.block_size) * -(-num_columns // self.block_size)
        return [
            ("fp8 weight", num_rows * num_columns * num_matrices),
            ("block scales", 4 * blocks * num_matrices),
        ]


def _dequantised(t: Ops, shape: tuple[int, ...], block: int, dtype: DType) -> Tensor:
    """_dequantize_fp8_weight: scales in the type asked for, the weight, scales spread over rows; in place."""
    *stack, rows, columns = shape
    count, across = prod(stack), -(-columns // block)
    down = -(-rows // block)
    scale = t.new((*stack, down, across), count * down * across, dtype, "_to_copy")
    out = t.new(shape, prod(shape), dtype, "packed weight dequantised", prod(shape))
    spread = t.new((*stack, down * block, across), count * down * block * across, dtype, "clone")
    del scale
    t.write("mul_", dtype, prod(shape) * dtype.itemsize, prod(shape) * dtype.itemsize)
    del spread
    return out  # type: ignore[no-any-return]


def _block_of(weight: Parameter) -> int:
    assert isinstance(weight.quant, Fp8Format)
    return weight.quant.block_size


def converts_input(capability: tuple[int, int], block: int, half: bool) -> bool:
    """Whether DeepGEMM multiplies, which is handed its input in fp8: of 16 bits, and blocks of 128."""
    return capability[0] == _DEEPGEMM and block == _DEEPGEMM_BLOCK and half


class _Product:
    """FP8LinearFunction: both passes."""

    name = "FP8LinearFunctionBackward"
    saves_input = False

    @staticmethod
    def product(t: Ops, x: Tensor, weight: Parameter, bias: Parameter | None) -> Tensor:
        """x @ W.T in fp8; DeepGEMM is handed its input converted, with an fp32 scale for 128 numbers."""
        rows, outputs = x.numel // x.shape[-1], weight.shape[0]
        converted = None
        block = _block_of(weight)
        if converts_input(t.compute_capability, block, x.dtype in (BF16, FP16)):
            scales = rows * -(-x.shape[-1] // block)
            converted = t.new(x.shape, x.numel, FP8, "_to_copy"), t.new((scales,), scales, FP32, "amax", 0)
        read = x.numel + weight.numel
        shape, num_flop = (*x.shape[:-1], outputs), 2 * x.numel * outputs
        out = t.new(shape, rows * outputs, x.dtype, "packed product", read, num_flop)
        del converted
        return t.add_in_place(out, bias) if bias is not None else out  # type: ignore[no-any-return]

    @staticmethod
    def gradient(t: Ops, g: Tensor, weight: Parameter, shape: tuple[int, ...], numel: int) -> Tensor:
        """g @ W, dequantised."""
        dense = _dequantised(t, weight.shape, _block_of(weight), g.dtype)
        read = (g.numel + weight.numel) * g.dtype.itemsize
        out = t.new(shape, numel, g.dtype, "mm", read, 2 * numel * weight.shape[0])
        del dense
        return out  # type: ignore[no-any-return]


class Fp8Linear(PackedLinear):
    """transformers' FP8Linear, which peft takes for an nn.Linear."""

    casts_always = True
    taken_for_dense = True

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.packed_linear(x, self.weight, self.bias, _Product)  # type: ignore[no-any-return]


def _grouped_linear(t: Ops, x: Tensor, weight: Any, bias: Any, offsets: Tensor, columns: int) -> Tensor:
    node = t.link("FP8GroupedMatmulFunctionBackward", _grouped_backward, (), (x.edge,), (weight, x.shape))
    rows = x.shape[0]
    read = x.numel * x.dtype.itemsize + weight.numel
    out = t.new((rows, columns), rows * columns, x.dtype, "packed product", read, 2 * rows * columns * x.shape[-1])
    if node is not None:  # a function of Python saves once its forward pass is done
        t.save(node, (weight, offsets))
    return t.attach(out, node)  # type: ignore[no-any-return]


def _grouped_backward(t: Any, g: Tensor, saved: Any, context: Any) -> tuple[Tensor]:
    """g @ W of each row's expert; where the dense experts are more than 1 GiB, some of them at a time."""
    weight, shape = context
    experts, rows, columns = weight.shape
    numel, num_flop = prod(shape), 2 * g.numel * columns
    at_once = max(1, _EXPERTS_AT_ONCE_BYTES // (rows * columns * g.dtype.itemsize))
    if at_once >= experts:
        dense = _dequantised(t, weight.shape, _block_of(weight), g.dtype)
        out = t.new(shape, numel, g.dtype, "_grouped_mm", dense.numel * g.dtype.itemsize, num_flop)
        del dense
        return (out,)
    out = t.new(shape, numel, g.dtype, "zeros", 0)
    for start in range(0, experts, at_once):
        count = min(at_once, experts - start)
        dense = _dequantised(t, (count, rows, columns), _block_of(weight), g.dtype)
        part = -(-shape[0] * count // experts)
        done = t.new((part, columns), part * columns, g.dtype, "_grouped_mm", None, num_flop * count // experts)
        t.write("copy_", g.dtype, part * columns * g.dtype.itemsize, part * columns * g.dtype.itemsize)
        del dense, done
    return (out,)


def _make(asked: Settled) -> Fp8Format:
    return Fp8Format("fp8", asked.block_size)


def _packs(linear: Linear, in_block: bool) -> bool:
    """nn.Linear itself, no class derived from it."""
    return is_linear(linear)


def _pack_experts(experts: Module, quant: PackedFormat) -> bool:
    """transformers' FP8Experts: the family's own program, whose grouped products take packed weights."""
    names = ("gate_up_proj", "down_proj")
    if not isinstance(experts, BareWeights) or set(experts.parameters) != set(names):
        return False  # with biases, which FP8Experts does not take
    for name in names:
        experts.parameters[name].quant = quant
    experts.__dict__["grouped_linear"] = _grouped_linear
    return True


def _reads(config: Mapping[str, Any]) -> Asked:
    size = config.get("weight_block_size")
    if size is None:
        return Asked()
    rows, columns = size if isinstance(size, list) and len(size) == 2 else (size, None)
    if rows != columns:
        raise TypeError  # blocks are squares
    return Asked(block_size=rows)


QUANTIZERS = (
    Quantizer(
        "fp8",
        "a byte a weight (e4m3), an fp32 scale for each block of 128 x 128 (DeepSeek-V3, transformers)",
        "deepseek-v3",
        bits=(8,),
        default_bits=8,
        block_sizes=(32, 64, 128, 256),
        default_block_size=128,
        make=_make,
        wrap=Fp8Linear,
        pack_experts=_pack_experts,
        packs=_packs,
        derived_linear=True,
        forward="nothing: multiplied in fp8; in backward the whole weight in the gradient's type",
        carries=BESIDE_LINEARS | {"LORA", "ADALORA", "IA3", "MISS", "VERA", "OFT", "LOHA", "LOKR"},
        merging="peft adds to the packed numbers without their scales, which is wrong: dequantise when loading",
        dequantizes_below=FIRST,
        adapter_dtypes=("fp32",),
        reads=_reads,
        explains={
            "fp8 weight": "one byte a weight",
            "block scales": "an fp32 scale for each block of {block} x {block} weights",
        },
        skips=("modules_to_not_convert", "ignored_layers"),
        notes=(
            (
                "fp8: the product's kernels (Triton's, DeepGEMM on compute capability 9.x) come from the Hub "
                "through "
                "the kernels package; read in transformers 5.23, not measured; time counts products at the rate "
                "of 16 bits"
            ),
        ),
    ),
)
