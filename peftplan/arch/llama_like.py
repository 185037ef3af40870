"""The Llama-likes: pre-norm decoder blocks with rotary attention and a gated MLP.

Each family is a row of differences from Llama. Source: transformers 5.23 modeling_llama.py,
modeling_mistral.py, modeling_qwen2.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.arch.config import Config, activation, head_dim
from peftplan.arch.rotary import RotaryEmbedding, Table, position_ids, rotate
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """What sets a family apart from Llama."""

    qkv_bias: bool | None = None  # None: config key attention_bias
    out_bias: bool | None = None


ROWS = {
    "llama": Row(),
    "mistral": Row(qkv_bias=False, out_bias=False),
    "qwen2": Row(qkv_bias=True, out_bias=False),
}


class Attention(Module):
    """Self-attention with grouped keys and values and rotary positions."""

    def __init__(
        self, hidden: int, heads: int, kv_heads: int, dim: int, qkv_bias: bool, out_bias: bool
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.q_proj = Linear(hidden, heads * dim, qkv_bias)
        self.k_proj = Linear(hidden, kv_heads * dim, qkv_bias)
        self.v_proj = Linear(hidden, kv_heads * dim, qkv_bias)
        self.o_proj = Linear(heads * dim, hidden, out_bias)

    def forward(self, t: Ops, x: Tensor, given: Table) -> Tensor:  # type: ignore[override]
        batch, length, _ = x.shape
        q = t.view(t.call("q_proj", self.q_proj, x), (batch, self.heads, length, self.dim))
        k = t.view(t.call("k_proj", self.k_proj, x), (batch, self.kv_heads, length, self.dim))
        v = t.view(t.call("v_proj", self.v_proj, x), (batch, self.kv_heads, length, self.dim))
        q, k = rotate_pair(t, q, k, given)
        out = t.view(t.attend(q, k, v), (batch, length, self.heads * self.dim))
        out = t.call("o_proj", self.o_proj, out)
        return out


def rotate_pair(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Both rotated; the unrotated ones live until the pair is returned."""
    return rotate(t, q, table), rotate(t, k, table)


class GatedMLP(Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = Linear(hidden, intermediate, bias)
        self.up_proj = Linear(hidden, intermediate, bias)
        self.down_proj = Linear(intermediate, hidden, bias)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        product = t.mul(
            t.activation(t.call("gate_proj", self.gate_proj, x), self.activation),
            t.call("up_proj", self.up_proj, x),
        )
        return t.call("down_proj", self.down_proj, product)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, c: Config, row: Row, dim: int) -> None:
        super().__init__()
        hidden, heads = c.size("hidden_size"), c.count("num_attention_heads")
        kv_heads = c.count("num_key_value_heads", heads)
        c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
        bias = c.flag("attention_bias")
        qkv_bias = bias if row.qkv_bias is None else row.qkv_bias
        out_bias = bias if row.out_bias is None else row.out_bias
        self.self_attn = Attention(hidden, heads, kv_heads, dim, qkv_bias, out_bias)
        self.mlp = GatedMLP(
            hidden, c.size("intermediate_size"), activation(c, "hidden_act", "silu"), c.flag("mlp_bias")
        )
        self.input_layernorm = RMSNorm(hidden)
        self.post_attention_layernorm = RMSNorm(hidden)

    def forward(self, t: Ops, x: Tensor, given: Table) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("input_layernorm", self.input_layernorm, x)
        x = t.call("self_attn", self.self_attn, x, given)
        x = t.add(residual, x)
        residual = x
        x = t.call("post_attention_layernorm", self.post_attention_layernorm, x)
        x = t.call("mlp", self.mlp, x)
        return t.add(residual, x)  # type: ignore[no-any-return]


class DecoderStem(Module):
    """What stands outside a Llama-like's blocks, under `model.`."""

    def __init__(self, vocab: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab, hidden)
        self.norm = RMSNorm(hidden)
        self.rotary_emb = RotaryEmbedding(dim)


def build(c: Config) -> ModelSpec:
    """A Llama-like, from its config."""
    family = c["model_type"]
    hidden, heads = c.size("hidden_size"), c.count("num_attention_heads")
    dim = head_dim(c, hidden, heads)
    vocab = c.size("vocab_size")
    stem, model = Module(), DecoderStem(vocab, hidden, dim)
    head = Linear(hidden, vocab)
    if c.flag("tie_word_embeddings"):
        head.weight = model.embed_tokens.weight
    stem.add("model", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Table]:
        x = t.call("model.embed_tokens", model.embed_tokens, ids)
        positions = position_ids(t, ids.shape[1])
        return x, (*model.rotary_emb.table(t, x, positions), positions)

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("model.norm", model.norm, x)  # type: ignore[no-any-return]

    block = Block(c, ROWS[family], dim)
    return ModelSpec(
        family=family,
        stem=stem,
        runs=[BlockRun(block, c.count("num_hidden_layers"), 0, "model.layers")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=c.size("max_position_embeddings", 2048, limit=10**9),
        attention_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp_targets=("gate_proj", "up_proj", "down_proj"),
    )
