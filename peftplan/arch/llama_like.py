"""The Llama-likes: pre-norm decoder blocks with rotary attention and a gated MLP.

Each family is a row of differences from Llama (`llama_rows`). Source: transformers 5.23 modeling_llama.py,
modeling_mistral.py, modeling_qwen2.py, modeling_qwen3.py, modeling_gemma.py, modeling_gemma2.py,
modeling_gemma3.py, modeling_phi3.py, modeling_granite.py.
"""

from __future__ import annotations

from peftplan.arch.config import Config, activation, head_dim
from peftplan.arch.decoder_parts import (
    FULL,
    SLIDING,
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
from peftplan.arch.llama_rows import GELU, ROWS, Row
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import RotaryEmbedding, Table, has_two_sets, position_ids, rotary_width
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import DType
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor

__all__ = ["DecoderStem", "GatedMLP", "build", "rotate_pair"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def build(c: Config) -> ModelSpec:
    """A Llama-like, from its config."""
    family = c["model_type"]
    row = ROWS[family]
    c = Config({**row.defaults, **c}, c.where, c.behaviour)
    if c.flag("use_bidirectional_attention"):
        raise c.fail("use_bidirectional_attention", True, "false: a causal decoder")
    s = _shape(c, row)
    kinds = _layer_kinds(c, row)
    windows = _windows(c, row, kinds)
    rotary = _rotary(c, row, s.dim, kinds)
    vocab = c.size("vocab_size")
    does = c.behaviour
    embedding = (
        ScaledEmbedding if row.gemma and (does.embedding_scale_kept or not row.scaled_embedding) else Embedding
    )
    stem, model = Module(), DecoderStem(vocab, s.hidden, rotary.dim, embedding, s.norm, rotary)
    head = Linear(s.hidden, vocab)
    if c.flag("tie_word_embeddings"):
        head.weight = model.embed_tokens.weight
    stem.add("model", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, dict[str, Given]]:
        x = t.call("model.embed_tokens", model.embed_tokens, ids)
        if row.scaled_embedding and not does.embedding_scale_kept:
            t.keep(x)
        if row.multipliers or (row.scaled_embedding and not does.embedding_scale_kept):
            x = t.mul_scalar(x)
        batch, length = ids.shape
        positions = position_ids(t, length)
        masks = _masks(t, batch, length, x.dtype, windows, row)
        table: Table = ()
        given = {}
        for kind, mask in masks.items():
            if (kind in kinds or not does.tables_by_need) if row.tables_by_kind else not table:
                table = (*model_tables(t, model.rotary_emb, x, positions), positions)
            given[kind] = Given(table, mask, window=windows[kind])
        if not does.tables_by_need:
            tables = [one.table for one in given.values()]
            given = {kind: one._replace(others=tables) for kind, one in given.items()}
        return x, given

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("model.norm", model.norm, x)  # type: ignore[no-any-return]

    spec = ModelSpec(
        family=family,
        stem=stem,
        runs=_runs(row, s, kinds, windows),
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=c.size("max_position_embeddings", limit=10**9),
        attention_targets=("qkv_proj", "o_proj") if row.fused else ATTENTION,
        mlp_targets=("gate_up_proj", "down_proj") if row.fused else MLP,
        attention_kinds=("flash", "eager")
        if row.score_cap and not does.capped_sdpa
        else ("sdpa", "flash", "eager"),
        notes=list(row.notes),
    )
    if row.sandwich and c.get("final_logit_softcapping") is not None:
        spec.scale_logits = _capped_logits
    elif row.multipliers:
        spec.scale_logits = _scaled_logits
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
        activation=activation(c, row.activation_key, GELU if row.gemma else "silu"),
        qkv_bias=bias if row.qkv_bias is None else row.qkv_bias,
        out_bias=bias if row.out_bias is None else row.out_bias,
        mlp_bias=row.mlp_bias and c.flag("mlp_bias"),
        attn_dropout=c.probability("attention_dropout"),
        resid_dropout=c.probability("resid_pdrop") if row.fused else 0.0,
        norm=CenteredRMSNorm if row.gemma else RMSNorm,
        head_norms=row.head_norms,
        score_cap=row.score_cap and c.get("attn_logit_softcapping") is not None,
        scaled_residual=row.multipliers,
        names_attended=row.fused,
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
    every = int(row.windows)
    if row.tables_by_kind:
        every = c.count("sliding_window_pattern", every)
    return [SLIDING if (i + 1) % every else FULL for i in range(count)]


def _windows(c: Config, row: Row, kinds: list[str]) -> dict[str, int | None]:
    """For each kind of mask that the model makes, needed or not, its window."""
    windows: dict[str, int | None] = {}
    if FULL in kinds or row.windows != "all":
        windows[FULL] = None
    if SLIDING in kinds or isinstance(row.windows, int):
        if row.windows == "last" and not c.flag("use_sliding_window"):
            raise c.fail("use_sliding_window", False, "true: layer_types has layers with a window")
        if c.get("sliding_window") is None:
            raise c.fail("sliding_window", None, "a number of tokens: some layers have a window")
        windows[SLIDING] = c.size("sliding_window", limit=10**9)
    return windows


def model_tables(t: Ops, rotary: RotaryEmbedding, x: Tensor, positions: Tensor) -> Table:
    """The tables that the model makes for all layers; none where every attention makes its own."""
    return rotary.table(t, x, positions) if t.behaviour.rotary_place != "layers" else ()


def _masks(
    t: Ops, batch: int, length: int, dtype: DType, windows: dict[str, int | None], row: Row
) -> dict[str, Tensor | None]:
    """For each kind of mask, the mask; older releases make one, needed or not, where layers cut windows out."""
    if row.sandwich and t.behaviour.float_masks and t.attention != "flash":
        return dict.fromkeys(windows, attention_mask(t, batch, length, dtype, always=True))
    return {kind: attention_mask(t, batch, length, dtype, w) for kind, w in windows.items()}


def _rotary(c: Config, row: Row, dim: int, kinds: list[str]) -> RotaryEmbedding:
    """Rotary frequencies: of a part of each head, or by kind of layer."""
    if row.tables_by_kind:
        return KindsRotaryEmbedding(dim, sorted(set(kinds)) if c.behaviour.tables_by_need else (FULL, SLIDING))
    if row.fused:
        dim = rotary_width(c, dim, "partial_rotary_factor", 1.0)
    return RotaryEmbedding(dim, has_two_sets(c))


def _runs(row: Row, s: Shape, kinds: list[str], windows: dict[str, int | None]) -> list[BlockRun]:
    """Consecutive layers of a kind; all layers of a kind share one block."""
    blocks: dict[str, Block] = {}
    runs: list[BlockRun] = []
    for index, kind in enumerate(kinds):
        if kind not in blocks:
            attention = FusedAttention(s) if row.fused else Attention(s)
            attention.caches = cached_heads(s.kv_heads, s.dim, s.heads, windows[kind])
            mlp = FusedMLP(s) if row.fused else GatedMLP(s.hidden, s.inner, s.activation, s.mlp_bias)
            blocks[kind] = (SandwichBlock if row.sandwich else Block)(s, attention, mlp, kind)
        if runs and runs[-1].block is blocks[kind]:
            runs[-1].count += 1
        else:
            runs.append(BlockRun(blocks[kind], 1, index, "model.layers"))
    return runs


def _capped_logits(t: Ops, logits: list[Tensor]) -> Tensor:
    capped = t.mul_scalar(logits.pop(), "div")
    capped = t.tanh(capped)
    return t.mul_scalar(capped)  # type: ignore[no-any-return]


def _scaled_logits(t: Ops, logits: list[Tensor]) -> Tensor:
    return t.mul_scalar(logits.pop(), "div")  # type: ignore[no-any-return]
