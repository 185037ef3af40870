"""Quantisers of frozen weights: papers, and the files of their libraries that were read."""

from __future__ import annotations

from peftplan.sources.source import TRANSFORMERS, Source

QUANTIZERS: dict[str, Source] = {
    "gptq": Source(
        "Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        "arXiv:2210.17323, section 4",
        "2022",
    ),
    "awq": Source(
        "Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        "arXiv:2306.00978, section 3",
        "2023",
    ),
    "aqlm": Source(
        "Egiazarian et al., Extreme Compression of Large Language Models via Additive Quantization; the library",
        "arXiv:2401.06118, section 3; aqlm/inference.py, aqlm/inference_kernels/cuda_kernel.cpp",
        "aqlm 1.1.7",
    ),
    "hqq": Source(
        "Half-quadratic quantisation: grouping, packing, the PyTorch backend and its autograd function",
        "hqq/core/quantize.py, hqq/core/bitpack.py, hqq/core/optimize.py, hqq/models/base.py",
        "hqq 0.2.8",
    ),
    "gptqmodel": Source(
        "Linears packed by GPTQ and AWQ: buffers, which kernels train, what these dequantise",
        "gptqmodel/nn_modules/qlinear/__init__.py, torch.py, tritonv2.py, gemm_awq.py, "
        "gptqmodel/utils/importer.py, gptqmodel_ext/awq/quantization/gemm_cuda_gen.cu; "
        "optimum 2.3 gptq/quantizer.py",
        "gptqmodel 7.7",
    ),
    "transformers-quantizers": Source(
        "Which modules each quantiser converts, what it dequantises while loading, and which bases train",
        "transformers/quantizers/base.py, quantizers_utils.py, auto.py, quantizer_*.py",
        TRANSFORMERS,
    ),
    "transformers-fp8": Source(
        "Linears and experts in fp8 with scales of blocks: storage, products, the backward of a frozen weight",
        "transformers/integrations/finegrained_fp8.py, transformers/integrations/deepgemm.py",
        TRANSFORMERS,
    ),
    "transformers-mxfp4": Source(
        "gpt-oss's experts in mxfp4: storage, and dequantising them while loading",
        "transformers/integrations/mxfp4.py",
        TRANSFORMERS,
    ),
    "deepseek-v3": Source(
        "DeepSeek-AI, DeepSeek-V3 Technical Report (blocks of 128 x 128 with a scale each)",
        "arXiv:2412.19437, section 3.3",
        "2024",
    ),
    "mxfp4": Source(
        "Rouhani et al., Microscaling Data Formats for Deep Learning",
        "arXiv:2310.10537",
        "2023",
    ),
}
