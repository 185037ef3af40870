"""What the advice of `catalog/guidance.json` rests on, beside papers that stand elsewhere."""

from __future__ import annotations

from peftplan.sources.source import PEFT, Source

ADVICE: dict[str, Source] = {
    "lora-learns-less": Source(
        "Biderman et al., LoRA Learns Less and Forgets Less", "arXiv:2405.09673, abstract and section 4", "2024"
    ),
    "lora-without-regret": Source(
        "Schulman et al., LoRA Without Regret",
        "documentation: https://thinkingmachines.ai/blog/lora/, doi:10.64434/tml.20250929",
        "2025",
    ),
    "lora-without-regret-trl": Source(
        "TRL's guide to LoRA Without Regret: ranks by task, batch sizes, learning rates of its repetition",
        "documentation of TRL, docs/source/lora_without_regret.md",
        "2025",
    ),
    "rank-one-replication": Source(
        "Marie, Tiny Recursive Models for Very Specific Problems: on rank-1 GRPO and how it was repeated",
        "documentation: https://kaitchup.substack.com/p/tiny-recursive-models-for-very-specific",
        "2025",
    ),
    "qlora-code": Source(
        "The authors' code of QLoRA: learning rate of large models, NF4, instability in fp16",
        "documentation: README.md of https://github.com/artidoro/qlora",
        "2023",
    ),
    "peft-lora-defaults": Source("Defaults of LoraConfig", "peft/tuners/lora/config.py, LoraConfig", PEFT),
}
