"""Files of transformers, accelerate, TRL and peft."""

from __future__ import annotations

from peftplan.sources.source import PEFT, TRANSFORMERS, Source

HUGGING_FACE: dict[str, Source] = {
    "transformers-models": Source(
        "The models' forward programs and the defaults of their configs",
        "transformers/models/*/modeling_*.py, configuration_*.py, integrations/sdpa_attention.py",
        TRANSFORMERS,
    ),
    "transformers-cache": Source(
        "Caches of keys and values: what a layer keeps, and of a window",
        "transformers/cache_utils.py, DynamicCache, DynamicSlidingWindowLayer",
        TRANSFORMERS,
    ),
    "transformers-generate": Source(
        "Generation: logits of the last position alone, brought to fp32",
        "transformers/generation/utils.py",
        TRANSFORMERS,
    ),
    "transformers-masks": Source(
        "Attention masks: when one is made, and of what",
        "transformers/masking_utils.py",
        TRANSFORMERS,
    ),
    "transformers-flash": Source(
        "What transformers hands the flash-attention package: no mask for a window, 16-bit inputs",
        "transformers/integrations/flash_attention.py, transformers/modeling_flash_attention_utils.py",
        TRANSFORMERS,
    ),
    "flash-attention": Source(
        "Dao's flash-attention package: what its autograd function saves (read, never run)",
        "flash_attn/flash_attn_interface.py, FlashAttnFunc; csrc/flash_attn/flash_api.cpp",
        "flash-attn 2.8",
    ),
    "transformers-experts": Source(
        "Experts kept as one tensor a layer, and the grouped products that run them",
        "transformers/integrations/moe.py",
        TRANSFORMERS,
    ),
    "transformers-loss": Source(
        "The losses of language models: upcast, shifted labels, no copy of the logits",
        "transformers/loss/loss_utils.py",
        TRANSFORMERS,
    ),
    "transformers-bnb": Source(
        "What a 4-bit or 8-bit load replaces, and what it leaves",
        "transformers/integrations/bitsandbytes.py, transformers/quantizers/base.py",
        TRANSFORMERS,
    ),
    "transformers-adafactor": Source(
        "transformers' Adafactor: states and temporaries of a step",
        "transformers/optimization.py",
        TRANSFORMERS,
    ),
    "transformers-trainer": Source(
        "Trainer's step: what it fetches and holds, how it scales the loss, clipping, groups of parameters",
        "transformers/trainer.py, training_step, compute_loss, create_optimizer",
        TRANSFORMERS,
    ),
    "accelerate-fp32-outputs": Source(
        "accelerate's conversion of a model's outputs to fp32 under mixed precision",
        "accelerate/utils/operations.py, convert_outputs_to_fp32",
        "accelerate 1.15",
    ),
    "peft-lora": Source(
        "peft's LoRA layers over dense, 4-bit and 8-bit linears",
        "peft/tuners/lora/layer.py, peft/tuners/lora/bnb.py",
        PEFT,
    ),
    "peft-init": Source(
        "peft's initialisations of LoRA: which tensors they hold while they run",
        "peft/tuners/lora/layer.py, peft/utils/loftq_utils.py, peft/tuners/lora/eva.py, peft/tuners/lora/corda.py, "
        "peft/tuners/lora/loraga.py",
        PEFT,
    ),
    "peft-trainable-tokens": Source(
        "peft's trained rows of a token table",
        "peft/tuners/trainable_tokens/layer.py",
        PEFT,
    ),
    "fitcheck-reserved": Source(
        "Allocated and reserved memory of 69 runs that others measured on a T4",
        "documentation: profiles/published/fitcheck_t4_reserved.csv, from fitcheck-llm's data/measurements",
        "fitcheck-llm 0.3.1",
    ),
    "pypi": Source(
        "Release dates of torch, transformers, peft and bitsandbytes",
        "documentation: the release histories of the Python Package Index",
        "2026-11",
    ),
    "transformers-seq-cls": Source(
        "Sequence classifiers: every position is scored, the last token of each sequence enters the loss",
        "transformers/modeling_layers.py, GenericForSequenceClassification; transformers/loss/loss_utils.py",
        TRANSFORMERS,
    ),
    "peft-seq-cls": Source(
        "peft's sequence classifiers: the head is saved whole, and no target",
        "peft/peft_model.py, PeftModelForSequenceClassification; peft/utils/constants.py",
        PEFT,
    ),
    "trl-log-probs": Source(
        "Log-probabilities of labels row by row, and the entropy of some rows at once",
        "trl/trainer/utils.py, selective_log_softmax, entropy_from_logits",
        "TRL 1.4",
    ),
    "trl-dpo": Source(
        "DPO: the policy's pass, then the reference's without checkpoints, whole logits, metrics, dropout off",
        "trl/trainer/dpo_trainer.py",
        "TRL 1.4",
    ),
    "trl-orpo": Source(
        "ORPO: cross-entropy of the chosen rows and odds of the pairs, from one pass",
        "trl/experimental/orpo/orpo_trainer.py",
        "TRL 1.4",
    ),
    "trl-grpo": Source(
        "GRPO: generation for a whole step at once, logits of completions scaled in place, a reference's pass",
        "trl/trainer/grpo_trainer.py",
        "TRL 1.4",
    ),
    "trl-kto": Source(
        "KTO: a pass over mismatched completions, of policy and reference, beside that over the batch",
        "trl/experimental/kto/kto_trainer.py",
        "TRL 1.4",
    ),
    "trl-casts": Source(
        "What TRL's trainers cast in a 4-bit model under bf16",
        "trl/models/utils.py, peft_module_casting_to_bf16; trl/trainer/sft_trainer.py",
        "TRL 0.7 to 0.24",
    ),
    "peft-kbit": Source(
        "peft's prepare_model_for_kbit_training",
        "peft/utils/other.py",
        PEFT,
    ),
    "peft-targets": Source(
        "How peft resolves target_modules, all-linear included",
        "peft/tuners/tuners_utils.py",
        PEFT,
    ),
    "peft-experts": Source(
        "Targets that transformers 5 turned from linears into parameters, and which parameters peft adapts",
        "peft/utils/transformers_weight_conversion.py",
        PEFT,
    ),
}
