"""What a job says of a packed base, and of targets on it. No torch here."""

from __future__ import annotations

from dataclasses import replace

from peftplan.measure.trace.job import Quantization
from peftplan.methods import Method
from peftplan.methods.quantizers import QUANTIZERS
from peftplan.packing import names_targets
from peftplan.resolve import PeftMethod, Settings
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear


def with_names(settings: Settings, method: Method | PeftMethod, model: ModelSpec | None) -> Settings:
    """Targets by their names where all-linear would not find the linears that a quantiser makes."""
    quant, request = settings.method.quant, settings.request
    if quant is None or model is None or not names_targets(request, method, QUANTIZERS[quant.kind]):
        return settings
    names = {
        path.rpartition(".")[2]: None
        for group, _, _ in model.groups()
        for path, module in group.walk()
        if isinstance(module, Linear) and module is not model.head
    }
    return replace(settings, request=request.model_copy(update={"targets": list(names)}))


def quantization_of(settings: Settings) -> Quantization | None:
    """How the base is packed."""
    request, quant = settings.request, settings.method.quant
    if quant is None:
        return None
    return Quantization(
        quant.kind,
        request.quant_block_size or 0,
        request.double_quant,
        request.quant_bits or 0,
        dict(request.quant_options),
        settings.step.compute_capability,
        settings.method.quant_skips,
    )
