"""What the child process is told to run: plain values, written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

# What is said of a trace that had no fake CUDA tensors.
META_CANNOT_SEE = (
    "this process has no fake CUDA device ({reason}), so the trace ran on meta tensors: it sees no autocast casts, "
    "takes dropout's mask for a tensor of the input's type, and breaks up operations that have no meta kernel"
)


# What is done in the place of training: adapters are merged, or a packed model is unpacked.
MERGE, UNPACK = "merge", "unpack"


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the frozen linears are packed."""

    kind: str  # nf4 | fp4 | int8 by bitsandbytes; hqq | fp8
    block_size: int
    double_quant: bool
    bits: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    compute_capability: tuple[int, int] = (8, 0)
    skips: tuple[str, ...] = ()  # modules that the checkpoint leaves dense


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a model, resolved: nothing is left to default."""

    config: dict[str, Any]
    peft: dict[str, Any] | None  # a peft config by its own field names, `peft_type` among them; None: full
    base_dtype: str  # fp32 | bf16 | fp16
    adapter_dtype: str
    autocast: str | None
    quantization: Quantization | None
    kbit_prepare: bool
    master_weights: bool
    micro_batch: int
    seq_len: int
    padding: bool
    num_micro_steps: int  # micro-batches that are run before each optimizer step
    checkpointing: bool
    use_reentrant: bool
    attention: str  # sdpa | flash | eager
    loss: str  # standard | fused | chunked
    trainer: bool
    optimizer: str
    compute_capability: tuple[int, int]
    num_layers: int | None = None  # cut to so many layers
    num_steps: int = 2
    num_batches: int = 1  # micro-batches that lie on the device together
    trl_casts: bool = False  # what TRL casts in a 4-bit model under bf16
    data_parallel: bool = False  # several GPUs sum their gradients
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    optimizer_in_backward: bool = False  # each weight has an optimizer of its own, which steps in backward
    keep_outputs: bool = False  # a variable names the model's output until the step ends
    style: str = "sft"  # what the batch is, and what is made of the model's output
    num_labels: int = 2
    rows: int = 1  # of the batch, for one that micro_batch counts
    reference: str = "none"  # none | adapter-off | model | precomputed
    completion_len: int = 0  # the last tokens of a row
    padding_free: bool = False  # the batch is one row, its sequences told by their positions
    device: str = "cuda"  # cuda: fake CUDA tensors; meta: where these cannot be had; cpu: fake CPU tensors
    freezes: tuple[str, ...] = ()  # parts of names: what of the adapters does not train
    trained: str = ""  # regular expression of names: what alone trains, where there are no adapters
    # rank, alpha, dropout, targets, bias and modules_to_save for a method whose config was not given
    peft_hints: dict[str, Any] = field(default_factory=dict)
    attention_targets: tuple[str, ...] = field(default=())  # module names that `attention` and `mlp` stand for
    mlp_targets: tuple[str, ...] = field(default=())
    after: str = ""  # what is done instead of training: MERGE or UNPACK
    safe_merge: bool = False  # peft looks for NaNs

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        if fields["quantization"] is not None:
            packed = fields["quantization"]
            packed.update({name: tuple(packed[name]) for name in ("compute_capability", "skips")})
            fields["quantization"] = Quantization(**packed)
        for name in ("compute_capability", "attention_targets", "mlp_targets", "freezes"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
