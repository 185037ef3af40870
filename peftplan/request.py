"""The request: every option of one run, its bounds, default and help, stated once.

Command-line help, JSON schema and the README's table are derived from these fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from peftplan.units import parse_count

Precision = Literal["bf16", "bf16-mixed", "bf16-master", "fp16", "fp16-mixed", "fp32"]
FloatName = Literal["fp32", "bf16", "fp16"]
AttentionName = Literal["sdpa", "flash", "eager"]
LossName = Literal["standard", "fused", "chunked"]
QuantName = Literal["none", "nf4", "fp4", "int8", "gptq", "awq", "hqq", "aqlm", "fp8", "mxfp4"]
LoopName = Literal["plain", "trainer"]
KernelsName = Literal["eager", "fused", "compiled"]
ShardingName = Literal["none", "ddp"]
EngineName = Literal["closed", "trace"]
StyleName = Literal["sft", "classification", "dpo", "orpo", "kto", "grpo"]
ReferenceName = Literal["adapter-off", "model", "precomputed"]

MAX_TOKENS = 10**8
MAX_RANK = 10**6
MAX_LABELS = 10**6
MAX_GPUS = 4096
MAX_RUN_TOKENS = 10**15
MAX_EPOCHS = 10**4
MAX_USD_PER_GPU_HOUR = 1000


def _counted(value: Any) -> Any:
    """`50M` or `2.5B` as the number it stands for; what is no text is left as it is."""
    return parse_count(value) if isinstance(value, str) else value


COUNTED = BeforeValidator(_counted)


class Request(BaseModel):
    """One fine-tuning run to be answered. Fields left out take the documented defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Annotated[
        str | dict[str, Any],
        Field(description="catalogue name or alias, config file, folder, Hub id, or a config as a mapping"),
    ]
    method: Annotated[str, Field(description="fine-tuning method: see `peftplan methods`")] = "lora"
    style: Annotated[
        StyleName,
        Field(
            description="training style: sft (the next token), classification (a score head over whole sequences), "
            "dpo and orpo (pairs with and without a reference; a micro-batch counts pairs), kto (single "
            "completions against a reference), grpo (completions that the policy generates)"
        ),
    ] = "sft"
    reference: Annotated[
        ReferenceName | None,
        Field(
            description="what a policy is held against: the base with its adapters off, a second model, or "
            "log-probabilities computed before; default adapter-off, for full fine-tuning model"
        ),
    ] = None
    num_generations: Annotated[
        int | None,
        Field(
            ge=2,
            le=MAX_TOKENS,
            strict=True,
            description="completions of each prompt under --style grpo; default as many as a step has, up to 8",
        ),
    ] = None
    prompt_len: Annotated[
        int | None,
        Field(ge=1, le=MAX_TOKENS, strict=True, description="tokens of a prompt; with --completion-len: --seq-len"),
    ] = None
    completion_len: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_TOKENS,
            strict=True,
            description="tokens of a sequence that are its completion; default half of --seq-len",
        ),
    ] = None
    num_labels: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_LABELS,
            strict=True,
            description="classes of --style classification, 1 for a regression; default 2",
        ),
    ] = None
    micro_batch: Annotated[
        int, Field(ge=1, le=MAX_TOKENS, strict=True, description="sequences in one forward pass")
    ] = 1
    seq_len: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_TOKENS,
            strict=True,
            description="tokens in a sequence; default 2048, or the model's limit if lower",
        ),
    ] = None
    padding: Annotated[
        bool, Field(description="the batch is padded: rows differ in length, so attention needs a mask")
    ] = False
    padding_free: Annotated[
        bool,
        Field(
            description="a micro-batch is one row of all its tokens, told apart by positions: TRL's padding_free, "
            "and its packing"
        ),
    ] = False
    grad_accum: Annotated[
        int, Field(ge=1, le=MAX_TOKENS, strict=True, description="micro-batches per optimizer step")
    ] = 1
    rank: Annotated[
        int, Field(ge=1, le=MAX_RANK, strict=True, description="adapter rank r; some methods start from another")
    ] = 16
    alpha: Annotated[float | None, Field(gt=0, description="adapter scaling numerator; default 2r")] = None
    dropout: Annotated[float, Field(ge=0, lt=1, description="adapter dropout probability")] = 0.0
    use_rslora: Annotated[bool, Field(description="scale by alpha over the square root of r (rsLoRA)")] = False
    targets: Annotated[
        str | list[str],
        Field(description="all-linear, attention, mlp, module names with commas, or a regex"),
    ] = "all-linear"
    bias: Annotated[
        Literal["none", "all", "lora_only"], Field(description="which biases of the base train too")
    ] = "none"
    modules_to_save: Annotated[
        list[str], Field(description="modules copied and trained whole beside the adapters")
    ] = []
    method_options: Annotated[
        dict[str, Any],
        Field(description="options of one method alone: see `peftplan methods`"),
    ] = {}
    adapter_dtype: Annotated[FloatName, Field(description="format of adapter weights (peft's default is fp32)")] = (
        "fp32"
    )
    precision: Annotated[
        Precision | None,
        Field(description="recipe; default bf16-mixed for lora and qlora, bf16 for full"),
    ] = None
    loop: Annotated[LoopName, Field(description="plain PyTorch loop, or HF Trainer's")] = "plain"
    base_dtype: Annotated[
        FloatName | None,
        Field(description="format the frozen or initial weights are loaded in; default by recipe"),
    ] = None
    quant: Annotated[
        QuantName | None,
        Field(
            description="storage of the frozen linears; default by method, or by the quantization_config of a "
            "config; none: as they were before"
        ),
    ] = None
    quant_bits: Annotated[
        Literal[1, 2, 3, 4, 8] | None, Field(description="bits of a packed weight; default 4, or what --quant has")
    ] = None
    quant_options: Annotated[
        dict[str, Any],
        Field(description="options of one quantiser alone, such as axis=0 (hqq) or codebooks=2x8 (aqlm)"),
    ] = {}
    double_quant: Annotated[bool, Field(description="quantise the block scales of 4-bit weights a second time")] = (
        True
    )
    quant_block_size: Annotated[
        Literal[32, 64, 128, 256, 512, 1024, 2048, 4096, 16, 8, -1] | None,
        Field(
            description="weights that share one scale (group size); default 64, gptq, awq and fp8 128, "
            "aqlm 8; -1: a whole row"
        ),
    ] = None
    kbit_prepare: Annotated[
        bool | None,
        Field(description="peft's prepare_model_for_kbit_training; default on for qlora"),
    ] = None
    trl_casts: Annotated[
        bool,
        Field(description="TRL's casts of a 4-bit model under bf16: output head and embeddings bf16, norms fp32"),
    ] = False
    optimizer: Annotated[
        str | None,
        Field(description="optimizer: see `peftplan optimizers`; default adamw (foreach), adamw-fused for Trainer"),
    ] = None
    optimizer_options: Annotated[
        dict[str, Any],
        Field(description="options of one optimizer alone: see `peftplan optimizers`"),
    ] = {}
    optimizer_in_backward: Annotated[
        bool,
        Field(
            description="each weight is updated as its gradient comes, by an optimizer of its own: gradients are "
            "never all there"
        ),
    ] = False
    checkpointing: Annotated[
        bool, Field(description="gradient checkpointing, per block; non-reentrant unless asked for")
    ] = True
    use_reentrant: Annotated[
        bool, Field(description="gradient checkpointing of the reentrant kind: blocks run first without a graph")
    ] = False
    keep_outputs: Annotated[
        bool,
        Field(description="a plain loop's model output stays alive through the step, because a variable names it"),
    ] = False
    attention: Annotated[AttentionName, Field(description="attention implementation")] = "sdpa"
    loss: Annotated[
        LossName, Field(description="cross-entropy: whole logits, fused with the head, or in chunks")
    ] = "standard"
    kernels: Annotated[
        KernelsName,
        Field(
            description="eager: one kernel for each operation; fused: norms, rotary embeddings and losses in one "
            "each (Triton, Liger); compiled: adapters' casts and sums too (torch.compile); changes time alone, "
            "for memory see --loss"
        ),
    ] = "eager"
    gpu: Annotated[str | None, Field(description="GPU from the catalogue; default: kernels of an A100 80GB")] = None
    gpus: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_GPUS,
            strict=True,
            description="number of GPUs; several share a step's batch (data parallel)",
        ),
    ] = 1
    sharding: Annotated[
        ShardingName,
        Field(description="how state is spread over GPUs; ddp: not at all, each holds everything"),
    ] = "none"
    tokens: Annotated[
        int | None,
        Field(ge=1, le=MAX_RUN_TOKENS, strict=True, description="tokens that the whole run trains on, such as 50M"),
        COUNTED,
    ] = None
    examples: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_RUN_TOKENS,
            strict=True,
            description="examples of the training set, such as 52k; full sequences, or as long as those of --data",
        ),
        COUNTED,
    ] = None
    data: Annotated[
        str | None,
        Field(description="training set as JSONL, CSV or Parquet: its lengths give tokens, padding and truncation"),
    ] = None
    chars_per_token: Annotated[
        float | None,
        Field(ge=0.5, le=20, description="characters in a token of --data; default 4, of Chinese or Japanese 1.2"),
    ] = None
    epochs: Annotated[
        float, Field(gt=0, le=MAX_EPOCHS, description="passes over --examples or --data; --tokens is the total")
    ] = 1.0
    packing: Annotated[
        bool, Field(description="several examples of --data share a sequence (best fit, as TRL packs)")
    ] = False
    group_by_length: Annotated[
        bool, Field(description="examples of like length share a batch, as Trainer samples with group_by_length")
    ] = False
    eval_tokens: Annotated[
        int | None,
        Field(ge=1, le=MAX_RUN_TOKENS, strict=True, description="tokens of one evaluation; default: none is run"),
        COUNTED,
    ] = None
    eval_every: Annotated[
        int | None,
        Field(ge=1, le=MAX_RUN_TOKENS, strict=True, description="steps between evaluations; default: at the end"),
        COUNTED,
    ] = None
    save_every: Annotated[
        int | None,
        Field(ge=1, le=MAX_RUN_TOKENS, strict=True, description="steps between checkpoints; default: at the end"),
        COUNTED,
    ] = None
    eval_generate: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_TOKENS,
            strict=True,
            description="tokens that an evaluation generates behind each sequence (predict_with_generate)",
        ),
    ] = None
    price: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_USD_PER_GPU_HOUR,
            description="USD per GPU-hour; default: lowest, median and highest price of the catalogue",
        ),
    ] = None
    provider: Annotated[str | None, Field(description="whose prices are taken: see `peftplan prices`")] = None
    region: Annotated[str | None, Field(description="a provider's region, such as us-east-1")] = None
    spot: Annotated[
        bool, Field(description="interruptible machines: their prices, and what interruptions cost")
    ] = False
    transformers: Annotated[
        str | None,
        Field(description="release of transformers whose behaviour is mirrored, such as 4.46; default 5.23"),
    ] = None
    peft: Annotated[str | None, Field(description="release of peft, such as 0.13; default 0.21")] = None
    bitsandbytes: Annotated[
        str | None, Field(description="release of bitsandbytes, such as 0.45; default 0.50")
    ] = None
    torch: Annotated[str | None, Field(description="release of torch, such as 2.4; default 2.13")] = None
    engine: Annotated[
        EngineName, Field(description="closed: arithmetic; trace: the real libraries on fake tensors")
    ] = "closed"


# Fields of the whole run: how long it is, and what an hour costs.
RUN_FIELDS = (
    *("tokens", "examples", "data", "chars_per_token", "epochs", "packing", "group_by_length"),
    *("eval_tokens", "eval_every", "save_every", "price", "provider", "region", "spot"),
)
_LEFT_OUT = {name: Request.model_fields[name].default for name in RUN_FIELDS}


NO_LENGTH = "no cost: the run's length is not known; --tokens, --examples or --data states it"


def states_run(request: Request) -> bool:
    """Whether anything is asked of the whole run, beyond one step."""
    return any(getattr(request, name) != value for name, value in _LEFT_OUT.items())
