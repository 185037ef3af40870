"""AWQ: 4 bits a weight in 32-bit words along the output, a scale and a zero for each group of inputs (gemm layout).

Read in gptqmodel 7.7 (nn_modules/qlinear/gemm_awq.py, AWQuantLinear in __init__.py, gptqmodel_ext/awq) and
transformers 5.23 (quantizers/quantizer_awq.py, integrations/awq.py), traced but for its kernels; not run on a GPU.
Above 1024 tokens forward dequantises the whole weight for a product, below it a kernel sums eight parts of the
input in a buffer of their own; backward dequantises it always. The autograd function saves packed tensors only.
transformers loads such a model in fp16 where bf16 is asked for. Assumes: no scaled activations, a vector and a
product a layer, which some families (falcon, gpt_neox, gptj, bloom, gpt_bigcode) get. Source: awq, gptqmodel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftplan.methods.quantize import PackedLinear
from peftplan.methods.quantizers.gptq import WHOLE_ROW
from peftplan.methods.quantizers.quantizer import (
    BESIDE_LINEARS,
    Asked,
    Quantizer,
    Settled,
    is_linear,
)
from peftplan.specs.formats import BF16, FP16, FP32, DType, PackedFormat
from peftplan.specs.modules import Linear, Ops
from peftplan.specs.tensors import Parameter, Tensor

_MOST_FUSED = 1024  # tokens
PARTS = 8  # of the input, whose sums the fused kernel keeps apart
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class AwqFormat(PackedFormat):
    """AWQ's buffers: packed words, packed zeros and fp16 scales, all along the output."""

    bits: int = 4
    group_size: int = 128

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """qweight [in, out * bits / 32], qzeros [groups, out * bits / 32], scales [groups, out]."""
        groups = 1 if self.group_size == WHOLE_ROW else num_columns // self.group_size
        words = -(-num_rows * self.bits // _WORD_BITS)
        return [
            ("packed weight", 4 * num_columns * words * num_matrices),
            ("packed zeros", 4 * groups * words * num_matrices),
            ("fp16 scales", 2 * groups * num_rows * num_matrices),
        ]


class _Product:
    """AwqGemmFn: both passes."""

    name = "AwqGemmFnBackward"
    saves_input = False

    @staticmethod
    def product(t: Ops, x: Tensor, weight: Parameter, bias: Parameter | None) -> Tensor:
        """x @ W.T + bias; with few tokens by the kernel that unpacks as it multiplies, its parts in fp32."""
        rows, outputs = x.numel // x.shape[-1], weight.shape[0]
        shape, numel, num_flop = (*x.shape[:-1], outputs), rows * outputs, 2 * x.numel * outputs
        if rows > _MOST_FUSED:
            dense = _unpacked(t, weight, x.dtype)  # its name is that of the result too: gone when that is there
            read = (x.numel + weight.numel) * x.dtype.itemsize
            out = t.new(shape, numel, x.dtype, "mm", read, num_flop)
            del dense
        else:
            read = x.numel * x.dtype.itemsize + weight.num_bytes()
            parts = t.new((PARTS, *shape), PARTS * numel, FP32, "packed product", read, num_flop)
            out = t.new(shape, numel, x.dtype, "sum", 4 * parts.numel)
            del parts
        return t.add(out, bias) if bias is not None else out  # type: ignore[no-any-return]

    @staticmethod
    def gradient(t: Ops, g: Tensor, weight: Parameter, shape: tuple[int, ...], numel: int) -> Tensor:
        """g @ W."""
        dense = _unpacked(t, weight, g.dtype)
        read = (g.numel + weight.numel) * g.dtype.itemsize
        out = t.new(shape, numel, g.dtype, "mm", read, 2 * numel * weight.shape[0])
        del dense
        return out  # type: ignore[no-any-return]


def _unpacked(t: Ops, weight: Parameter, dtype: DType) -> Tensor:
    """The dense weight in the type of its scales, which the forward pass has cast to that of its input."""
    read = weight.num_bytes()
    out: Tensor = t.new(weight.shape, weight.numel, dtype, "packed weight dequantised", read)
    return out


class AwqLinear(PackedLinear):
    """gptqmodel's AwqGEMMLinear: computes in 16 bits and returns the input's type."""

    scales_last = True

    def __init__(self, base: Linear, quant: PackedFormat, compute_dtype: DType = BF16) -> None:
        super().__init__(base, quant, compute_dtype)
        if self.bias is not None:
            self.bias.role = "buffer"

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        source = x.dtype
        compute = source if source in (FP16, BF16) else FP16
        x = t.to(x, compute)
        if self.bias is not None:
            self.bias.set_dtype(compute)  # in place, by the first pass
        return t.to(t.packed_linear(x, self.weight, self.bias, _Product), source)  # type: ignore[no-any-return]


def _make(asked: Settled) -> AwqFormat:
    return AwqFormat("awq", asked.bits, asked.block_size)


def _packs(linear: Linear, in_block: bool) -> bool:
    """Every nn.Linear, classes derived from it too, but no Conv1D."""
    return is_linear(linear) or linear.derived


def _reads(config: Mapping[str, Any]) -> Asked:
    return Asked(config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size")))


QUANTIZERS = (
    Quantizer(
        "awq",
        "4 bits a weight, a scale and a zero for each group of inputs (gptqmodel, gemm layout)",
        "awq",
        bits=(4,),
        default_bits=4,
        block_sizes=(WHOLE_ROW, 16, 32, 64, 128),
        default_block_size=128,
        make=_make,
        wrap=AwqLinear,
        packs=_packs,
        forward="the whole weight in 16 bits above 1024 tokens, in backward always; nothing dense is saved",
        carries=BESIDE_LINEARS | {"LORA", "MISS", "VERA", "OFT", "BOFT"},
        merging="peft has no merge over such linears",
        load_dtype=lambda dtype: FP16 if dtype is BF16 else dtype,
        reads=_reads,
        explains={
            "packed weight": "{bits} bits a weight, in 32-bit words along the output",
            "packed zeros": "{bits} bits for each output in each group of {block} inputs",
            "fp16 scales": "2 B for each output in each group of {block} inputs",
        },
        skips=("modules_to_not_convert",),
        notes=(
            (
                "awq: loaded with backend='auto_trainable' (the kernels that 'auto' prefers refuse to train), and "
                "by "
                "transformers in fp16 where bf16 is asked for; autocast to bf16 then makes fp32 of their sums, and "
                "--precision fp16-mixed does not. Read in gptqmodel 7.7, not measured"
            ),
        ),
    ),
)
