"""T5 and its gated successors (v1.1, FLAN): encoder and decoder, both sides of the same length.

Source: transformers 5.23 modeling_t5.py, configuration_t5.py.
"""

from __future__ import annotations

from peftplan.arch.config import ACTIVATION_NAMES, Config, alias
from peftplan.arch.masks import both_ways_mask, unpadded_mask
from peftplan.arch.rotary import cache_positions
from peftplan.arch.t5_blocks import Block, Given, Norm, Shape
from peftplan.specs.formats import BOOL, INT64
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class Stack(Module):
    """What stands outside a stack's blocks."""

    def __init__(self, s: Shape, words: Embedding) -> None:
        super().__init__()
        self.embed_tokens = Embedding(words.weight.shape[0], s.hidden)
        self.embed_tokens.weight = words.weight
        self.final_layer_norm = Norm(s.hidden)


def shape(c: Config) -> Shape:
    """The sizes, under T5's own names or the general ones."""
    kind, _, name = c.word("feed_forward_proj", "relu").rpartition("-")
    if kind not in ("", "gated") or name not in ACTIVATION_NAMES:
        known = ", ".join(ACTIVATION_NAMES)
        raise c.fail("feed_forward_proj", c.get("feed_forward_proj"), f"an activation or gated-...: {known}")
    return Shape(
        c.size(alias(c, "d_model", "hidden_size"), 512),
        c.count(alias(c, "num_heads", "num_attention_heads"), 8),
        c.size(alias(c, "d_kv", "head_dim"), 64),
        c.size("d_ff", 2048),
        c.size("relative_attention_num_buckets", 32),
        kind == "gated",
        "gelu_new" if kind == "gated" and name == "gelu" else name,
        c.probability("dropout_rate", 0.1),
    )


def runs_of(s: Shape, path: str, num_layers: int, decoder: bool) -> list[BlockRun]:
    """A stack's first block, those alike, and the last, in which the gradients of what all share begin."""
    block = Block(s, False, decoder)
    runs = [BlockRun(Block(s, True, decoder), 1, 0, path)]
    if num_layers > 2:
        runs.append(BlockRun(block, num_layers - 2, 1, path))
    if num_layers > 1:
        runs.append(BlockRun(block, 1, num_layers - 1, path, apart=True))
    return runs


def build(c: Config) -> ModelSpec:
    """A T5, from its config."""
    s = shape(c)
    vocab = c.size("vocab_size", 32128)
    stem, words, head = Module(), Embedding(vocab, s.hidden), Linear(s.hidden, vocab)
    own_head = c.get("tie_word_embeddings") is False
    if not own_head or c.behaviour.ties_t5_head:
        head.weight = words.weight
    encoder, decoder = Stack(s, words), Stack(s, words)
    for name, module in (("shared", words), ("encoder", encoder), ("decoder", decoder), ("lm_head", head)):
        stem.add(name, module)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        embedded = t.call("encoder.embed_tokens", encoder.embed_tokens, ids)
        t.keep(embedded)
        mask = both_ways_mask(t, ids, embedded.dtype)
        return t.dropout(embedded, s.dropout), Given(mask=mask, steps=cache_positions(t, ids.shape[1]))

    def leave(t: Ops, x: Tensor, name: str = "decoder", stack: Stack = decoder) -> Tensor:
        x = t.call(f"{name}.final_layer_norm", stack.final_layer_norm, x)
        return t.dropout(x, s.dropout)  # type: ignore[no-any-return]

    def turn(t: Ops, x: Tensor, given: Given | None) -> tuple[Tensor, Given]:
        passed = [x]
        del x
        encoded = leave(t, passed.pop(), "encoder", encoder)
        given = None
        t.release_kept()
        t.hand_out(encoded)
        ids = shifted(t, encoded)
        t.keep_to_loss(ids)
        t.follow_ids(ids)
        embedded = t.call("decoder.embed_tokens", decoder.embed_tokens, ids)
        t.follow_ids(None)
        t.keep(embedded)
        mask = unpadded_mask(t, ids, embedded.dtype)
        beside = both_ways_mask(t, ids, embedded.dtype)
        steps = cache_positions(t, ids.shape[1])
        return t.dropout(embedded, s.dropout), Given(encoded=encoded, mask=mask, cross_mask=beside, steps=steps)

    def scaled(t: Ops, x: Tensor) -> Tensor:
        x = t.mul_scalar(x)
        t.keep_to_loss(x)
        return x

    num_layers = c.count(alias(c, "num_layers", "num_hidden_layers"), 6)
    num_decoder_layers = c.count("num_decoder_layers", num_layers)
    runs = runs_of(s, "encoder.block", num_layers, decoder=False)
    decoder_runs = runs_of(s, "decoder.block", num_decoder_layers, decoder=True)
    decoder_runs[0].before = turn
    notes = []
    if own_head and c.behaviour.ties_t5_head:
        notes.append(
            "transformers 5 builds T5's output head tied to the embedding; a checkpoint that holds a head of "
            f"its own keeps it when loaded: {head.weight.numel:,} more parameters than are counted here"
        )
    return ModelSpec(
        family="t5",
        stem=stem,
        runs=[*runs, *decoder_runs],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=None,
        attention_targets=("q", "k", "v", "o"),
        mlp_targets=("wi_0", "wi_1", "wo") if s.gated else ("wi", "wo"),
        transform=None if own_head else scaled,
        attention_kinds=("sdpa", "eager") if c.behaviour.bias_apart else ("eager",),
        encoder=True,
        keeps_first_input=False,
        notes=notes,
    )


def shifted(t: Ops, encoded: Tensor) -> Tensor:
    """The decoder's input ids: the labels moved right by one."""
    batch, length, _ = encoded.shape
    ids: Tensor = t.new((batch, length), batch * length, INT64, "new_zeros")
    moved = t.new((batch, length - 1), batch * (length - 1), INT64, "clone")
    del moved
    ignored = t.new((batch, length), batch * length, BOOL, "eq")
    del ignored
    return ids
