"""Where the numbers come from: papers and library files, cited by key.

A formula cites a key, or names the library file whose behaviour it mirrors; that file then stands in
`where` below, with the version it was read in. Measurements and catalogue records carry their own source.
"""

from __future__ import annotations

from dataclasses import dataclass

_TORCH = "torch 2.13"
_TRANSFORMERS = "transformers 5.23"
_PEFT = "peft 0.21"
_BITSANDBYTES = "bitsandbytes 0.50"


@dataclass(frozen=True, slots=True)
class Source:
    """One source: `where` is a paper's identifier and section, or the files that were read."""

    title: str
    where: str
    version: str  # a library's version, or a paper's year


SOURCES: dict[str, Source] = {
    # ---- papers
    "lora": Source(
        "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models",
        "arXiv:2106.09685, section 4.1",
        "2021",
    ),
    "scaling-laws": Source(
        "Kaplan et al., Scaling Laws for Neural Language Models",
        "arXiv:2001.08361, section 2.1 and table 1",
        "2020",
    ),
    "qlora": Source(
        "Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs",
        "arXiv:2305.14314, sections 2 and 3",
        "2023",
    ),
    "rslora": Source(
        "Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        "arXiv:2312.03732, section 3",
        "2023",
    ),
    "mixed-precision": Source(
        "Micikevicius et al., Mixed Precision Training",
        "arXiv:1710.03740, section 3.1 (fp32 master copy of weights)",
        "2017",
    ),
    "adafactor": Source(
        "Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
        "arXiv:1804.04235, section 3 (factored second moment)",
        "2018",
    ),
    "lion": Source(
        "Chen et al., Symbolic Discovery of Optimization Algorithms",
        "arXiv:2302.06675, algorithm 2",
        "2023",
    ),
    # ---- torch
    "torch-autograd": Source(
        "PyTorch's autograd engine: order of backward, where gradients meet, when saved tensors go",
        "torch/csrc/autograd/engine.cpp, input_buffer.cpp, functions/accumulate_grad.h",
        _TORCH,
    ),
    "torch-derivatives": Source(
        "PyTorch's backward formulas: what each operation saves and allocates",
        "tools/autograd/derivatives.yaml, torch/csrc/autograd/FunctionsManual.cpp, "
        "aten/src/ATen/native/LossNLL.cpp, aten/src/ATen/native/cuda/SoftMax.cu",
        _TORCH,
    ),
    "torch-parametrize": Source(
        "PyTorch's parametrized weights: computed once to be checked, once when they are used",
        "torch/nn/utils/parametrize.py",
        _TORCH,
    ),
    "torch-checkpoint": Source(
        "PyTorch's activation checkpointing, of both kinds",
        "torch/utils/checkpoint.py",
        _TORCH,
    ),
    "torch-autocast": Source(
        "PyTorch's autocast: lists of operations, and the cache of cast weights",
        "aten/src/ATen/autocast_mode.cpp",
        _TORCH,
    ),
    "nvml": Source(
        "NVIDIA Management Library, the API behind nvidia-smi",
        "documentation: nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetTotalEnergyConsumption",
        "nvidia-ml-py 12",
    ),
    "torch-allocator": Source(
        "PyTorch's caching allocator: rounding to 512 bytes, blocks and segments",
        "c10/cuda/CUDACachingAllocator.cpp",
        _TORCH,
    ),
    "torch-snapshot": Source(
        "Memory snapshots of PyTorch: their keys, and what the visualiser can read",
        "torch/cuda/_memory_viz.py, torch/csrc/cuda/memory_snapshot.cpp, torch/utils/viz/MemoryViz.js",
        _TORCH,
    ),
    "torch-sdpa": Source(
        "scaled_dot_product_attention on CUDA: choice of kernel, saved tensors, workspaces",
        "aten/src/ATen/native/transformers/attention.cpp, cuda/sdp_utils.cpp, cuda/flash_attn/flash_api.cpp",
        _TORCH,
    ),
    "torch-efficient-attention": Source(
        "The memory-efficient attention kernel: tiles, accumulators, what it saves",
        "aten/src/ATen/native/transformers/cuda/attention.cu, attention_backward.cu, "
        "mem_eff_attention/kernel_forward.h, kernel_backward.h, kernels/generate_kernels.py",
        _TORCH,
    ),
    "torch-embedding": Source(
        "The gradient of an embedding table: indices sorted, rows added up in fp32",
        "aten/src/ATen/native/cuda/Embedding.cu, EmbeddingBackwardKernel.cu",
        _TORCH,
    ),
    "torch-reductions": Source(
        "Sums on CUDA: how many blocks share a result, and the buffer they share it through",
        "aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig, global_memory_size",
        _TORCH,
    ),
    "torch-layer-norm": Source(
        "Gradients of layer norm's and rms_norm's weights",
        "aten/src/ATen/native/cuda/layer_norm_kernel.cu, LaunchGammaBetaBackwardCUDAKernel",
        _TORCH,
    ),
    "torch-softmax": Source(
        "The backward pass of softmax: gradient times result is made first",
        "aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out",
        _TORCH,
    ),
    "torch-sort": Source(
        "Sorts and scans through CUB, and gradients that are put back by sorted indices",
        "aten/src/ATen/cuda/cub.cuh, cub-RadixSortPairs.cuh, aten/src/ATen/native/cuda/SortStable.cu, Indexing.cu, "
        "index_put_with_sort_kernel",
        _TORCH,
    ),
    "torch-indexing": Source(
        "Indexing by tensors: masks turned into indices, one-hot tensors filled in place",
        "aten/src/ATen/native/IndexingUtils.h, TensorAdvancedIndexing.cpp, Onehot.cpp, cuda/IndexKernel.cpp",
        _TORCH,
    ),
    "torch-foreach": Source(
        "Multi-tensor kernels: what foreach norms and optimizers allocate on the device",
        "aten/src/ATen/native/ForeachUtils.h, cuda/ForeachReduceOp.cu, MultiTensorApply.cuh, fused_adamw_impl.cuh",
        _TORCH,
    ),
    "torch-ddp": Source(
        "DistributedDataParallel: gradients in buckets, cut anew after the first step",
        "torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp",
        _TORCH,
    ),
    "nccl-buffers": Source(
        "NCCL: buffers of a connection by protocol, channels of a communicator",
        "https://github.com/NVIDIA/nccl, src/include/device.h; issues 864 and 986",
        "2.27, read 2026-11",
    ),
    "torch-grouped-mm": Source(
        "Grouped matrix products: one product a group before Hopper, CUTLASS from Hopper on",
        "aten/src/ATen/native/GroupedMMUtils.h, aten/src/ATen/native/cuda/GroupedBlas.cpp, GroupMM.cu",
        _TORCH,
    ),
    "cudnn-frontend": Source(
        "cuDNN's attention: the tensors that its frontend places in the workspace of the backward pass",
        "include/cudnn_frontend/node/scaled_dot_product_flash_attention.h",
        "cudnn-frontend 1.x for cuDNN 9.20",
    ),
    "cuda-generations": Source(
        "GPU generations: multiprocessors of their cards, threads that fit on one",
        "NVIDIA documentation: CUDA programming guide, compute capabilities; the cards' data sheets",
        "CUDA 13",
    ),
    "torch-matmul": Source(
        "matmul of tensors with batch and heads: folded into one batch, copied where the layout forbids it",
        "aten/src/ATen/native/LinearAlgebra.cpp",
        _TORCH,
    ),
    "torch-adamw": Source(
        "torch.optim.AdamW: states, foreach and fused steps",
        "torch/optim/adamw.py, torch/optim/adam.py",
        _TORCH,
    ),
    "torch-sgd": Source("torch.optim.SGD", "torch/optim/sgd.py", _TORCH),
    "cublas-workspace": Source(
        "cuBLAS workspaces that PyTorch allocates for each handle and stream",
        "aten/src/ATen/cuda/CublasHandlePool.cpp, CUDABlas.cpp; "
        "NVIDIA cuBLAS documentation, CUBLAS_WORKSPACE_CONFIG",
        _TORCH,
    ),
    "cuda-context": Source(
        "Device memory of a process outside PyTorch's allocator: CUDA context, kernels, libraries",
        "PyTorch documentation, Understanding CUDA Memory Usage (what its allocator cannot see)",
        _TORCH,
    ),
    "fitcheck-t4": Source(
        "Measured fine-tuning runs on a Tesla T4: process memory beside torch's reserved memory, 79 runs",
        "fitcheck-llm 0.3.1 (MIT), documentation of its data/measurements",
        "2026-09",
    ),
    # ---- transformers and accelerate
    "transformers-models": Source(
        "The models' forward programs and the defaults of their configs",
        "transformers/models/*/modeling_*.py, configuration_*.py, integrations/sdpa_attention.py",
        _TRANSFORMERS,
    ),
    "transformers-masks": Source(
        "Attention masks: when one is made, and of what",
        "transformers/masking_utils.py",
        _TRANSFORMERS,
    ),
    "transformers-flash": Source(
        "What transformers hands the flash-attention package: no mask for a window, 16-bit inputs",
        "transformers/integrations/flash_attention.py, transformers/modeling_flash_attention_utils.py",
        _TRANSFORMERS,
    ),
    "flash-attention": Source(
        "Dao's flash-attention package: what its autograd function saves (read, never run)",
        "flash_attn/flash_attn_interface.py, FlashAttnFunc; csrc/flash_attn/flash_api.cpp",
        "flash-attn 2.8",
    ),
    "transformers-experts": Source(
        "Experts kept as one tensor a layer, and the grouped products that run them",
        "transformers/integrations/moe.py",
        _TRANSFORMERS,
    ),
    "transformers-loss": Source(
        "The losses of language models: upcast, shifted labels, no copy of the logits",
        "transformers/loss/loss_utils.py",
        _TRANSFORMERS,
    ),
    "transformers-bnb": Source(
        "What a 4-bit or 8-bit load replaces, and what it leaves",
        "transformers/integrations/bitsandbytes.py, transformers/quantizers/base.py",
        _TRANSFORMERS,
    ),
    "transformers-adafactor": Source(
        "transformers' Adafactor: states and temporaries of a step",
        "transformers/optimization.py",
        _TRANSFORMERS,
    ),
    "transformers-trainer": Source(
        "Trainer's step: what it fetches and holds, how it scales the loss, clipping, groups of parameters",
        "transformers/trainer.py, training_step, compute_loss, create_optimizer",
        _TRANSFORMERS,
    ),
    "accelerate-fp32-outputs": Source(
        "accelerate's conversion of a model's outputs to fp32 under mixed precision",
        "accelerate/utils/operations.py, convert_outputs_to_fp32",
        "accelerate 1.15",
    ),
    # ---- peft
    "peft-lora": Source(
        "peft's LoRA layers over dense, 4-bit and 8-bit linears",
        "peft/tuners/lora/layer.py, peft/tuners/lora/bnb.py",
        _PEFT,
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
    "trl-casts": Source(
        "What TRL's trainers cast in a 4-bit model under bf16",
        "trl/models/utils.py, peft_module_casting_to_bf16; trl/trainer/sft_trainer.py",
        "TRL 0.7 to 0.24",
    ),
    "peft-kbit": Source(
        "peft's prepare_model_for_kbit_training",
        "peft/utils/other.py",
        _PEFT,
    ),
    "peft-targets": Source(
        "How peft resolves target_modules, all-linear included",
        "peft/tuners/tuners_utils.py",
        _PEFT,
    ),
    "peft-experts": Source(
        "Targets that transformers 5 turned from linears into parameters, and which parameters peft adapts",
        "peft/utils/transformers_weight_conversion.py",
        _PEFT,
    ),
    # ---- bitsandbytes and kernels
    "bnb-4bit": Source(
        "4-bit weights: packing, double quantisation, the matrix product and its backward",
        "bitsandbytes/functional.py, quantize_4bit, dequantize_4bit; "
        "bitsandbytes/autograd/_functions.py, MatMul4Bit; bitsandbytes/backends/cuda/ops.py, gemm_4bit",
        _BITSANDBYTES,
    ),
    "bnb-int8": Source(
        "8-bit weights: row scales, the matrix product and what its graph node holds",
        "bitsandbytes/nn/modules.py, Int8Params; bitsandbytes/autograd/_functions.py, MatMul8bitLt",
        _BITSANDBYTES,
    ),
    "bnb-optimizers": Source(
        "8-bit, paged and 32-bit optimizers: states, block scales, small tensors kept in fp32",
        "bitsandbytes/optim/optimizer.py, adamw.py, lion.py",
        _BITSANDBYTES,
    ),
    "torch-fake-tensors": Source(
        "PyTorch's fake tensors: what they and their cache compare, and the device they pretend",
        "torch/_subclasses/fake_tensor.py, aten/src/ATen/detail/AcceleratorHooksInterface.h, "
        "c10/core/impl/DeviceGuardImplInterface.h",
        _TORCH,
    ),
    "chunked-cross-entropy": Source(
        "torchtune's cross-entropy in pieces of the sequence, each upcast and reduced by itself",
        "torchtune/modules/loss/cross_entropy_loss.py",
        "torchtune 0.6",
    ),
    "liger-flce": Source(
        "Liger-Kernel's linear cross-entropy: head and loss in chunks of tokens",
        "liger_kernel/ops/fused_linear_cross_entropy.py",
        "liger-kernel 0.6",
    ),
}
