"""Files of bitsandbytes, kernels, and measurements of others."""

from __future__ import annotations

from peftplan.sources.source import BITSANDBYTES, TORCH, Source

KERNELS: dict[str, Source] = {
    "bnb-4bit": Source(
        "4-bit weights: packing, double quantisation, the matrix product and its backward",
        "bitsandbytes/functional.py, quantize_4bit, dequantize_4bit; "
        "bitsandbytes/autograd/_functions.py, MatMul4Bit; bitsandbytes/backends/cuda/ops.py, gemm_4bit",
        BITSANDBYTES,
    ),
    "bnb-lookup": Source(
        "Unpacking 4-bit weights by a lookup in place of comparisons: how much faster, by card",
        "csrc/kernels.cu, kDequantizeBlockwise; bitsandbytes-foundation/bitsandbytes pull requests 1746 and 1747",
        "bitsandbytes 0.48",
    ),
    "bnb-int8": Source(
        "8-bit weights: row scales, the matrix product and what its graph node holds",
        "bitsandbytes/nn/modules.py, Int8Params; bitsandbytes/autograd/_functions.py, MatMul8bitLt",
        BITSANDBYTES,
    ),
    "bnb-optimizers": Source(
        "8-bit, paged and 32-bit optimizers: states, block scales, small tensors kept in fp32",
        "bitsandbytes/optim/optimizer.py, adamw.py, lion.py",
        BITSANDBYTES,
    ),
    "torch-fake-tensors": Source(
        "PyTorch's fake tensors: what they and their cache compare, and the device they pretend",
        "torch/_subclasses/fake_tensor.py, aten/src/ATen/detail/AcceleratorHooksInterface.h, "
        "c10/core/impl/DeviceGuardImplInterface.h",
        TORCH,
    ),
    "marlin": Source(
        "Marlin: products with 4-bit weights at their bandwidth, 3.87 times as fast up to 16 or 32 rows",
        "documentation and kernel of IST-DASLab/marlin, marlin_cuda_kernel.cu",
        "2024",
    ),
    "vllm-lora": Source(
        "vLLM's adapters: places of one rank on the device, gathered beside linears and beside experts",
        "vllm/config/lora.py, LoRAConfig; vllm/lora/ops/triton_ops/lora_shrink_op.py, lora_expand_op.py, "
        "fused_moe_lora_op.py",
        "vLLM 0.12",
    ),
    "vllm-kv-cache": Source(
        "vLLM's pool of keys and values: blocks, latents, blocks that a window touches",
        "vllm/v1/kv_cache_interface.py, MLAAttentionSpec, SlidingWindowSpec",
        "vLLM 0.12",
    ),
    "chunked-cross-entropy": Source(
        "torchtune's cross-entropy in pieces of the sequence, each upcast and reduced by itself",
        "torchtune/modules/loss/ce_chunked_output_loss.py",
        "torchtune 0.6",
    ),
}
