"""GPTQ: whole numbers of 2 to 8 bits in 32-bit words along the input, a scale and a zero for each group.

Read in gptqmodel 7.7 (nn_modules/qlinear/torch.py, tritonv2.py, GPTQQuantLinear in __init__.py) and optimum 2.3
(gptq/quantizer.py, which transformers 5.23 loads by) and traced but for its kernel; not run on a GPU. In training
every kernel that can train runs TorchLinear's forward: the whole weight is dequantised, by a function that
torch.compile makes one kernel of, and multiplied by torch.matmul, so that autograd saves the dense weight until the
gradient of the input is there. Assumes: that kernel keeps nothing between its input and its result (where
torch.compile gives up, codes of 4 bytes are there on the way). Kernels that `backend="auto"` prefers refuse to
train. Source: gptq, gptqmodel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from peftplan.methods.quantize import PackedLinear
from peftplan.methods.quantizers.quantizer import BESIDE_LINEARS, Asked, Quantizer, QuantOptions, Settled
from peftplan.specs.formats import FP16, DType, PackedFormat
from peftplan.specs.modules import Linear, Ops
from peftplan.specs.tensors import Tensor

_WORD_BITS = 32
WHOLE_ROW = -1  # a group of all inputs


class GptqOptions(QuantOptions):
    """How the checkpoint was made."""

    desc_act: Annotated[
        bool, Field(description="inputs were quantised by activation; no bytes: each one's group is kept anyway")
    ] = False


@dataclass(frozen=True, slots=True)
class GptqFormat(PackedFormat):
    """GPTQ's buffers, along the input: packed words, packed zeros, fp16 scales, and the group of every input."""

    bits: int = 4
    group_size: int = 128

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], scales [groups, out], g_idx [in]."""
        groups = 1 if self.group_size == WHOLE_ROW else -(-num_columns // self.group_size)
        words = -(-num_columns * self.bits // _WORD_BITS) * num_rows
        zeros = groups * -(-num_rows * self.bits // _WORD_BITS)
        return [
            ("packed weight", 4 * words * num_matrices),
            ("packed zeros", 4 * zeros * num_matrices),
            ("fp16 scales", 2 * groups * num_rows * num_matrices),
            ("group of each input", 4 * num_columns * num_matrices),
            *self._shifts(),
        ]

    def _shifts(self) -> list[tuple[str, int]]:
        """Two small tables that unpacking shifts by, made when the model is loaded."""
        entries = 36 if self.bits == 3 else _WORD_BITS // self.bits
        return [("shifts of zeros", 4 * entries), ("shifts of weights", 4 * entries)]


class GptqLinear(PackedLinear):
    """gptqmodel's TorchLinear as it trains: the dense weight is an ordinary operand."""

    casts_always = True

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        out = t.linear(x, t.to_detached(self.unpacked(t), x.dtype))
        if self.bias is not None:
            out = t.add_in_place(out, t.to(self.bias, out.dtype))
        return out  # type: ignore[no-any-return]

    def unpacked(self, t: Ops) -> Tensor:
        weight = self.weight
        out: Tensor = t.new(weight.shape, weight.numel, FP16, "packed weight dequantised", weight.num_bytes())
        return out


def _make(asked: Settled) -> GptqFormat:
    return GptqFormat("gptq", asked.bits, asked.block_size)


def _wrap(linear: Linear, quant: PackedFormat, compute_dtype: DType) -> GptqLinear:
    made = GptqLinear(linear, quant, compute_dtype)
    if made.bias is not None:
        made.bias.role = "buffer"
        made.bias.set_dtype(FP16)
    return made


def _packs(linear: Linear, in_block: bool) -> bool:
    """optimum converts nn.Linear itself and Conv1D, inside the blocks."""
    return in_block and linear.convertible


def reads(config: Mapping[str, Any]) -> Asked:
    """Bits, group size and order of activations from a checkpoint's quantization_config."""
    return Asked(config.get("bits"), config.get("group_size"), options={"desc_act": bool(config.get("desc_act"))})


QUANTIZERS = (
    Quantizer(
        "gptq",
        "2, 3, 4 or 8 bits a weight, a scale and a zero for each group of inputs (gptqmodel, optimum)",
        "gptq",
        bits=(2, 3, 4, 8),
        default_bits=4,
        block_sizes=(WHOLE_ROW, 16, 32, 64, 128, 256, 512, 1024),
        default_block_size=128,
        make=_make,
        wrap=_wrap,
        packs=_packs,
        options=GptqOptions,
        forward="the whole weight in fp16, which autograd saves until its backward",
        carries=BESIDE_LINEARS | {"LORA", "ADALORA", "MISS", "VERA", "OFT", "BOFT"},
        merging="peft refuses to merge into it",
        spared_by_prepare=True,
        reads=reads,
        explains={
            "packed weight": "{bits} bits a weight, in 32-bit words along the input",
            "packed zeros": "{bits} bits for each output in each group of {block} inputs",
            "fp16 scales": "2 B for each output in each group of {block} inputs",
            "group of each input": "an int32 for each input of each linear",
            "shifts of zeros": "a table of int32 for each linear, made when it is loaded",
            "shifts of weights": "a table of int32 for each linear, made when it is loaded",
        },
        notes=(
            "gptq: loaded with backend='auto_trainable', since the kernels that 'auto' prefers refuse to train",
            (
                "gptq: the dequantised weights are saved by autograd; with gradient checkpointing those of a "
                "block at "
                "a time, without it those of all. Read in gptqmodel 7.7, not measured"
            ),
        ),
    ),
)
