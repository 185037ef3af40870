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
    "eight-bit-optimizers": Source(
        "Dettmers et al., 8-bit Optimizers via Block-wise Quantization",
        "arXiv:2110.02861, section 3 (quality beside 32-bit states)",
        "2021",
    ),
    "rslora": Source(
        "Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        "arXiv:2312.03732, section 3",
        "2023",
    ),
    "flash-attention-2": Source(
        "Dao, FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
        "arXiv:2307.08691, section 4.1 (flop of a pass)",
        "2023",
    ),
    "dora": Source(
        "Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation", "arXiv:2402.09353, section 4", "2024"
    ),
    "lora-plus": Source(
        "Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models", "arXiv:2402.12354, section 4", "2024"
    ),
    "lora-fa": Source(
        "Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning",
        "arXiv:2308.03303, section 3",
        "2023",
    ),
    "pissa": Source(
        "Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
        "arXiv:2404.02948, section 3",
        "2024",
    ),
    "olora": Source(
        "Buyukakyuz, OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", "arXiv:2406.01775", "2024"
    ),
    "loftq": Source(
        "Li et al., LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
        "arXiv:2310.08659, section 3",
        "2023",
    ),
    "eva": Source(
        "Paischer et al., One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
        "arXiv:2410.07170",
        "2024",
    ),
    "lora-ga": Source(
        "Wang et al., LoRA-GA: Low-Rank Adaptation with Gradient Approximation", "arXiv:2407.05000", "2024"
    ),
    "corda": Source(
        "Yang et al., CorDA: Context-Oriented Decomposition Adaptation of Large Language Models",
        "arXiv:2406.05223",
        "2024",
    ),
    "adalora": Source(
        "Zhang et al., AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "arXiv:2303.10512, section 3",
        "2023",
    ),
    "ia3": Source(
        "Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        "arXiv:2205.05638, section 3.3",
        "2022",
    ),
    "vera": Source(
        "Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation", "arXiv:2310.11454, section 3", "2023"
    ),
    "adaption-prompt": Source(
        "Zhang et al., LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention",
        "arXiv:2303.16199, section 3",
        "2023",
    ),
    "houlsby": Source(
        "Houlsby et al., Parameter-Efficient Transfer Learning for NLP", "arXiv:1902.00751, section 2", "2019"
    ),
    "pfeiffer": Source(
        "Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
        "arXiv:2005.00247, appendix A",
        "2020",
    ),
    "fourierft": Source(
        "Gao et al., Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
        "arXiv:2405.03003, section 3",
        "2024",
    ),
    "loha": Source(
        "Hyeon-Woo et al., FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
        "arXiv:2108.06098, section 2",
        "2021",
    ),
    "lokr": Source(
        "Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
        "arXiv:2309.14859, section 3",
        "2023",
    ),
    "miss": Source(
        "Kang and Yin, MiSS: Balancing LoRA Performance and Efficiency with Simple Shard Sharing",
        "arXiv:2409.15371",
        "2024",
    ),
    "oft": Source(
        "Qiu et al., Orthogonal Finetuning Made Scalable",
        "arXiv:2506.19847, section 3 (the input is turned)",
        "2025",
    ),
    "ln-tuning": Source(
        "Zhao et al., Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
        "arXiv:2312.11420",
        "2023",
    ),
    "bitfit": Source(
        "Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based "
        "Masked Language-models",
        "arXiv:2106.10199",
        "2021",
    ),
    "prompt-tuning": Source(
        "Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning",
        "arXiv:2104.08691, section 2",
        "2021",
    ),
    "prefix-tuning": Source(
        "Li and Liang, Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        "arXiv:2101.00190, section 4",
        "2021",
    ),
    "p-tuning": Source("Liu et al., GPT Understands, Too", "arXiv:2103.10385, section 3", "2021"),
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
    "roofline": Source(
        "Williams et al., Roofline: An Insightful Visual Performance Model for Multicore Architectures",
        "documentation: Communications of the ACM 52(4), doi:10.1145/1498765.1498785",
        "2009",
    ),
    "nvidia-tensor-cores": Source(
        "Rates of tensor cores by type: 8-bit products at twice the 16-bit rate",
        "documentation: NVIDIA A100 tensor core GPU architecture whitepaper, table 2",
        "2020",
    ),
    "pcie": Source(
        "PCI Express: bytes per second of a lane by generation",
        "documentation: PCI-SIG specifications 3.0 to 5.0, 8 to 32 GT/s with 128b/130b encoding",
        "2019",
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
    "torch-flop-counter": Source(
        "What torch's own counter takes for products and attention kernels; it does not see the causal mask",
        "torch/utils/flop_counter.py, mm_flop, sdpa_flop, sdpa_backward_flop_count",
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
    "peft-init": Source(
        "peft's initialisations of LoRA: which tensors they hold while they run",
        "peft/tuners/lora/layer.py, peft/utils/loftq_utils.py, peft/tuners/lora/eva.py, peft/tuners/lora/corda.py, "
        "peft/tuners/lora/loraga.py",
        _PEFT,
    ),
    "peft-trainable-tokens": Source(
        "peft's trained rows of a token table",
        "peft/tuners/trainable_tokens/layer.py",
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
    "bnb-lookup": Source(
        "Unpacking 4-bit weights by a lookup in place of comparisons: how much faster, by card",
        "csrc/kernels.cu, kDequantizeBlockwise; bitsandbytes-foundation/bitsandbytes pull requests 1746 and 1747",
        "bitsandbytes 0.48",
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
    # ---- runs and money
    "young-checkpoint": Source(
        "Young, A First Order Approximation to the Optimum Checkpoint Interval",
        "Communications of the ACM 17(9), pages 530 to 531; documentation of the formula sqrt(2 save M)",
        "1974",
    ),
    "restart-time": Source(
        "Daly, A higher order estimate of the optimum checkpoint interval for restart dumps",
        "Future Generation Computer Systems 22(3), documentation of a typical restart of 10 min in figures 3 to 5",
        "2006",
    ),
    "spot-traces": Source(
        "Wu et al., Can't Be Late: the recorded lives of spot machines behind the paper",
        "documentation and traces of skypilot-org/spot-traces: preemption/1-node/aws-04-22-2023, us-west-2b",
        "2023",
    ),
    "gcp-preemptible": Source(
        "Google's preemptible machines, which always stop after 24 hours",
        "documentation of Compute Engine, create and use preemptible VMs",
        "2026",
    ),
    "aws-gp3": Source(
        "Amazon's general-purpose disks: 125 MiB/s unless more is paid for",
        "documentation of Amazon EBS volume types, gp3",
        "2026",
    ),
    "training-power": Source(
        "Newkirk et al., Empirically-Calibrated H100 Node Power Models for AI Training Energy",
        "arXiv:2506.14551, abstract (76 % of the rating under heavy load)",
        "2025",
    ),
    "trainer-length-groups": Source(
        "Trainer's sampler that sorts by length within groups of 50 steps",
        "transformers/trainer_pt_utils.py, get_length_grouped_indices; transformers/trainer.py",
        _TRANSFORMERS,
    ),
    "trl-packing": Source(
        "TRL's packing of examples into sequences, best fit with decreasing length",
        "trl/data_utils.py, pack_dataset",
        "trl 0.29",
    ),
    "liger-kernels": Source(
        "Norms, rotary embeddings, activations and losses as one Triton kernel each",
        "liger_kernel/ops/rms_norm.py, rope.py, swiglu.py, cross_entropy.py",
        "liger-kernel 0.6",
    ),
    "liger-flce": Source(
        "Liger-Kernel's linear cross-entropy: head and loss in chunks of tokens",
        "liger_kernel/ops/fused_linear_cross_entropy.py",
        "liger-kernel 0.6",
    ),
}
