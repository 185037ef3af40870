"""What the libraries do, as far as it differs from version to version: flags that programs ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How libraries of certain versions behave; the defaults are those of the reference versions.

    `versions` derives one from version numbers: nothing else compares them.
    """

    # ---- loading, gradient checkpointing
    embeddings_ask_gradient: bool = True  # gradient_checkpointing_enable also asks for one of the embeddings
    packs_subclasses: bool = False  # a bitsandbytes load packs classes derived from nn.Linear too

    ties_t5_head: bool = True  # T5's output head is built tied to its embedding, whatever its config says

    # ---- buffers
    rotary_original: bool = True  # a rotary embedding keeps a second set of frequencies of its own
    # where a rotary embedding stands: in the "model", in each of its "layers", whose attention makes the tables
    # itself, or in "both", the layers' unused
    rotary_place: str = "model"
    rotary_kept: bool = False  # each layer's rotary embedding keeps the tables of the longest sequence
    embedding_scale_kept: bool = True  # Gemma's factor of embeddings is a buffer, not made in each pass
    # causal masks of the longest sequence that attention layers keep: "none", "mask", "mask and number"
    causal_buffers: str = "none"

    # ---- attention
    attention_inline: bool = False  # attention classes repeat heads themselves, and hold them until they return
    attention_returns_weights: bool = True  # attention written out hands its weights to the block, which holds them
    flash_repeats: bool = False  # the classes of the flash-attention package do so too
    grouped_sdpa: str = "narrow"  # heads handed to sdpa unrepeated: "narrow" up to 256 values, "always", "never"
    causal_mask_added: bool = True  # GPT-2 written out adds a whole mask, not one of the padding alone
    always_masked: bool = True  # Falcon makes a mask even where the kernel's causal flag would do
    scales_queries: bool = True  # OPT's queries are scaled before sdpa, not in it
    sdpa_contiguous: str = "never"  # queries, keys, values are made contiguous for sdpa: also "masked", "always"
    bias_apart: bool = True  # T5 adds bias and mask to scores one by one, and offers sdpa
    capped_sdpa: bool = False  # families with capped scores offer sdpa, which leaves the cap out

    float_masks: bool = False  # masks are numbers to add, not booleans; Gemma's windows are cut by the layers

    # ---- positions
    positions_offset: bool = True  # positions are counted from a number of tokens seen before
    # positions in the sequence are handed to the blocks beside, or instead of, what the model computes from them
    cache_positions: bool = False
    blocks_take_positions: bool = True  # blocks are handed the positions of their tokens
    rotary_product: bool = False  # rotary angles are a matrix product of positions and frequencies
    tables_by_need: bool = True  # rotary tables are made for the kinds of layers that there are, and for no other

    # ---- experts
    experts: str = "fused"  # kept as one tensor a layer; "linears": each with linears of its own, in a loop
    visits_hit_experts: bool = True  # that loop passes over experts without a token

    # ---- the loss
    # "padded": labels moved by padding, logits whole; "shifted": a copy of all logits but the last;
    # "wide": the same of logits that the model has cast to fp32; "narrow": of logits in their own type
    loss_form: str = "padded"

    # ---- adapters
    converts_targets: bool = True  # names of experts' former linears stand for the parameters that replaced them
    spares_nested_head: bool = True  # all-linear leaves out an output head that lies deeper than the model's top

    # ---- 4-bit products
    computes_in_input_type: bool = False  # whatever type was asked for, but for fp16
    fused_4bit: bool = True  # one operation multiplies packed weights, else they are unpacked first
    keeps_4bit_input: bool = False  # the product's graph node keeps its input although nothing reads it


REFERENCE = Behaviour()
