"""What is asked of a server, beside the model, the method and the GPU, which stand in a `Request`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from peftplan.errors import BadInput
from peftplan.request import COUNTED, MAX_RANK, MAX_TOKENS, Request
from peftplan.units import parse_size_bytes

ServerName = Literal["paged", "transformers"]
CacheTypeName = Literal["auto", "fp32", "bf16", "fp16", "fp8"]

MAX_ADAPTERS = 10**9
MAX_CONCURRENCY = 10**6
MAX_ADAPTER_BYTES = 10**13
NEW_TOKENS = 256  # generated of a sequence, unless half of it is less


def _sized(value: Any) -> Any:
    """`50MB` or `24MiB` as bytes; what is no text is left as it is."""
    return parse_size_bytes(value) if isinstance(value, str) else value


SIZED = BeforeValidator(_sized)


class Serving(BaseModel):
    """One server: how many adapters it knows and holds, and how many sequences it generates at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    adapters: Annotated[
        int,
        Field(ge=1, le=MAX_ADAPTERS, strict=True, description="adapters that share the base, one for each tenant"),
        COUNTED,
    ]
    hot: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_ADAPTERS,
            strict=True,
            description="adapters in GPU memory at once; default as many as sequences, or all if those are fewer",
        ),
        COUNTED,
    ] = None
    resident: Annotated[
        int | None,
        Field(ge=1, le=MAX_ADAPTERS, strict=True, description="adapters in host memory; default all"),
        COUNTED,
    ] = None
    adapter_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_ADAPTER_BYTES,
            strict=True,
            description="what one adapter takes, such as 50MB; default what method, rank and targets make of it",
        ),
        SIZED,
    ] = None
    slot_rank: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_RANK,
            strict=True,
            description="rank that hot adapters' places are made for, as vLLM's max_lora_rank; default their own",
        ),
    ] = None
    concurrency: Annotated[
        int, Field(ge=1, le=MAX_CONCURRENCY, strict=True, description="sequences generated at once")
    ] = 8
    distinct: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_CONCURRENCY,
            strict=True,
            description="different adapters in one batch; default as many as there can be",
        ),
    ] = None
    new_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_TOKENS,
            strict=True,
            description="tokens of --seq-len that are generated, the others are the prompt; default 256, or half",
        ),
    ] = None
    server: Annotated[
        ServerName,
        Field(
            description="paged: a pool of blocks, prompts in chunks, adapters gathered (vLLM, S-LoRA); "
            "transformers: generate() with peft's layers"
        ),
    ] = "paged"
    kv_dtype: Annotated[
        CacheTypeName, Field(description="format of cached keys and values; auto: that of the base")
    ] = "auto"
    kv_block: Annotated[
        int, Field(ge=1, le=65536, strict=True, description="tokens in a block of the paged cache")
    ] = 16
    prefill_chunk: Annotated[
        int,
        Field(ge=1, le=MAX_TOKENS, strict=True, description="tokens of prompts in one pass of the paged server"),
    ] = 2048
    memory_frac: Annotated[
        float,
        Field(gt=0, le=1, description="share of the card's usable memory that the server may take"),
    ] = 1.0


# Fields of a request that say what is served and on what; the others are of training.
SERVED = (
    *("model", "method", "seq_len", "rank", "alpha", "targets", "modules_to_save", "method_options"),
    *("adapter_dtype", "base_dtype", "attention", "gpu", "gpus", "price", "provider", "region", "spot"),
)


def is_served(field: str) -> bool:
    """Whether a field of a request means anything to a server: those above, and how the base is packed."""
    return field in SERVED or field == "double_quant" or field.startswith("quant")


def check_request(request: Request) -> None:
    """Refuse what is of training alone."""
    for name in sorted(request.model_fields_set):
        if not is_served(name) and getattr(request, name) != Request.model_fields[name].default:
            flag = "--" + name.replace("_", "-")
            raise BadInput(f"{flag} is of training, and serve trains nothing; leave it out")


def settled(serving: Serving, seq_len: int) -> Serving:
    """The options with their defaults filled in; what contradicts itself is refused."""
    s = serving
    limit = min(s.adapters, s.concurrency)
    hot = s.hot if s.hot is not None else limit
    resident = s.resident if s.resident is not None else s.adapters
    distinct = s.distinct if s.distinct is not None else min(hot, s.concurrency)
    new_tokens = s.new_tokens if s.new_tokens is not None else max(1, min(NEW_TOKENS, seq_len // 2))
    if hot > s.adapters:
        raise BadInput(f"--hot {hot} is more than --adapters {s.adapters}; give at most that")
    if resident > s.adapters:
        raise BadInput(f"--resident {resident} is more than --adapters {s.adapters}; give at most that")
    if hot > resident:
        raise BadInput(
            f"--hot {hot} is more than --resident {resident}: what is hot came from host memory; "
            "give --resident at least that"
        )
    if distinct > min(hot, s.concurrency):
        raise BadInput(
            f"--distinct {distinct} is more than a batch of --concurrency {s.concurrency} can have of --hot {hot}; "
            f"give at most {min(hot, s.concurrency)}"
        )
    if new_tokens >= seq_len:
        raise BadInput(
            f"--new-tokens {new_tokens} leaves no prompt of --seq-len {seq_len}, which counts both; "
            f"give at most {seq_len - 1}, or a longer --seq-len"
        )
    if s.server == "transformers" and s.kv_dtype != "auto":
        raise BadInput(
            f"--kv-dtype {s.kv_dtype}: transformers caches what its layers compute, in the base's format; "
            "take --server paged, or --base-dtype"
        )
    return s.model_copy(update={"hot": hot, "resident": resident, "distinct": distinct, "new_tokens": new_tokens})
