"""What mixture-of-experts decoders share: attention with masks, blocks, models of several kinds of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from peftplan.arch.config import Config
from peftplan.arch.decoder_parts import layer_table
from peftplan.arch.llama_like import DecoderStem, model_tables, rotate_pair
from peftplan.arch.rotary import Table, position_ids
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import DType
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor


class Given(NamedTuple):
    """What the model has for its blocks beside the hidden states; each takes its kind's mask."""

    table: Table
    full: Tensor | None  # mask of layers that see everything before
    sliding: Tensor | None  # mask of layers with a window


# rotary table and mask of one block
Taken = tuple[Table, Tensor | None]
# (reader, batch, length, type of the embeddings) -> masks of full and of windowed layers
Masks = Callable[[Ops, int, int, DType], tuple[Tensor | None, Tensor | None]]


class MaskedAttention(Module):
    """Self-attention with grouped keys and values, rotary positions, perhaps a norm over each head."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        dim: int,
        dropout: float,
        *,
        qkv_bias: bool,
        out_bias: bool,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.dropout = dropout
        self.q_proj = Linear(hidden, heads * dim, qkv_bias)
        self.k_proj = Linear(hidden, kv_heads * dim, qkv_bias)
        self.v_proj = Linear(hidden, kv_heads * dim, qkv_bias)
        self.o_proj = Linear(heads * dim, hidden, out_bias)
        self.caches = cached_heads(kv_heads, dim, heads)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None

    def norm_heads(self) -> None:
        """Put an RMSNorm behind the query and the key projection."""
        self.q_norm, self.k_norm = RMSNorm(self.dim), RMSNorm(self.dim)

    def project(self, t: Ops, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by heads."""
        batch, length, _ = x.shape
        shape, kv_shape = (batch, self.heads, length, self.dim), (batch, self.kv_heads, length, self.dim)
        q = t.view(t.call("q_proj", self.q_proj, x), shape)
        if self.q_norm is not None:
            q = t.call("q_norm", self.q_norm, q)
        k = t.view(t.call("k_proj", self.k_proj, x), kv_shape)
        if self.k_norm is not None:
            k = t.call("k_norm", self.k_norm, k)
        return q, k, t.view(t.call("v_proj", self.v_proj, x), kv_shape)

    def forward(self, t: Ops, x: Tensor, given: Taken) -> Tensor:  # type: ignore[override]
        batch, length, _ = x.shape
        table, mask = given
        q, k, v = self.project(t, x)
        table = layer_table(t, self, v, table)
        q, k = rotate_pair(t, q, k, table)
        k, v = t.repeat_first(q, k, v)
        out = t.view(t.attend(q, k, v, mask, self.dropout), (batch, length, self.heads * self.dim))
        out = t.call("o_proj", self.o_proj, out)
        return out  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP (dense or of experts), each behind a norm and beside a residual."""

    def __init__(
        self,
        attention: Module,
        mlp: Module,
        norms: Callable[[], Module],
        windowed: bool = False,
        mlp_name: str = "mlp",
    ) -> None:
        super().__init__()
        self.windowed, self.mlp_name = windowed, mlp_name
        self.self_attn = attention
        self.add(mlp_name, mlp)
        self.input_layernorm = norms()
        self.post_attention_layernorm = norms()

    def takes(self, given: Given) -> Taken:
        """The rotary table, and the mask of the layer's kind."""
        return given.table, given.sliding if self.windowed else given.full

    def forward(self, t: Ops, x: Tensor, given: Taken) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("input_layernorm", self.input_layernorm, x)
        x = t.call("self_attn", self.self_attn, x, given)
        x = t.add(residual, x)
        residual = x
        x = t.call("post_attention_layernorm", self.post_attention_layernorm, x)
        x = t.call(self.mlp_name, self.children[self.mlp_name], x)
        return t.add(residual, x)  # type: ignore[no-any-return]


def runs_of(blocks: Sequence[Module]) -> list[BlockRun]:
    """Consecutive layers that one module stands for, as runs."""
    runs: list[BlockRun] = []
    for index, block in enumerate(blocks):
        if runs and runs[-1].block is block:
            runs[-1].count += 1
        else:
            runs.append(BlockRun(block, 1, index, "model.layers"))
    return runs


def decoder(
    c: Config,
    blocks: Sequence[Module],
    masks: Masks,
    *,
    model: DecoderStem,
    default_length: int,
    attention_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    mlp_targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
    inactive_params: int,
    former_linears: dict[str, str] | None,
) -> ModelSpec:
    """A decoder with these blocks, one entry a layer; layers of a kind share one module."""
    vocab, hidden = model.embed_tokens.weight.shape
    stem, head = Module(), Linear(hidden, vocab)
    if c.flag("tie_word_embeddings"):
        head.weight = model.embed_tokens.weight
    stem.add("model", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        x = t.call("model.embed_tokens", model.embed_tokens, ids)
        positions = position_ids(t, ids.shape[1])
        full, sliding = masks(t, ids.shape[0], ids.shape[1], x.dtype)
        return x, Given((*model_tables(t, model.rotary_emb, x, positions), positions), full, sliding)

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("model.norm", model.norm, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family=c["model_type"],
        stem=stem,
        runs=runs_of(blocks),
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=c.size("max_position_embeddings", default_length, limit=10**9),
        attention_targets=attention_targets,
        mlp_targets=mlp_targets,
        inactive_params=inactive_params,
        former_linears=former_linears or {},
    )
