"""What the mixture-of-experts decoders share: blocks of attention and MLP, and a model made of several kinds."""

from __future__ import annotations

from collections.abc import Sequence

from peftplan.arch.config import Config
from peftplan.arch.llama_like import DecoderStem
from peftplan.arch.rotary import Table, position_ids
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor


class Block(Module):
    """Attention and MLP (dense or of experts), each behind a norm and beside a residual."""

    def __init__(self, hidden: int, attention: Module, mlp: Module) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
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


def runs_of(blocks: Sequence[Module]) -> list[BlockRun]:
    """Consecutive layers that one module stands for, as runs."""
    runs: list[BlockRun] = []
    for index, block in enumerate(blocks):
        if runs and runs[-1].block is block:
            runs[-1].count += 1
        else:
            runs.append(BlockRun(block, 1, index, "model.layers"))
    return runs


def sparse_layers(c: Config, default_layers: int) -> list[bool]:
    """For each layer whether it has experts: Qwen's `decoder_sparse_step` and `mlp_only_layers`."""
    step, num_layers = c.count("decoder_sparse_step", 1), c.count("num_hidden_layers", default_layers)
    dense = c.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(i) is int and 0 <= i < num_layers for i in dense):
        raise c.fail("mlp_only_layers", dense, f"a list of layer numbers from 0 to {num_layers - 1}")
    return [i not in dense and (i + 1) % step == 0 for i in range(num_layers)]


def decoder(
    c: Config,
    blocks: Sequence[Module],
    *,
    rotary_dim: int,
    default_length: int,
    mlp_targets: tuple[str, ...],
    inactive_params: int,
    attention_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj"),
) -> ModelSpec:
    """A decoder with these blocks, one entry a layer; layers of a kind share one module."""
    hidden, vocab = c.size("hidden_size"), c.size("vocab_size")
    stem, model = Module(), DecoderStem(vocab, hidden, rotary_dim)
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
    )
