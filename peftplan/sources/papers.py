"""Papers of arithmetic, hardware, optimizers and serving."""

from __future__ import annotations

from peftplan.sources.source import Source

PAPERS: dict[str, Source] = {
    "scaling-laws": Source(
        "Kaplan et al., Scaling Laws for Neural Language Models",
        "arXiv:2001.08361, section 2.1 and table 1",
        "2020",
    ),
    "eight-bit-optimizers": Source(
        "Dettmers et al., 8-bit Optimizers via Block-wise Quantization",
        "arXiv:2110.02861, section 3 (quality beside 32-bit states)",
        "2021",
    ),
    "flash-attention-2": Source(
        "Dao, FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
        "arXiv:2307.08691, section 4.1 (flop of a pass)",
        "2023",
    ),
    "golub-van-loan": Source(
        "Golub and Van Loan, Matrix Computations, 4th edition: flop of decompositions",
        "documentation: chapter 5 (QR) and figure 8.6.1 (singular values)",
        "2013",
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
    "punica": Source(
        "Chen et al., Punica: Multi-Tenant LoRA Serving",
        "arXiv:2310.18547, section 4 (segmented gather matrix-vector multiplication)",
        "2023",
    ),
    "s-lora": Source(
        "Sheng et al., S-LoRA: Serving Thousands of Concurrent LoRA Adapters",
        "arXiv:2311.03285, sections 4 and 5 (adapters in host memory, unified paging, ranks without padding)",
        "2023",
    ),
    "pcie": Source(
        "PCI Express: bytes per second of a lane by generation",
        "documentation: PCI-SIG specifications 3.0 to 5.0, 8 to 32 GT/s with 128b/130b encoding",
        "2019",
    ),
}
