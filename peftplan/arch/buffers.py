"""What older releases of transformers keep beside a model's weights, or do without."""

from __future__ import annotations

from peftplan.arch.rotary import RotaryEmbedding
from peftplan.specs.formats import BF16, BOOL
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Module
from peftplan.specs.tensors import Parameter

_ATTENTION = ("self_attn", "attention", "self_attention", "attn")  # what families call a block's attention


def settle_buffers(spec: ModelSpec) -> None:
    """Give the model the buffers that its libraries' releases have, and its attention their habits."""
    does, tops = spec.behaviour, [spec.stem, *(run.block for run in spec.runs)]
    rotaries = [module for top in tops for _, module in top.walk() if isinstance(module, RotaryEmbedding)]
    attentions = [child for top in tops[1:] for name, child in top.children.items() if name in _ATTENTION]
    for attention in attentions:
        attention.drops_weights = not does.attention_returns_weights
    if does.rotary_place != "model":
        (shared,) = rotaries
        for attention in attentions:
            if not getattr(attention, "turns", True):
                continue
            attention.add("rotary_emb", RotaryEmbedding(shared.dim))
            rotaries.append(attention.children["rotary_emb"])  # type: ignore[arg-type]
    if does.rotary_place == "layers":
        for _, module in list(spec.stem.walk()):
            module.children.pop("rotary_emb", None)
    if does.rotary_kept:
        for attention in attentions:
            _keep_tables(attention, spec.max_seq_len or 0)
    if not does.rotary_original:
        for rotary in rotaries:
            for name in [name for name in rotary.parameters if name.endswith("original_inv_freq")]:
                del rotary.parameters[name]
    if does.causal_buffers != "none":
        for attention in attentions:
            _keep_causal_mask(attention, spec.max_seq_len or 0, does.causal_buffers == "mask and number")


def _keep_tables(attention: Module, length: int) -> None:
    """Cosines and sines of every position, in the format that the model is loaded in."""
    rotary = attention.children.get("rotary_emb")
    if isinstance(rotary, RotaryEmbedding):
        rotary.cos_cached = Parameter((length, rotary.dim), BF16, role="buffer")
        rotary.sin_cached = Parameter((length, rotary.dim), BF16, role="buffer")


def _keep_causal_mask(attention: Module, length: int, number: bool) -> None:
    """What is to the left of each position of the longest sequence, one byte each; and what hides the rest."""
    attention.add("causal", CausalBuffers(length, number))


class CausalBuffers(Module):
    """A triangle of booleans, and perhaps the number that is put where it is not set."""

    def __init__(self, length: int, number: bool) -> None:
        super().__init__()
        self.bias = Parameter((1, 1, length, length), BOOL, role="buffer")
        if number:
            self.masked_bias = Parameter((), BF16, role="buffer")
