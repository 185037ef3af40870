"""What methods share: the base's format, quantised loads, and peft's preparation for k-bit training."""

from __future__ import annotations

from peftplan.methods.quantizers import QUANTIZERS
from peftplan.methods.quantizers.asked import skipped
from peftplan.specs.formats import BF16, FP16, FP32, DType, PackedFormat, QuantFormat
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import LayerNorm, Linear
from peftplan.specs.tensors import Parameter

# What TRL takes for the output head and embeddings, by a part of the module's name.
_ENDS = ("lm_head", "embed_tokens", "wte", "wpe")


def set_base_dtype(model: ModelSpec, dtype: DType, trainable: bool) -> None:
    """Load the base's weights in `dtype`, trainable or frozen; buffers in 16 bits are made in it too."""
    for _, parameter, _ in model.parameters():
        if parameter.role == "weight":
            parameter.set_dtype(FP32 if parameter.wide and dtype is FP16 else dtype)
            parameter.set_trainable(trainable)
        elif parameter.role == "buffer" and parameter.dtype.itemsize == 2:
            parameter.set_dtype(dtype)


def quantize_base(model: ModelSpec, quant: PackedFormat, compute_dtype: DType, skips: tuple[str, ...] = ()) -> None:
    """What a quantised load does: linears but the output head and tied ones are packed, as the quantiser chooses.

    Source: transformers 5.23 integrations/bitsandbytes.py (nn.Linear and GPT-2's Conv1D, no other class:
    experts kept as one tensor stay in the load format) and quantizers/base.py (what is not converted).
    """
    head, row = model.head, QUANTIZERS[quant.kind]
    left_dense = 0
    for module, count, prefix in model.groups():
        in_block = bool(prefix)
        for name, child in list(module.walk()):
            full = f"{prefix}.{name}" if prefix else name
            if skipped(full, skips):
                continue
            if row.pack_experts is not None and name.endswith("experts"):
                row.pack_experts(child, quant)
            if not isinstance(child, Linear) or child is head:
                continue
            if not row.packs(child, in_block) and not (child.derived and model.behaviour.packs_subclasses):
                left_dense += count * child.weight.numel
                continue
            module.replace(name, row.wrap(child, quant, compute_dtype))
    model.notes += row.notes
    if left_dense:
        model.notes.append(
            f"the {quant.kind} load leaves {left_dense:,} weights of {model.family}'s linears dense: "
            "transformers 5 packs nn.Linear itself, no class derived from it, and none that it keeps in fp32"
        )
    dense_experts: list[Parameter] = []
    total = unpacked = 0
    for _, parameter, count in model.parameters():
        if parameter.role == "weight":
            total += parameter.numel * count
            if parameter.quant is None:
                unpacked += parameter.numel * count
                dense_experts += [parameter] * count if len(parameter.shape) == 3 else []
    model.notes.append(
        f"the {quant.kind} load packs {'linears and experts' if row.pack_experts else 'linears only'}: "
        f"{unpacked:,} of {total:,} weights ({unpacked / total:.1%}) "
        "stay as they are (embeddings, output head, norms, biases)"
    )
    if dense_experts:
        num = sum(p.numel for p in dense_experts)
        model.notes.append(
            f"the {quant.kind} load leaves {num:,} expert weights in {dense_experts[0].dtype.short}: "
            f"transformers 5 keeps experts as one tensor a layer, and {_packer(quant)} packs linears only"
        )


def mark_loaded_from(model: ModelSpec, quant: PackedFormat) -> None:
    """Note which weights a packed checkpoint has dequantised on their way to the device: linears, and experts."""
    row = QUANTIZERS[quant.kind]
    for module, _, prefix in model.groups():
        for _, child in module.walk():
            if isinstance(child, Linear) and child is not model.head and row.packs(child, bool(prefix)):
                child.weight.loaded_from = quant
            for parameter in child.parameters.values():
                if len(parameter.shape) == 3:
                    parameter.loaded_from = quant


def _packer(quant: PackedFormat) -> str:
    """Who packs: the library where it is bitsandbytes, whose formats go by other names."""
    return "bitsandbytes" if isinstance(quant, QuantFormat) else quant.kind


def prepare_for_kbit(model: ModelSpec, quant: PackedFormat | None = None) -> None:
    """peft's prepare_model_for_kbit_training: freeze, and cast every 16-bit weight that is not packed to fp32.

    Bases of some quantisers are only frozen. Source: peft-kbit.
    """
    if quant is not None and QUANTIZERS[quant.kind].spared_by_prepare:
        for _, parameter, _ in model.parameters():
            if parameter.role == "weight":
                parameter.set_trainable(False)
        return
    raised = 0
    for _, parameter, count in model.parameters():
        if parameter.role == "weight":
            if parameter.quant is None and len(parameter.shape) == 3 and parameter.dtype.itemsize == 2:
                raised += count * parameter.numel
            if parameter.loaded_dtype is not None:  # cast up here, and back by the first forward pass
                if parameter.loaded_dtype.itemsize == 2:
                    parameter.loaded_dtype = FP32
            elif parameter.quant is None and parameter.dtype.itemsize == 2:
                parameter.set_dtype(FP32)
            parameter.set_trainable(False)
    if raised:
        model.notes.append(
            f"prepare_model_for_kbit_training casts those {raised:,} expert weights to fp32, 4 bytes each; "
            "--no-kbit-prepare leaves them as they were loaded"
        )


def cast_as_trl(model: ModelSpec) -> None:
    """TRL's peft_module_casting_to_bf16: norms in fp32; output head and embeddings, where they are fp32, in bf16.

    Older releases cast adapters to bf16 too, which is `--adapter-dtype`'s to say. Source: trl-casts.
    """
    for module, _, prefix in model.groups():
        for name, child in module.walk(prefix):
            for parameter in child.parameters.values():
                if parameter.role != "weight" or parameter.quant is not None:
                    continue
                if isinstance(child, LayerNorm) or "norm" in name:
                    parameter.set_dtype(FP32)
                elif parameter.dtype is FP32 and any(word in name for word in _ENDS):
                    parameter.set_dtype(BF16)
