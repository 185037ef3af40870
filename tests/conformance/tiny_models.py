"""Models of two blocks and 64 channels, of each kind of architecture, and jobs for them on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peftplan.measure.trace.job import Job, Quantization

_SHORT = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 256}
_LLAMA = {**_SHORT, "hidden_size": 64, "intermediate_size": 160}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "model_type": "llama", "num_key_value_heads": 4},
    "llama-gqa": {**_LLAMA, "model_type": "llama", "num_key_value_heads": 2},
    "llama-tied": {**_LLAMA, "model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "mixtral": {**_LLAMA, "model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 96},
    "opt": {**_SHORT, "model_type": "opt", "hidden_size": 64, "ffn_dim": 160, "word_embed_proj_dim": 64},
    "bert": {**_LLAMA, "model_type": "bert", "architectures": ["BertForMaskedLM"]},
    "t5": {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 160,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 96,
        "decoder_start_token_id": 0,
    },
}

# Wide enough for blocks and ranks: a Llama with fewer heads of keys than of queries, and a GPT-2.
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 256,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "vocab_size": 4096,
}


def tiny_job(family: str = "llama-gqa", method: str = "full", **changes: Any) -> Job:
    """A job on the CPU: `full`, or `lora`, or the name of a quantisation for LoRA on a packed base."""
    packed = None if method in ("full", "lora") else Quantization(method, 64, True)
    adapters = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": "all-linear"}
    job = Job(
        config=CONFIGS[family],
        peft=None if method == "full" else adapters,
        base_dtype="fp32" if method == "full" else "bf16",
        adapter_dtype="fp32",
        autocast=None,
        quantization=packed,
        kbit_prepare=False,
        master_weights=False,
        micro_batch=1,
        seq_len=64,
        padding=False,
        num_micro_steps=1,
        checkpointing=False,
        use_reentrant=False,
        attention="sdpa",
        loss="standard",
        trainer=False,
        optimizer="adamw",
        compute_capability=(8, 0),
        device="cpu",
    )
    return replace(job, **changes)
