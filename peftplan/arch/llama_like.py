"""The Llama-likes: pre-norm decoder blocks with rotary attention and a gated MLP.

Each family is a row of differences from Llama. Source: transformers 5.23 configuration_*.py (defaults),
modeling_llama.py, modeling_mistral.py, modeling_qwen2.py, modeling_qwen3.py, modeling_gemma.py,
modeling_gemma2.py, modeling_gemma3.py, modeling_phi3.py, modeling_granite.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from peftplan.arch.config import Config, activation, head_dim
from peftplan.arch.decoder_parts import (
    Attention,
    Block,
    CenteredRMSNorm,
    DecoderStem,
    FusedAttention,
    FusedMLP,
    GatedMLP,
    Given,
    KindsRotaryEmbedding,
    SandwichBlock,
    ScaledEmbedding,
    Shape,
    rotate_pair,
)
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import RotaryEmbedding, Table, position_ids, rotary_width
from peftplan.specs.formats import FP32
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Parameter, Tensor

__all__ = ["DecoderStem", "GatedMLP", "build", "rotate_pair"]

FULL, SLIDING = "full_attention", "sliding_attention"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Row:
    """What sets a family apart from Llama."""

    defaults: Mapping[str, Any]
    qkv_bias: bool | None = None  # None: config key attention_bias
    out_bias: bool | None = None
    mlp_bias: bool = False  # whether config key mlp_bias counts
    head_norms: str = ""
    gemma: bool = False  # norms around 1 in fp32, scaled embeddings
    sandwich: bool = False  # four norms a block
    fused: bool = False  # one matrix for q, k, v and one for both branches of the MLP
    activation_key: str = "hidden_act"
    # which layers have a window: "none", "all", the "last" ones, or all but every n-th
    windows: str | int = "none"
    tables_by_kind: bool = False  # rotary tables of their own for layers with a window
    score_cap: bool = False  # scores through a tanh: transformers offers no sdpa then
    multipliers: bool = False  # of embeddings, residuals and logits
    notes: tuple[str, ...] = ()


def _sizes(
    vocab: int, hidden: int, inner: int, layers: int, heads: int, positions: int, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        **more,
    }


_QWEN: dict[str, Any] = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA: dict[str, Any] = {"head_dim": 256, "tie_word_embeddings": True}
_GELU = "gelu_pytorch_tanh"

ROWS = {
    "llama": Row(_sizes(32000, 4096, 11008, 32, 32, 2048), mlp_bias=True),
    "mistral": Row(
        _sizes(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8, sliding_window=4096),
        qkv_bias=False,
        out_bias=False,
        windows="all",
    ),
    "qwen2": Row(
        _sizes(151936, 4096, 22016, 32, 32, 32768, **_QWEN), qkv_bias=True, out_bias=False, windows="last"
    ),
    "qwen3": Row(
        _sizes(151936, 4096, 22016, 32, 32, 32768, head_dim=128, **_QWEN),
        head_norms="projected",
        windows="last",
    ),
    "gemma": Row(
        _sizes(256000, 3072, 24576, 28, 16, 8192, num_key_value_heads=16, hidden_act=_GELU, **_GEMMA),
        gemma=True,
    ),
    "gemma2": Row(
        _sizes(
            256000,
            2304,
            9216,
            26,
            8,
            8192,
            num_key_value_heads=4,
            hidden_activation=_GELU,
            sliding_window=4096,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            **_GEMMA,
        ),
        gemma=True,
        sandwich=True,
        activation_key="hidden_activation",
        windows=2,
        score_cap=True,
        notes=(
            "transformers 5.23 has no sdpa for Gemma 2, whose scores are capped: sdpa means eager attention here",
        ),
    ),
    "gemma3_text": Row(
        _sizes(
            262208,
            2304,
            9216,
            26,
            8,
            131072,
            num_key_value_heads=4,
            hidden_activation=_GELU,
            sliding_window=4096,
            **_GEMMA,
        ),
        head_norms="together",
        gemma=True,
        sandwich=True,
        activation_key="hidden_activation",
        windows=6,
        tables_by_kind=True,
    ),
    "phi3": Row(
        _sizes(32064, 3072, 8192, 32, 32, 4096, sliding_window=None),
        qkv_bias=False,
        out_bias=False,
        fused=True,
        windows="all",
    ),
    "granite": Row(_sizes(32000, 4096, 11008, 32, 32, 2048), mlp_bias=True, multipliers=True),
}


def build(c: Config) -> ModelSpec:
    """A Llama-like, from its config."""
    family = c["model_type"]
    row = ROWS[family]
    c = Config({**row.defaults, **c}, c.where)
    if c.flag("use_bidirectional_attention"):
        raise c.fail("use_bidirectional_attention", True, "false: a causal decoder")
    s = _shape(c, row)
    kinds = _layer_kinds(c, row)
    windows = _windows(c, row, kinds)
    rotary = _rotary(c, row, s.dim, kinds)
    vocab = c.size("vocab_size")
    embedding = ScaledEmbedding if row.gemma else Embedding
    stem, model = Module(), DecoderStem(vocab, s.hidden, rotary.dim, embedding, s.norm, rotary)
    head = Linear(s.hidden, vocab)
    if c.flag("tie_word_embeddings"):
        head.weight = model.embed_tokens.weight
    stem.add("model", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, dict[str, Given]]:
        x = t.call("model.embed_tokens", model.embed_tokens, ids)
        if row.multipliers:
            x = t.mul_scalar(x)
        positions = position_ids(t, ids.shape[1])
        masks = {kind: attention_mask(t, *ids.shape, x.dtype, w) for kind, w in windows.items()}
        table: Table = ()
        given = {}
        for kind, mask in masks.items():
            if not table or row.tables_by_kind and kind in kinds:
                table = (*model.rotary_emb.table(t, x, positions), positions)
            given[kind] = Given(table, mask)
        return x, given

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("model.norm", model.norm, x)  # type: ignore[no-any-return]

    spec = ModelSpec(
        family=family,
        stem=stem,
        runs=_runs(row, s, kinds),
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=c.size("max_position_embeddings", limit=10**9),
        attention_targets=("qkv_proj", "o_proj") if row.fused else ATTENTION,
        mlp_targets=("gate_up_proj", "down_proj") if row.fused else MLP,
        attention_kinds=("flash", "eager") if row.score_cap else ("sdpa", "flash", "eager"),
        notes=list(row.notes),
    )
    if row.sandwich and c.get("final_logit_softcapping") is not None:
        spec.logits = partial(_capped_logits, spec)
    elif row.multipliers:
        spec.logits = partial(_scaled_logits, spec)
    return spec


def _shape(c: Config, row: Row) -> Shape:
    hidden, heads = c.size("hidden_size"), c.count("num_attention_heads")
    kv_heads = c.count("num_key_value_heads", heads)
    c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    dim = head_dim(c, hidden, heads)
    if dim % 2:
        raise c.fail("head_dim", dim, "even: rotary positions turn pairs")
    bias = c.flag("attention_bias")
    return Shape(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        inner=c.size("intermediate_size"),
        activation=activation(c, row.activation_key, _GELU if row.gemma else "silu"),
        qkv_bias=bias if row.qkv_bias is None else row.qkv_bias,
        out_bias=bias if row.out_bias is None else row.out_bias,
        mlp_bias=row.mlp_bias and c.flag("mlp_bias"),
        attn_dropout=c.probability("attention_dropout"),
        resid_dropout=c.probability("resid_pdrop") if row.fused else 0.0,
        norm=CenteredRMSNorm if row.gemma else RMSNorm,
        head_norms=row.head_norms,
        score_cap=row.score_cap and c.get("attn_logit_softcapping") is not None,
        scaled_residual=row.multipliers,
    )


def _layer_kinds(c: Config, row: Row) -> list[str]:
    """The kind of each layer, as the family's config class works it out."""
    count = c.count("num_hidden_layers")
    if row.windows == "none":
        return [FULL] * count
    if row.windows == "all":
        return [FULL if c.get("sliding_window") is None else SLIDING] * count
    stated = c.words("layer_types")
    if stated is not None:
        if len(stated) != count or not set(stated) <= {FULL, SLIDING}:
            raise c.fail("layer_types", stated, f"{count} words, each {FULL} or {SLIDING}")
        return stated
    if row.windows == "last":
        first = c.natural("max_window_layers")
        sliding = c.flag("use_sliding_window") and c.get("sliding_window") is not None
        return [SLIDING if sliding and i >= first else FULL for i in range(count)]
    every = c.count("sliding_window_pattern", int(row.windows)) if row.tables_by_kind else int(row.windows)
    return [SLIDING if (i + 1) % every else FULL for i in range(count)]


