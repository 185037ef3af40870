"""The work of the played step against torch's own counter, and against what the real libraries launch.

The step is the trace's: transformers, peft and bitsandbytes on fake CUDA tensors. torch's counter does not see
that a causal kernel passes over half of the pairs, and knows neither bitsandbytes' operations nor grouped
products: those are given their formula here.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from math import prod
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from peftplan import Request
from peftplan.catalog import find_model
from peftplan.cost.work import step_work
from peftplan.measure.trace import runner
from peftplan.measure.trace.configs import text_config, with_layers
from peftplan.measure.trace.plan import plan_trace
from peftplan.planner import settle
from peftplan.resolve import resolve
from peftplan.specs.work import Work, total_flop

LENGTH = 128
CAUSAL, WHOLE, NONE = "half of the pairs", "all pairs", "no fused kernel"
MODELS = {
    "meta-llama/Meta-Llama-3-8B": CAUSAL,
    "Qwen/Qwen3-8B": CAUSAL,
    "google/gemma-2-2b": NONE,
    "microsoft/Phi-3-mini-4k-instruct": CAUSAL,
    "openai-community/gpt2": CAUSAL,
    "EleutherAI/pythia-160m": CAUSAL,
    "mistralai/Mixtral-8x7B-v0.1": CAUSAL,
    "deepseek-ai/DeepSeek-V2-Lite": CAUSAL,
    "google-bert/bert-base-uncased": WHOLE,
    "google-t5/t5-small": WHOLE,
}
METHODS = ("full", "lora", "qlora")
# Each model with every method, with checkpointing or without; these with both.
BOTH = ("meta-llama/Meta-Llama-3-8B", "openai-community/gpt2", "google-bert/bert-base-uncased")
RUNS = [
    (model, method, checkpointing)
    for number, model in enumerate(MODELS)
    for turn, method in enumerate(METHODS)
    for checkpointing in (True, False)
    if model in BOTH or checkpointing is ((number + turn) % 2 == 0)
]
OTHER_RUNS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("meta-llama/Meta-Llama-3-8B", "lora", CAUSAL, {"use_reentrant": True}),
    ("meta-llama/Meta-Llama-3-8B", "lora", CAUSAL, {"loop": "trainer", "optimizer": "adamw-fused"}),
    ("meta-llama/Meta-Llama-3-8B", "qlora", CAUSAL, {"quant": "int8"}),
    ("meta-llama/Meta-Llama-3-8B", "qlora", CAUSAL, {"seq_len": 8}),  # multiplied packed
    ("meta-llama/Meta-Llama-3-8B", "lora", CAUSAL, {"loss": "fused", "seq_len": 512}),
    ("meta-llama/Meta-Llama-3-8B", "full", NONE, {"attention": "eager", "micro_batch": 3, "seq_len": 67}),
    ("meta-llama/Meta-Llama-3-8B", "lora", WHOLE, {"padding": True, "micro_batch": 2}),
    ("openai/gpt-oss-20b", "lora", NONE, {}),
    ("tiiuae/falcon-40b", "qlora", WHOLE, {}),
]

aten = torch.ops.aten
# Operations that fused attention goes by, here and in the tape.
_ATTENTION = "attention"


def _packed_flop(x: Any, packed: Any, shape: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * shape[0]


def _int8_flop(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[0]


def _mixed_int8_flop(x: Any, rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(rows) * weight[0]


def _grouped_flop(x: Any, other: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * other[-1]


FORMULAS = {
    torch.ops.bitsandbytes.gemm_4bit: _packed_flop,
    torch.ops.bitsandbytes.int8_scaled_mm: _int8_flop,
    torch.ops.bitsandbytes.int8_mixed_scaled_mm: _mixed_int8_flop,
    aten._grouped_mm: _grouped_flop,
}


def request_of(model: str, method: str, options: dict[str, Any], layers: int = 2) -> Request:
    """A run of a catalogue model cut to a few blocks."""
    record = find_model(model)
    assert record is not None
    config = with_layers(text_config(record.config), layers)
    return Request(model=config, method=method, **{"seq_len": LENGTH, "optimizer": "sgd", **options})


def traced(request: Request, mode: AbstractContextManager[Any]) -> None:
    """Trace one step of the run inside `mode`."""
    job = replace(plan_trace(request).job, num_steps=1)
    loop = runner.TrainerLoop if job.trainer else runner.Training
    step = loop.step

    def watched(self: Any, number: int) -> None:
        with mode:
            step(self, number)

    loop.step = watched  # type: ignore[method-assign]
    try:
        runner.run(job, lambda *_: None)
    finally:
        loop.step = step  # type: ignore[method-assign]


def work_of(request: Request) -> Work:
    """The same from the played step."""
    plan = resolve(request)
    settled = settle(plan)
    return step_work(settled.model, plan.step, settled.account)


def check(model: str, method: str, pairs: str, options: dict[str, Any], layers: int = 2) -> None:
    """Products equal the counter's to the flop; fused attention over the pairs that its kernel does not skip."""
    request = request_of(model, method, options, layers)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    traced(request, counter)
    counted = counter.get_flop_counts()["Global"]
    attention = sum(flop for op, flop in counted.items() if _ATTENTION in str(op))
    work = work_of(request)
    assert total_flop(k for k in work if k.kind != _ATTENTION) == sum(counted.values()) - attention
    found = total_flop(k for k in work if k.kind == _ATTENTION)
    assert (found > 0) == (pairs is not NONE)
    if pairs is CAUSAL:  # n (n + 1) / 2 of n**2
        length = request.seq_len or LENGTH
        found, attention = 2 * found * length, attention * (length + 1)
    assert found == attention


