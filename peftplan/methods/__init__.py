"""Fine-tuning methods: each rewrites a model; which parameters train, how each is kept, what is added.

One file for each method, or for a few that share their layers. It holds

* the layers as modules whose `forward` plays peft's own forward pass, operation by operation, so that what
  autograd saves and what is alive at the peak follow and are not written down a second time;
* `Options`, where the method has options that no other has, under the names that peft's config gives them: bounds,
  defaults and help of `--method-option NAME=VALUE`, and what a trace hands to peft, are read from its fields;
* `METHODS`, a tuple of `Method`s: name, facts, defaults, peft's fields, and `apply`, which rewrites a model.

To add a method, write such a file and name it in `FILES` below. Parsing, the choices and help of the command line,
`peftplan methods`, `compare --methods all` and the tests that hold every method against its trace follow from
`METHODS`; nothing else asks which method a run has.
"""

from __future__ import annotations

from importlib import import_module

from peftplan.methods.method import SHARED, Method, Options

__all__ = ["FILES", "METHODS", "SHARED", "Method", "Options"]

# Files of this folder, in the order in which their methods are listed.
FILES = (
    "full",
    "chosen",
    "lora",
    "dora",
    "lora_variants",
    "initialised",
    "bdlora",
    "adalora",
    "ia3",
    "vera",
    "loha",
    "lokr",
    "miss",
    "oft",
    "ln_tuning",
    "prompts",
    "cpt",
    "prefix_tuning",
    "trainable_tokens",
    "fourierft",
    "shira",
    "boft",
    "randlora",
    "vblora",
    "c3a",
    "road",
    "hra",
    "lily",
    "peanut",
    "deft",
    "frod",
    "glora",
    "adamss",
    "osf",
    "supertuning",
    "poly",
    "beft",
    "bottleneck",
    "adaption_prompt",
    "waveft",
    "gralora",
    "delora",
    "pvera",
    "tinylora",
    "unilora",
    "hira",
    "psoft",
)

METHODS: dict[str, Method] = {
    method.name: method for file in FILES for method in import_module(f"{__name__}.{file}").METHODS
}
