"""Variants of LoRA whose layers are LoRA's own: another scale, another learning rate, frozen A, other first values.

What an initialisation holds is said in a note, from the tensors that peft 0.21 allocates (tuners/lora/layer.py
mica_init), without what cuSOLVER takes for itself; those that have figures stand in `initialised`.
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


def apply_mica(model: ModelSpec, method: MethodSpec) -> None:
    """LoRA whose B stays as it is found, in the trailing singular vectors of the weights."""
    _initialised("mica", _mica)(model, method)
    for owner, _, _ in model.groups():
        for _, module in owner.walk():
            if isinstance(module, (LoraLinear, LoraParameter)):
                module.lora_B.weight.set_trainable(False)
            elif isinstance(module, LoraEmbedding):
                module.lora_embedding_B.set_trainable(False)
    model.adapter_checkpoint_bytes = adapter_bytes(model)  # B is saved as it is


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


def _mica(targets: Targets) -> str:
    most = max(4 * (w.numel + min(s) * sum(s) + min(s)) for w, _, s, _ in targets)
    return (
        f"initialisation factors every target once (SVD in fp32), at most {most:,} bytes at a time beside the "
        "model, and leaves the base as it is"
    )


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
    replace(
        _variant("mica", "LoRA with B frozen in the trailing singular vectors of the weights", "mica", _mica),
        apply=apply_mica,
        freezes=("lora_B", "lora_embedding_B"),
    ),
)
