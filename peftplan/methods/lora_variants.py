"""Variants of LoRA whose layers are LoRA's own: another scale, another learning rate, frozen A, other first values.

Initialisations run once, before training, on one matrix at a time; what they hold is said in a note, from the
tensors that peft 0.21 allocates (tuners/lora/layer.py pissa_init, olora_init; utils/loftq_utils.py;
tuners/lora/eva.py, corda.py, loraga.py), without what cuSOLVER takes for itself.
Source: peft-lora, peft-init
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from peftplan.errors import BadInput
from peftplan.methods import lora
from peftplan.methods.lora import LoraEmbedding, LoraLinear
from peftplan.methods.lora_parameter import LoraParameter
from peftplan.methods.wrapping import adapter_bytes
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.tensors import Parameter

# (base weight, how often it stands in the model, its matrix [out_features, in_features], rank) of each target
Targets = list[tuple[Parameter, int, tuple[int, int], int]]


def apply_lora_fa(model: ModelSpec, method: MethodSpec) -> None:
    """LoRA whose A stays as it was drawn: only its product with the input is kept for backward."""
    lora.apply(model, method)
    for owner, _, _ in model.groups():
        for _, module in owner.walk():
            if isinstance(module, (LoraLinear, LoraParameter)):
                module.lora_A.weight.set_trainable(False)
            elif isinstance(module, LoraEmbedding):
                module.lora_embedding_A.set_trainable(False)
    model.adapter_checkpoint_bytes = adapter_bytes(model)  # A is saved as it is


def _layers(model: ModelSpec) -> list[tuple[int, LoraLinear]]:
    """Every LoRA layer over a linear, and how often it stands in the model."""
    return [
        (count, module)
        for owner, count, _ in model.groups()
        for _, module in owner.walk()
        if isinstance(module, LoraLinear)
    ]


def _initialised(name: str, words: Callable[[Targets], str], packed: bool = False) -> Callable[..., None]:
    """LoRA, with a note of what its initialisation holds; `packed`: it takes a base in 4 or 8 bits."""

    def apply(model: ModelSpec, method: MethodSpec) -> None:
        if method.quant is not None and not packed:
            raise BadInput(
                f"--method {name} computes its first values from dense weights, and --quant "
                f"{method.quant.kind} packs "
                "them; leave --quant out, or take --method qlora"
            )
        lora.apply(model, method)
        targets = [
            (
                layer.base_layer.weight,
                count,
                (layer.base_layer.out_features, layer.base_layer.in_features),
                method.rank,
            )
            for count, layer in _layers(model)
        ]
        if targets:
            model.notes.append(words(targets))

    return apply


def _pissa(targets: Targets) -> str:
    most = max(_wide_copy(w) + 4 * (min(s) * sum(s) + min(s)) for w, _, s, _ in targets)
    return (
        f"initialisation factors every target once (SVD in fp32), at most {most:,} bytes at a time "
        f"beside the model; "
        f"it changes the base: keep the residual weights, or convert the adapter to rank {2 * targets[0][3]}, "
        f"{2 * _adapter_bytes(targets):,} bytes in fp32"
    )


def _olora(targets: Targets) -> str:
    most = max(_wide_copy(w) + 4 * min(s) * sum(s) for w, _, s, _ in targets)
    return (
        f"initialisation factors every target once (QR in fp32), at most {most:,} bytes at a time "
        f"beside the model; "
        f"it changes the base: keep the residual weights, or convert the adapter to rank {2 * targets[0][3]}, "
        f"{2 * _adapter_bytes(targets):,} bytes in fp32"
    )


def _loftq(targets: Targets) -> str:
    most = max(4 * (4 * s[0] * s[1] + min(s) * sum(s)) for _, _, s, _ in targets)
    return (
        f"initialisation packs and factors every target once (SVD of what packing loses, fp32), at "
        f"most {most:,} bytes "
        "at a time beside the model; the base keeps its type and holds the unpacked values: save it, and load that "
        "in 4 bits to train as --method qlora"
    )


def _eva(targets: Targets) -> str:
    held = sum(4 * count * rank * s[1] for _, count, s, rank in targets)
    return (
        "initialisation runs batches through the model (initialize_lora_eva_weights) and keeps the "
        "leading directions "
        f"of every target's input, about {held:,} bytes in fp32; it then moves rank between targets, "
        f"whose sum stays "
        "where rho is 1"
    )


def _lora_ga(targets: Targets) -> str:
    held = sum(count * w.numel * w.dtype.itemsize for w, count, _, _ in targets)
    return (
        f"initialisation runs forward and backward passes and holds gradients of all targets, "
        f"{held:,} bytes beside the "
        "model, more than training does"
    )


def _corda(targets: Targets) -> str:
    held = sum(4 * count * s[1] ** 2 for _, count, s, _ in targets)
    return (
        f"initialisation runs batches through the model and holds a covariance of every target's "
        f"input, {held:,} bytes in "
        "fp32 (half with use_float16_for_covariance); it changes the base, as PiSSA does"
    )


def _wide_copy(weight: Parameter) -> int:
    """Bytes of a weight's copy in fp32, and of what replaces it."""
    return 4 * weight.numel * (1 if weight.dtype.itemsize == 4 else 2)


def _adapter_bytes(targets: Targets) -> int:
    return sum(4 * count * rank * sum(shape) for _, count, shape, rank in targets)


def _variant(name: str, summary: str, source: str, words: Callable[[Targets], str], packed: bool = False):  # type: ignore[no-untyped-def]
    return replace(
        lora.METHOD,
        name=name,
        summary=summary,
        source=source,
        apply=_initialised(name, words, packed),
        peft={"peft_type": "LORA", "init_lora_weights": name.replace("-", "_")},
    )


METHODS = (
    replace(
        lora.METHOD,
        name="rslora",
        summary="LoRA scaled by alpha over the square root of the rank",
        source="rslora",
        peft={"peft_type": "LORA", "use_rslora": True},
    ),
    replace(
        lora.METHOD,
        name="lora-plus",
        summary="LoRA with a higher learning rate for B",
        source="lora-plus",
        notes=(
            "LoRA+ gives B a learning rate of its own: the same tensors and states, so not a byte more than LoRA",
        ),
    ),
    replace(
        lora.METHOD,
        name="lora-fa",
        summary="LoRA with A frozen: inputs of the targets need not be kept",
        source="lora-fa",
        apply=apply_lora_fa,
        freezes=("lora_A", "lora_embedding_A"),
        notes=(
            "peft's LoraFAOptimizer keeps the states that adamw does here, and corrects gradients by rank x rank",
        ),
    ),
    _variant("pissa", "LoRA that starts from the leading singular vectors of the weights", "pissa", _pissa),
    _variant("olora", "LoRA that starts from a QR decomposition of the weights", "olora", _olora, packed=True),
    _variant("loftq", "LoRA that starts from what 4-bit packing loses", "loftq", _loftq),
    _variant("eva", "LoRA that starts from the leading directions of the inputs", "eva", _eva, packed=True),
    _variant("lora-ga", "LoRA that starts from the gradient of the first batches", "lora-ga", _lora_ga),
    _variant("corda", "LoRA that starts from weights oriented by the inputs' covariance", "corda", _corda),
)
