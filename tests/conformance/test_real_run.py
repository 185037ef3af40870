"""The trace against real training: tiny models on the CPU, every allocation of a step logged, to the byte.

What the two may differ by is listed in `real_run`, block by block; no figure has a tolerance.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)

from curves import Curve, traced  # noqa: E402
from real_run import measured  # noqa: E402
from tiny_models import tiny_job  # noqa: E402

from peftplan.measure.trace import optimizers  # noqa: E402

NUM_BLOCKS = 2
NUM_LINEARS = 7 * NUM_BLOCKS  # of a llama
DROPOUT = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear", "lora_dropout": 0.1}
DORA = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear", "use_dora": True}
MIXED = {"autocast": "bf16"}
CHECKPOINTS = {"checkpointing": True}
REENTRANT = {"checkpointing": True, "use_reentrant": True}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "full", {}),
    "llama eager bf16": ("llama", "full", {"base_dtype": "bf16", "attention": "eager"}),
    "grouped heads, checkpoints": ("llama-gqa", "full", CHECKPOINTS),
    "grouped heads, reentrant checkpoints": ("llama-gqa", "full", REENTRANT),
    "tied embeddings, autocast": ("llama-tied", "full", MIXED),
    "padding": ("llama-gqa", "full", {"padding": True}),
    "experts": ("mixtral", "full", {}),
    "gpt2": ("gpt2", "full", {}),
    "opt, three sequences of 33": ("opt", "full", {"micro_batch": 3, "seq_len": 33, **MIXED}),
    "bert": ("bert", "full", {}),
    "t5, checkpoints": ("t5", "full", CHECKPOINTS),
    "t5 eager bf16": ("t5", "full", {"base_dtype": "bf16", "attention": "eager"}),
    "fused": ("llama-gqa", "full", {"optimizer": "adamw-fused", "base_dtype": "bf16"}),
    "loop over parameters": ("llama-gqa", "full", {"optimizer": "adamw-loop"}),
    "momentum": ("llama-gqa", "full", {"optimizer": "sgd-momentum"}),
    "adafactor": ("llama-gqa", "full", {"optimizer": "adafactor"}),
    "master weights": ("llama-gqa", "full", {"base_dtype": "bf16", "master_weights": True}),
    "accumulation, outputs kept": ("llama-gqa", "full", {"num_micro_steps": 2, "keep_outputs": True, **MIXED}),
    "chunked loss": ("llama-gqa", "full", {"loss": "chunked"}),
    "lora": ("llama-gqa", "lora", {"adapter_dtype": "bf16"}),
    "lora, reentrant checkpoints": ("llama-gqa", "lora", REENTRANT),
    "lora, checkpoints, accumulation": ("llama", "lora", {"num_micro_steps": 2, **CHECKPOINTS, **MIXED}),
    "lora with dropout": ("llama", "lora", {"peft": DROPOUT}),
    "lora with dropout on gpt2, autocast": ("gpt2", "lora", {"peft": DROPOUT, **MIXED}),
    "lora on bert, checkpoints": ("bert", "lora", {**CHECKPOINTS, **MIXED}),
    "lora on t5": ("t5", "lora", MIXED),
    "lora on experts": ("mixtral", "lora", {**CHECKPOINTS, **MIXED}),
    "dora": ("llama", "lora", {"peft": DORA}),
    "nf4": ("llama-gqa", "nf4", {}),
    "nf4, prepared, checkpoints": ("llama-gqa", "nf4", {"kbit_prepare": True, **CHECKPOINTS, **MIXED}),
    "nf4 on gpt2": ("gpt2", "nf4", MIXED),
    "fp4 on opt": ("opt", "fp4", {}),
    "int8, prepared": ("llama-gqa", "int8", {"kbit_prepare": True, **MIXED}),
}


# The recomputation is stopped by an exception within a layer norm, whose result then comes and goes inside one
# operation, as a kernel's own buffers would, and is left out of the real run's trail.
STOPPED_WITHIN = ("lora on bert, checkpoints",)


@cache
def real(case: str) -> Curve:
    """The real run of a case."""
    family, method, changes = CASES[case]
    return measured(tiny_job(family, method, **changes))


@pytest.fixture(autouse=True)
def _more_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW parameter by parameter, which the trace does not offer."""
    loop = {"adamw-loop": lambda rows, *_: torch.optim.AdamW(rows, lr=1e-4, foreach=False)}
    monkeypatch.setattr(optimizers, "_MAKERS", {**optimizers._MAKERS, **loop})


@pytest.mark.parametrize("case", CASES)
def test_the_trace_does_what_a_real_step_does(case: str) -> None:
    """Every block that comes and goes, in order; so all peaks and what is left agree; and the sums in place."""
    family, method, changes = CASES[case]
    trace = traced(tiny_job(family, method, **changes))
    wanted = real(case)
    if case in STOPPED_WITHIN:
        for stage in (*trace.stages, *wanted.stages):
            stage.trail = []
    assert trace.stages == wanted.stages
    assert trace.sums_in_place == wanted.sums_in_place > 0


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_garbage_collector(case: str) -> None:
    """The trace runs without it; a real step leaves no memory that only a collection would give back."""
    assert real(case).garbage_bytes == 0


@pytest.mark.parametrize("case", ["grouped heads, checkpoints", "t5, checkpoints", "nf4, prepared, checkpoints"])
def test_each_checkpoint_keeps_a_random_state_until_its_backward(case: str) -> None:
    """One state for every checkpointed block from its forward to its backward, in CPU memory."""
    num_blocks = 2 * NUM_BLOCKS if case.startswith("t5") else NUM_BLOCKS
    assert real(case).random_states == [num_blocks, 0, 0]


@pytest.mark.parametrize("case", ["grouped heads, reentrant checkpoints", "lora, reentrant checkpoints"])
def test_a_reentrant_checkpoint_keeps_its_random_state_as_long_as_the_graph(case: str) -> None:
    """The state hangs on the node of the checkpoint, which lives until the loss is dropped."""
    assert real(case).random_states == [NUM_BLOCKS, NUM_BLOCKS, 0]


@pytest.mark.parametrize("case", ["lora", "nf4", "int8, prepared", "lora, reentrant checkpoints"])
def test_each_adapter_saves_its_scale_as_a_number(case: str) -> None:
    """The product with `scaling` saves it, in CPU memory; inside a reentrant checkpoint nothing is saved."""
    saved = 0 if "reentrant" in case else NUM_LINEARS
    assert real(case).numbers == [saved, 0, 0]


@pytest.mark.parametrize("case", ["lora, checkpoints, accumulation", "experts", "lora, reentrant checkpoints"])
def test_the_hooks_of_the_trace_change_no_byte(case: str) -> None:
    """A real step with the trace's hooks on modules and parameters is the one without."""
    family, method, changes = CASES[case]
    assert measured(tiny_job(family, method, **changes), hooked=True) == real(case)
