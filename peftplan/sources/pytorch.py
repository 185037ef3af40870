"""Files of torch, and what it runs on."""

from __future__ import annotations

from peftplan.sources.source import TORCH, Source

PYTORCH: dict[str, Source] = {
    "torch-autograd": Source(
        "PyTorch's autograd engine: order of backward, where gradients meet, when saved tensors go",
        "torch/csrc/autograd/engine.cpp, input_buffer.cpp, functions/accumulate_grad.h",
        TORCH,
    ),
    "torch-derivatives": Source(
        "PyTorch's backward formulas: what each operation saves and allocates",
        "tools/autograd/derivatives.yaml, torch/csrc/autograd/FunctionsManual.cpp, "
        "aten/src/ATen/native/LossNLL.cpp, aten/src/ATen/native/cuda/SoftMax.cu",
        TORCH,
    ),
    "torch-parametrize": Source(
        "PyTorch's parametrized weights: computed once to be checked, once when they are used",
        "torch/nn/utils/parametrize.py",
        TORCH,
    ),
    "torch-checkpoint": Source(
        "PyTorch's activation checkpointing, of both kinds",
        "torch/utils/checkpoint.py",
        TORCH,
    ),
    "torch-autocast": Source(
        "PyTorch's autocast: lists of operations, and the cache of cast weights",
        "aten/src/ATen/autocast_mode.cpp",
        TORCH,
    ),
    "nvml": Source(
        "NVIDIA Management Library, the API behind nvidia-smi",
        "documentation: nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetTotalEnergyConsumption",
        "nvidia-ml-py 12",
    ),
    "torch-allocator": Source(
        "PyTorch's caching allocator: rounding to 512 bytes, blocks and segments",
        "c10/cuda/CUDACachingAllocator.cpp",
        TORCH,
    ),
    "torch-snapshot": Source(
        "Memory snapshots of PyTorch: their keys, and what the visualiser can read",
        "torch/cuda/_memory_viz.py, torch/csrc/cuda/memory_snapshot.cpp, torch/utils/viz/MemoryViz.js",
        TORCH,
    ),
    "torch-sdpa": Source(
        "scaled_dot_product_attention on CUDA: choice of kernel, saved tensors, workspaces",
        "aten/src/ATen/native/transformers/attention.cpp, cuda/sdp_utils.cpp, cuda/flash_attn/flash_api.cpp",
        TORCH,
    ),
    "torch-efficient-attention": Source(
        "The memory-efficient attention kernel: tiles, accumulators, what it saves",
        "aten/src/ATen/native/transformers/cuda/attention.cu, attention_backward.cu, "
        "mem_eff_attention/kernel_forward.h, kernel_backward.h, kernels/generate_kernels.py",
        TORCH,
    ),
    "torch-embedding": Source(
        "The gradient of an embedding table: indices sorted, rows added up in fp32",
        "aten/src/ATen/native/cuda/Embedding.cu, EmbeddingBackwardKernel.cu",
        TORCH,
    ),
    "torch-reductions": Source(
        "Sums on CUDA: how many blocks share a result, and the buffer they share it through",
        "aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig, global_memory_size",
        TORCH,
    ),
    "torch-layer-norm": Source(
        "Gradients of layer norm's and rms_norm's weights",
        "aten/src/ATen/native/cuda/layer_norm_kernel.cu, LaunchGammaBetaBackwardCUDAKernel",
        TORCH,
    ),
    "torch-softmax": Source(
        "The backward pass of softmax: gradient times result is made first",
        "aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out",
        TORCH,
    ),
    "torch-log-sum-exp": Source(
        "logsumexp: a copy less each row's maximum, in the type it has",
        "aten/src/ATen/native/ReduceOps.cpp, logsumexp_out_impl",
        TORCH,
    ),
    "torch-sort": Source(
        "Sorts and scans through CUB, and gradients that are put back by sorted indices",
        "aten/src/ATen/cuda/cub.cuh, cub-RadixSortPairs.cuh, aten/src/ATen/native/cuda/SortStable.cu, Indexing.cu, "
        "index_put_with_sort_kernel",
        TORCH,
    ),
    "torch-indexing": Source(
        "Indexing by tensors: masks turned into indices, one-hot tensors filled in place",
        "aten/src/ATen/native/IndexingUtils.h, TensorAdvancedIndexing.cpp, Onehot.cpp, cuda/IndexKernel.cpp",
        TORCH,
    ),
    "torch-flop-counter": Source(
        "What torch's own counter takes for products and attention kernels; it does not see the causal mask",
        "torch/utils/flop_counter.py, mm_flop, sdpa_flop, sdpa_backward_flop_count",
        TORCH,
    ),
    "torch-foreach": Source(
        "Multi-tensor kernels: what foreach norms and optimizers allocate on the device",
        "aten/src/ATen/native/ForeachUtils.h, cuda/ForeachReduceOp.cu, MultiTensorApply.cuh, fused_adamw_impl.cuh",
        TORCH,
    ),
    "torch-ddp": Source(
        "DistributedDataParallel: gradients in buckets, cut anew after the first step",
        "torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp",
        TORCH,
    ),
    "nccl-buffers": Source(
        "NCCL: buffers of a connection by protocol, channels of a communicator",
        "https://github.com/NVIDIA/nccl, src/include/device.h; issues 864 and 986",
        "2.27, read 2026-11",
    ),
    "torch-lowrank": Source(
        "Singular vectors by subspace iteration from random columns",
        "torch/_lowrank.py",
        TORCH,
    ),
    "torch-sparse": Source(
        "Sparse tensors: added to dense ones, and dense ones picked from where a sparse one has values",
        "aten/src/ATen/native/sparse/SparseTensor.cpp, SparseTensorMath.cpp, cuda/SparseCUDATensorMath.cu",
        TORCH,
    ),
    "torch-grouped-mm": Source(
        "Grouped matrix products: one product a group before Hopper, CUTLASS from Hopper on",
        "aten/src/ATen/native/GroupedMMUtils.h, aten/src/ATen/native/cuda/GroupedBlas.cpp, GroupMM.cu",
        TORCH,
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
        TORCH,
    ),
    "torch-adamw": Source(
        "torch.optim.AdamW: states, foreach and fused steps",
        "torch/optim/adamw.py, torch/optim/adam.py",
        TORCH,
    ),
    "torch-sgd": Source("torch.optim.SGD", "torch/optim/sgd.py", TORCH),
    "cublas-workspace": Source(
        "cuBLAS workspaces that PyTorch allocates for each handle and stream",
        "aten/src/ATen/cuda/CublasHandlePool.cpp, CUDABlas.cpp; "
        "NVIDIA cuBLAS documentation, CUBLAS_WORKSPACE_CONFIG",
        TORCH,
    ),
    "cuda-context": Source(
        "Device memory of a process outside PyTorch's allocator: CUDA context, kernels, libraries",
        "PyTorch documentation, Understanding CUDA Memory Usage (what its allocator cannot see)",
        TORCH,
    ),
    "fitcheck-t4": Source(
        "Measured fine-tuning runs on a Tesla T4: process memory beside torch's reserved memory, 79 runs",
        "fitcheck-llm 0.3.1 (MIT), documentation of its data/measurements",
        "2026-09",
    ),
}
