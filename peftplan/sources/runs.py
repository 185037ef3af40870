"""What runs take and cost beside their steps."""

from __future__ import annotations

from peftplan.sources.source import TRANSFORMERS, Source

RUNS: dict[str, Source] = {
    "peft-comparison": Source(
        "The method comparison of peft: how it takes batches, empties the cache and samples memory",
        "documentation and programs of huggingface/peft, method_comparison/MetaMathQA: run.py, utils.py, data.py",
        "2026",
    ),
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
        "Wu et al., Can't Be Late: Optimizing Spot Instance Savings under Deadlines; the recorded lives behind it",
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
        "Newkirk et al., Empirically-Calibrated H100 Node Power Models for Reducing Uncertainty in "
        "AI Training Energy Estimation",
        "arXiv:2506.14551, abstract (76 % of the rating under heavy load)",
        "2025",
    ),
    "trainer-length-groups": Source(
        "Trainer's sampler that sorts by length within groups of 50 steps",
        "transformers/trainer_pt_utils.py, get_length_grouped_indices; transformers/trainer.py",
        TRANSFORMERS,
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
