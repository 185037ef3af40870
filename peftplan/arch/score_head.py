"""Sequence classification: a small linear in the place of the output head, as AutoModelForSequenceClassification.

Of a decoder the same modules stand below it under the same names. The linear scores every position, and the class
then picks the last token of each sequence. Encoders bring heads of their own (`ModelSpec.classify`).
Source: transformers-seq-cls.
"""

from __future__ import annotations

from peftplan.errors import BadInput
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear

_HEAD = "score"
_NO_CLASS = ("granite",)


def put_score_head(model: ModelSpec, num_labels: int) -> None:
    """Take the language-model head off and put a linear with a row for each class in its place."""
    if model.classify is not None:
        model.classify(model, num_labels)
        return
    if model.encoder or model.family in ("t5", *_NO_CLASS):
        traced = "" if model.family == "t5" else "--engine trace, or "  # its classifier wants an end in each row
        raise BadInput(
            f"--style classification: the closed form has no score head for {model.family}; take {traced}another "
            "model"
        )
    old = model.head
    assert isinstance(old, Linear)
    model.stem.remove(model.head_path)
    model.head = Linear(old.in_features, num_labels)
    model.head_path = _HEAD
    model.stem.add(_HEAD, model.head)
    model.logits = model.transform = model.scale_logits = None