@pytest.mark.parametrize(("model", "method", "checkpointing"), RUNS)
def test_flop_equal_torchs_counter(model: str, method: str, checkpointing: bool) -> None:
    """Ten models, three methods: the same flop in matrix products and in attention, recomputed ones included."""
    check(model, method, MODELS[model], {"checkpointing": checkpointing, "micro_batch": 2})


@pytest.mark.parametrize(("model", "method", "pairs", "options"), OTHER_RUNS)
def test_flop_equal_torchs_counter_however_a_step_is_run(
    model: str, method: str, pairs: str, options: dict[str, Any]
) -> None:
    """Reentrant checkpoints, Trainer's loop, 8-bit weights, packed products, other losses and attention."""
    check(model, method, pairs, options, layers=3)


class Launches(TorchDispatchMode):
    """Operations that write memory: how many, and the bytes of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.written: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        made = [t for t in made if t.untyped_storage()._cdata not in given]
        if name in ("add_", "mul_"):
            made = [args[0]]
        if made:
            self.count[name] += 1
            self.written[name] += sum(t.numel() * t.element_size() for t in made)
        return out


# Names that the tape gives what torch calls otherwise; sums of gradients are in place there where they can be.
_NAMES = {
    "addmm": "mm",
    "mm.t": "mm",
    "matmul": "mm",
    "gemm_4bit": "mm",
    "add_": "add",
    "gradient sum": "add",
    "mul_": "mul",
}
_COMPARED = ("mm", "bmm", "add", "mul", "_to_copy", "neg", "cat", "pow", "mean", "rsqrt", "silu", "silu_backward")


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("meta-llama/Meta-Llama-3-8B", "full"),
        ("meta-llama/Meta-Llama-3-8B", "lora"),
        ("meta-llama/Meta-Llama-3-8B", "qlora"),
        ("openai-community/gpt2", "lora"),
        ("microsoft/Phi-3-mini-4k-instruct", "qlora"),
    ],
)
def test_the_launches_are_those_of_the_real_step(model: str, method: str) -> None:
    """As many matrix products, casts, sums and pointwise kernels, one of the ids' apart, write as many bytes."""
    request = request_of(model, method, {})
    real = Launches()
    traced(request, real)
    count: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for kernel in work_of(request):
        if kernel.phase != "optimizer_step":
            name = _NAMES.get(kernel.op, kernel.op)
            count[name] += kernel.count
            written[name] += kernel.bytes_written * kernel.count
    real_count: Counter[str] = Counter()
    real_written: Counter[str] = Counter()
    for op in real.count:
        real_count[_NAMES.get(op, op)] += real.count[op]
        real_written[_NAMES.get(op, op)] += real.written[op]
    different = {op: (count[op], real_count[op]) for op in _COMPARED if abs(count[op] - real_count[op]) > 1}
    assert different == {}
    for op in _COMPARED:
        assert written[op] == pytest.approx(real_written[op], rel=0.001)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_adafactor_launches_what_its_loop_does(method: str) -> None:
    """Tensor by tensor, every operation of transformers' Adafactor, by name and by bytes written."""
    request = request_of("meta-llama/Meta-Llama-3-8B", method, {"optimizer": "adafactor"})
    real = Launches()
    loop = runner.Training._apply

    def watching(self: Any) -> None:
        if self.optimizer.state:
            with real:
                loop(self)
        else:
            loop(self)

    runner.Training._apply = watching  # type: ignore[method-assign]
    try:
        runner.run(plan_trace(request).job, lambda *_: None)
    finally:
        runner.Training._apply = loop  # type: ignore[method-assign]
    in_place = ("clamp_", "copy_", "div_", "rsqrt_")
    count: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for kernel in work_of(request):
        if kernel.phase == "optimizer_step" and kernel.op not in in_place:
            count[kernel.op] += kernel.count
            written[kernel.op] += kernel.bytes_written * kernel.count
    assert count == real.count
    assert written == real.written