def _windows(c: Config, row: Row, kinds: list[str]) -> dict[str, int | None]:
    """For each kind of mask that the model makes, needed or not, its window."""
    windows: dict[str, int | None] = {}
    if FULL in kinds or row.windows != "all":
        windows[FULL] = None
    if SLIDING in kinds or isinstance(row.windows, int):
        unused = row.windows == "last" and not c.flag("use_sliding_window")
        if unused or c.get("sliding_window") is None:
            raise c.fail("sliding_window", None, "a number of tokens: layers of this model have a window")
        windows[SLIDING] = c.size("sliding_window", limit=10**9)
    return windows


def _rotary(c: Config, row: Row, dim: int, kinds: list[str]) -> RotaryEmbedding:
    """Rotary frequencies: over a part of each head, by kind of layer, or with a second set for long inputs."""
    if row.tables_by_kind:
        return KindsRotaryEmbedding(dim, sorted(set(kinds)))
    if row.fused:
        dim = rotary_width(c, dim, "partial_rotary_factor", 1.0)
    rotary = RotaryEmbedding(dim)
    scaling = c.section("rope_scaling") or c.section("rope_parameters")
    kind = scaling and scaling.get("rope_type", scaling.get("type"))
    if kind == "longrope" or row.fused and kind in ("su", "yarn"):
        rotary.long_inv_freq = Parameter((dim // 2,), FP32, role="buffer")
    return rotary


def _runs(row: Row, s: Shape, kinds: list[str]) -> list[BlockRun]:
    """Consecutive layers of a kind; all layers of a kind share one block."""
    blocks: dict[str, Block] = {}
    runs: list[BlockRun] = []
    for index, kind in enumerate(kinds):
        if kind not in blocks:
            attention = FusedAttention(s) if row.fused else Attention(s)
            mlp = FusedMLP(s) if row.fused else GatedMLP(s.hidden, s.inner, s.activation, s.mlp_bias)
            blocks[kind] = (SandwichBlock if row.sandwich else Block)(s, attention, mlp, kind)
        if runs and runs[-1].block is blocks[kind]:
            runs[-1].count += 1
        else:
            runs.append(BlockRun(blocks[kind], 1, index, "model.layers"))
    return runs


def _capped_logits(spec: ModelSpec, t: Ops, x: Tensor) -> Tensor:
    logits = t.call(spec.head_path, spec.head, x)
    logits = t.mul_scalar(logits, "div")
    logits = t.tanh(logits)
    return t.mul_scalar(logits)  # type: ignore[no-any-return]


def _scaled_logits(spec: ModelSpec, t: Ops, x: Tensor) -> Tensor:
    return t.mul_scalar(t.call(spec.head_path, spec.head, x), "div")  # type: ignore[no-any-return]
