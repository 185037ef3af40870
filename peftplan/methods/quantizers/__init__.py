"""Quantisers: how a frozen base's linears are kept, what using them takes, and what peft can put on them.

One file for each, or for a few of one library. It holds the storage format (names and bytes of every tensor that
stays on the device), the linear as a module whose `forward` plays the library's own, and `QUANTIZERS`, a tuple of
rows. To add one, write such a file, name it in `FILES`, and put its name into `request.QuantName`; nothing else
asks which quantiser a run has.
"""

from __future__ import annotations

from importlib import import_module

from peftplan.methods.quantizers.quantizer import Asked, Quantizer, QuantOptions

__all__ = ["FILES", "QUANTIZERS", "Asked", "QuantOptions", "Quantizer"]

FILES = ("bitsandbytes", "gptq", "awq", "hqq", "aqlm", "fp8", "mxfp4")

QUANTIZERS: dict[str, Quantizer] = {
    row.name: row for file in FILES for row in import_module(f"{__name__}.{file}").QUANTIZERS
}
