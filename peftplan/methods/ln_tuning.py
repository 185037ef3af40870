"""LN tuning: copies of the norms train, everything else is frozen. Mirrors peft 0.21 tuners/ln_tuning/layer.py.

Source: ln-tuning; targets by family from peft 0.21 utils/constants.py.
"""

from __future__ import annotations

from peftplan.errors import BadInput
from peftplan.methods.method import Method
from peftplan.methods.targets import listed_names
from peftplan.methods.wrapping import TrainedCopy, finish, freeze
from peftplan.specs.formats import FP32
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec

_LLAMA = ("input_layernorm", "post_attention_layernorm", "norm")
_GEMMA = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "norm",
)
TARGETS: dict[str, tuple[str, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "bloom": ("input_layernorm", "post_attention_layernorm", "ln_f"),
    "falcon": ("input_layernorm", "post_attention_layernorm", "ln_f"),
    "t5": ("layer_norm", "final_layer_norm"),
    "gpt2": ("ln_1", "ln_2", "ln_f"),
    "gptj": ("ln_1", "ln_f"),
    "phi": ("input_layernorm", "final_layernorm"),
    "qwen2": ("post_attention_layernorm",),
    "qwen3": ("post_attention_layernorm",),
}


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a trained copy in the place of every targeted norm."""
    freeze(model, method)
    names = _names(model, method)
    found = 0
    for owner, _, prefix in model.groups():
        for path, module in list(owner.walk()):
            full = f"{prefix}.{path}" if prefix else path
            if path and not module.children and any(full == name or full.endswith("." + name) for name in names):
                copy = TrainedCopy(module)
                if method.adapter_dtype is not FP32:  # which peft leaves to the base's type
                    for parameter in copy.modules_to_save.parameters.values():
                        parameter.set_dtype(method.adapter_dtype)
                owner.replace(path, copy)
                found += 1
    if not found:
        raise BadInput(
            f"--targets {','.join(names)} names no module of {model.family}; give the names of its norms"
        )
    finish(model, method)


def _names(model: ModelSpec, method: MethodSpec) -> tuple[str, ...]:
    asked = method.targets
    if not isinstance(asked, str):
        return asked
    if asked.strip().lower() != "all-linear":
        names = listed_names(asked)
        if names is None or asked.strip().lower() in ("attention", "mlp"):
            raise BadInput(
                f"--targets {asked} with --method ln-tuning: give names of norms, with commas between them"
            )
        return names
    if model.family not in TARGETS:
        raise BadInput(
            f"--method ln-tuning: peft 0.21 has no targets for {model.family}; give --targets with "
            f"the names of its norms"
        )
    return TARGETS[model.family]


METHODS = (
    Method(
        "ln-tuning",
        "the weights of the norms train",
        "ln-tuning",
        apply,
        peft={"peft_type": "LN_TUNING"},
        takes=("targets", "modules_to_save", "adapter_dtype"),
        merging="by putting them in the base's place",
        inference="none",
    ),
)
