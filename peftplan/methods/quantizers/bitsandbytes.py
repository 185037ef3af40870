"""bitsandbytes: NF4 and FP4 in blocks with one scale each, and int8 with one scale a row (LLM.int8).

Every nn.Linear but the output head and tied ones is packed while it is loaded; experts kept as one tensor are not.
Source: bnb-4bit, bnb-int8, transformers-bnb
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from peftplan.methods.quantize import Linear4bit, Linear8bit
from peftplan.methods.quantizers.quantizer import Asked, Quantizer, Settled
from peftplan.specs.formats import QuantFormat
from peftplan.specs.modules import Linear

_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_SKIPS = ("llm_int8_skip_modules",)
_MERGING = "unpacked, merged, and packed again, which rounds the merged weights"


def _make(kind: str, asked: Settled) -> QuantFormat:
    return QuantFormat(kind, asked.block_size, asked.double_quant)


def _reads(config: Mapping[str, Any]) -> Asked:
    return Asked(double_quant=bool(config.get("bnb_4bit_use_double_quant")))


def _packs(linear: Linear, in_block: bool) -> bool:
    return linear.convertible


def _four_bits(name: str, words: str) -> Quantizer:
    return Quantizer(
        name,
        words,
        "bnb-4bit",
        bits=(4,),
        default_bits=4,
        block_sizes=_BLOCKS,
        default_block_size=64,
        make=partial(_make, name),
        wrap=Linear4bit,
        packs=_packs,
        derived_linear=True,
        forward="the whole weight in 16 bits, above some hundred tokens (on a GPU's own count); in backward always",
        carries=None,
        double_quant=True,
        merges=True,
        merging=_MERGING,
        reads=_reads,
        skips=_SKIPS,
    )


QUANTIZERS = (
    _four_bits("nf4", "4 bits a weight by normal quantiles, a scale for each block (bitsandbytes)"),
    _four_bits("fp4", "4-bit floats, a scale for each block (bitsandbytes)"),
    Quantizer(
        "int8",
        "a signed byte a weight, a scale for each row (bitsandbytes, LLM.int8)",
        "bnb-int8",
        bits=(8,),
        default_bits=8,
        block_sizes=_BLOCKS,
        default_block_size=64,
        make=partial(_make, "int8"),
        wrap=Linear8bit,
        packs=_packs,
        derived_linear=True,
        forward="nothing: bytes are multiplied, the sums scaled; in backward the whole weight in 16 bits",
        carries=None,
        merges=True,
        merging=_MERGING,
        skips=_SKIPS,
    ),
)
