"""How target specifications resolve."""

from __future__ import annotations

import pytest

from peftplan import Request, estimate
from peftplan.errors import BadInput


def trainable(targets: object, **options: object) -> int:
    """Trainable parameters of a rank-1 LoRA of Llama 2 7B."""
    request = Request(model="llama-2-7b", method="lora", rank=1, targets=targets, **options)  # type: ignore[arg-type]
    return estimate(request).method.num_trainable_params


PER_SQUARE = 32 * 2 * 4096  # one 4096 x 4096 linear in 32 layers at rank 1


def test_words_names_and_lists_mean_the_same() -> None:
    """`attention` is the four projections, by name, list or regex."""
    expected = 4 * PER_SQUARE
    assert trainable("attention") == expected
    assert trainable("q_proj,k_proj, v_proj,o_proj") == expected
    assert trainable(["q_proj", "k_proj", "v_proj", "o_proj"]) == expected
    assert trainable(r".*\.self_attn\.[qkvo]_proj") == expected


def test_a_regex_may_choose_layers() -> None:
    """A regex over full names trains two layers of 32."""
    assert trainable(r"model\.layers\.(0|17)\.self_attn\.q_proj") == 2 * 2 * 4096


def test_a_suffix_may_name_one_layer() -> None:
    """A name with a layer index matches that layer alone, as a suffix does in peft."""
    assert trainable(["layers.3.self_attn.q_proj"]) == 2 * 4096


def test_the_head_and_embeddings_can_be_targets() -> None:
    """Explicit names reach beyond the blocks: the head is a linear, the embedding a table."""
    assert trainable("lm_head") == 4096 + 32000
    assert trainable("embed_tokens") == 4096 + 32000


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("q_prj", "names no module of llama; its linears are q_proj"),
        ("self_attn", "which is no linear or embedding"),
        ("(", "no valid regular expression"),
        ("", "names no module"),
        ([], "is empty"),
    ],
)
def test_targets_that_mean_nothing_are_refused(targets: object, said: str) -> None:
    """One line says what was given and which linears there are."""
    with pytest.raises(BadInput, match="--targets") as caught:
        trainable(targets)
    assert said in str(caught.value)


def test_a_rank_above_the_matrix_is_answered_with_a_note() -> None:
    """peft allows it; the answer says that it buys nothing."""
    request = Request(model="llama-2-7b", method="lora", rank=5000, targets="q_proj", seq_len=16)
    assert any("rank 5000" in note for note in estimate(request).notes)
