"""Optimizers: papers, and the files of their libraries."""

from __future__ import annotations

from peftplan.sources.source import TORCH, TRANSFORMERS, Source

TORCHAO = "torchao 0.18"

OPTIMIZERS: dict[str, Source] = {
    "torch-rmsprop-adagrad": Source(
        "torch.optim.RMSprop and Adagrad: states and copies of a foreach step",
        "torch/optim/rmsprop.py, adagrad.py",
        TORCH,
    ),
    "torch-adafactor": Source(
        "torch.optim.Adafactor: factors in the gradient's type, and estimates of every weight in a foreach step",
        "torch/optim/_adafactor.py",
        TORCH,
    ),
    "muon": Source(
        "Jordan et al., Muon: An optimizer for hidden layers in neural networks",
        "documentation: https://kellerjordan.github.io/posts/muon/",
        "2024",
    ),
    "torch-muon": Source(
        "torch.optim.Muon: one momentum, five Newton-Schulz iterations in bf16", "torch/optim/_muon.py", TORCH
    ),
    "torch-in-backward": Source(
        "Optimizer steps fused into backward: a hook on each tensor behind the accumulation of its gradient",
        "PyTorch documentation, How to save memory by fusing the optimizer step into the backward pass; "
        "torch/csrc/autograd/functions/accumulate_grad.h",
        TORCH,
    ),
    "torch-svd": Source(
        "torch.linalg.svd on CUDA: cuSOLVER overwrites a copy of the matrix",
        "aten/src/ATen/native/cuda/linalg/BatchLinearAlgebraLib.cpp, svd_cusolver",
        TORCH,
    ),
    "torch-pinned": Source(
        "Pinned host memory: torch takes the next power of two",
        "aten/src/ATen/core/CachingHostAllocator.h",
        TORCH,
    ),
    "galore": Source(
        "Zhao et al., GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        "arXiv:2403.03507; galore_torch/galore_projector.py, adamw.py, adafactor.py",
        "galore-torch 1.0",
    ),
    "apollo": Source(
        "Zhu et al., APOLLO: SGD-like Memory, AdamW-level Performance",
        "arXiv:2412.05270; apollo_torch/apollo.py, random_projector.py",
        "apollo-torch 1.0.3",
    ),
    "low-rank-targets": Source(
        "transformers' groups for GaLore and APOLLO: defaults, targets, hooks of the layerwise forms",
        "transformers/trainer_optimizer.py, _setup_low_rank_optimizer",
        TRANSFORMERS,
    ),
    "adam-mini": Source(
        "Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More",
        "arXiv:2406.16793; adam_mini/adam_mini.py",
        "adam-mini 1.1.1",
    ),
    "lomo": Source(
        "Lv et al., Full Parameter Fine-tuning for Large Language Models with Limited Resources; AdaLomo",
        "arXiv:2306.09782 and arXiv:2310.10195; lomo_optim/lomo.py, adalomo.py",
        "lomo-optim 0.1.1",
    ),
    "schedule-free": Source(
        "Defazio et al., The Road Less Scheduled",
        "arXiv:2405.15682; schedulefree/adamw_schedulefree.py, radam_schedulefree.py, sgd_schedulefree.py",
        "schedulefree 1.4.1",
    ),
    "torchao-optimizers": Source(
        "torchao's AdamW in 8 bits, 4 bits and fp8: packed states, block scales, a table of codes for each state",
        "torchao/optim/adam.py, subclass_8bit.py, subclass_4bit.py, subclass_fp8.py",
        TORCHAO,
    ),
    "torchao-offload": Source(
        "torchao's CPUOffloadOptimizer: pinned weights and gradients, an optimizer on the host for each tensor",
        "torchao/optim/cpu_offload.py",
        TORCHAO,
    ),
}
