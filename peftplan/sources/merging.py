"""Merging adapters, files on disk, and what practitioners say of both."""

from __future__ import annotations

from peftplan.sources.source import PEFT, TORCH, TRANSFORMERS, Source

MERGING: dict[str, Source] = {
    "peft-merge": Source(
        "peft's merge_and_unload, and what each layer does in it",
        "peft/tuners/tuners_utils.py, _unload_and_optionally_merge; peft/tuners/lora/layer.py, bnb.py, variants.py "
        "and the layer.py of the other methods; peft/utils/quantization_utils.py",
        PEFT,
    ),
    "peft-save": Source(
        "Names and tensors of a saved adapter",
        "peft/utils/save_and_load.py, get_peft_model_state_dict; peft/peft_model.py, save_pretrained",
        PEFT,
    ),
    "transformers-save": Source(
        "save_pretrained: shards of 50 GB at most, each brought to the host whole",
        "transformers/modeling_utils.py, save_pretrained; huggingface_hub/serialization/_base.py; "
        "safetensors/torch.py, _flatten_as_ptr",
        TRANSFORMERS,
    ),
    "transformers-dequantize": Source(
        "How transformers unpacks a model that bitsandbytes packed",
        "transformers/integrations/bitsandbytes.py, dequantize_and_replace",
        TRANSFORMERS,
    ),
    "transformers-trainer-checkpoint": Source(
        "What Trainer saves to go on from: model or adapter, optimizer, scheduler, random state",
        "transformers/trainer.py, _save_checkpoint, _save_optimizer_and_scheduler, _save_rng_state",
        TRANSFORMERS,
    ),
    "safetensors-format": Source(
        "safetensors: a header's length, the header as JSON padded to eight bytes, the tensors, wide types first",
        "documentation of the format, https://huggingface.co/docs/safetensors; safetensors/src/tensor.rs",
        "0.8",
    ),
    "torch-mixed-types": Source(
        "Elementwise operations on tensors of several types: the host casts operands first, CUDA as it reads",
        "aten/src/ATen/TensorIterator.cpp, compute_types; aten/src/ATen/native/Copy.cpp",
        TORCH,
    ),
    "merge-unpacked": Source(
        "Marie, Don't Let QLoRA Merging Undo Your Fine-Tuning Work: merge into the unpacked base; peft's rounding",
        "documentation: https://kaitchup.substack.com/p/qlora-merging-pitfalls-dont-lose; "
        "huggingface/peft issues 2105 and 2321",
        "2025",
    ),
    "merge-original": Source(
        "Unsloth: merging into the original 16-bit weights, and where what packing lost outweighs the adapter",
        "documentation: unslothai/unsloth-zoo pull request 810",
        "2026-06",
    ),
}
