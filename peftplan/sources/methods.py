"""Papers of fine-tuning methods and of how they start."""

from __future__ import annotations

from peftplan.sources.source import Source

METHODS: dict[str, Source] = {
    "lora": Source(
        "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models",
        "arXiv:2106.09685, section 4.1",
        "2021",
    ),
    "qlora": Source(
        "Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs",
        "arXiv:2305.14314, sections 2 to 4",
        "2023",
    ),
    "rslora": Source(
        "Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        "arXiv:2312.03732, section 3",
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
    "hra": Source(
        "Yuan et al., Bridging the Gap between Low-rank and Orthogonal Adaptation "
        "via Householder Reflection Adaptation",
        "arXiv:2405.17484, section 3",
        "2024",
    ),
    "road": Source(
        "Liao and Monz, 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, "
        "Efficient Batching and Composability",
        "arXiv:2409.00119, section 3",
        "2024",
    ),
    "c3a": Source(
        "Chen et al., Parameter-Efficient Fine-Tuning via Circular Convolution",
        "arXiv:2407.19342, section 3",
        "2024",
    ),
    "vblora": Source(
        "Li et al., VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
        "arXiv:2405.15179, section 3",
        "2024",
    ),
    "randlora": Source(
        "Albert et al., RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning of Large Models",
        "arXiv:2502.00987, section 4",
        "2025",
    ),
    "boft": Source(
        "Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
        "arXiv:2311.06243, section 4",
        "2023",
    ),
    "shira": Source(
        "Bhardwaj et al., Sparse High Rank Adapters",
        "arXiv:2406.13175, section 3",
        "2024",
    ),
    "p-tuning-v2": Source(
        "Liu et al., P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally "
        "Across Scales and Tasks",
        "arXiv:2110.07602, section 3",
        "2021",
    ),
    "houlsby": Source(
        "Houlsby et al., Parameter-Efficient Transfer Learning for NLP", "arXiv:1902.00751, section 2", "2019"
    ),
    "pfeiffer": Source(
        "Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
        "arXiv:2005.00247, appendix A",
        "2020",
    ),
    "gralora": Source(
        "Jung et al., GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
        "arXiv:2505.20355",
        "2025",
    ),
    "delora": Source(
        "Bini et al., DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation",
        "arXiv:2503.18225, section 2",
        "2025",
    ),
    "pvera": Source(
        "Fillioux et al., PVeRA: Probabilistic Vector-Based Random Matrix Adaptation", "arXiv:2512.07703", "2025"
    ),
    "waveft": Source(
        "Bilican et al., Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets",
        "arXiv:2505.12532",
        "2025",
    ),
    "bdlora": Source(
        "Wang et al., Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA Serving",
        "arXiv:2510.23346",
        "2025",
    ),
    "mica": Source(
        "Ruediger and Raschka, MiCA Learns More Knowledge Than LoRA and Full Fine-Tuning",
        "arXiv:2604.01694",
        "2026",
    ),
    "psoft": Source(
        "Wu et al., Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation", "arXiv:2505.11235", "2025"
    ),
    "tinylora": Source("Morris et al., Learning to Reason in 13 Parameters", "arXiv:2602.04118", "2026"),
    "unilora": Source("Li et al., Uni-LoRA: One Vector is All You Need", "arXiv:2506.00799", "2025"),
    "hira": Source(
        "Huang et al., HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models",
        "documentation: ICLR 2025, openreview.net/forum?id=TwJrTz9cRS",
        "2025",
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
    "lily": Source("Zhong et al., Low-Rank Interconnected Adaptation across Layers", "arXiv:2407.09946", "2024"),
    "peanut": Source(
        "Zhong et al., PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers",
        "arXiv:2410.01870",
        "2024",
    ),
    "deft": Source(
        "Kumar et al., DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models",
        "documentation: Advances in Neural Information Processing Systems 38, pages 102009 to 102035",
        "2025",
    ),
    "glora": Source(
        "Chavan et al., One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning",
        "arXiv:2306.07967",
        "2023",
    ),
    "adamss": Source(
        "Zheng et al., AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning",
        "documentation: Advances in Neural Information Processing Systems 38, openreview 8ZdWmpYxT0",
        "2025",
    ),
    "frod": Source(
        "Wan et al., FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees for Fast Convergence",
        "arXiv:2512.23485; Proceedings of the AAAI Conference on Artificial Intelligence 40, "
        "doi:10.1609/aaai.v40i31.39813",
        "2026",
    ),
    "multitask-prompt-tuning": Source(
        "Wang et al., Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning",
        "arXiv:2303.02861",
        "2023",
    ),
    "supertuning": Source(
        "Ilin et al., Super-Tuning: From Activation-Aware Pruning to Sparse Fine-Tuning", "arXiv:2607.09287", "2026"
    ),
    "cartridge": Source(
        "Eyuboglu et al., Cartridges: Lightweight and general-purpose long context representations via self-study",
        "arXiv:2506.06266, section 3",
        "2025",
    ),
    "cpt": Source(
        "Blau et al., Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods",
        "arXiv:2410.17222",
        "2024",
    ),
    "poly": Source("Ponti et al., Combining Modular Skills in Multitask Learning", "arXiv:2202.13914", "2022"),
    "osf": Source(
        "Nayak et al., Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
        "arXiv:2504.07097",
        "2025",
    ),
    "beft": Source(
        "Huang et al., BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data Regimes",
        "arXiv:2509.15974",
        "2025",
    ),
}
