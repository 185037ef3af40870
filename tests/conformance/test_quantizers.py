"""Packed bases held to the real libraries: bytes of their own modules, and whole runs to their traces."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

from peftplan import Request
from peftplan.engines import compare
from peftplan.methods.quantizers import Asked
from peftplan.methods.quantizers.asked import format_of
from peftplan.methods.quantizers.hqq import HqqFormat

SHAPES = ((1024, 512), (352, 1024))  # outputs, inputs
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "attention_bias": True,
}
MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "head_dim": 64,
    "attention_bias": False,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}

# of a checkpoint that leaves some linears dense
LISTED = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["o_proj", "lm_head"]}


def bytes_of(module: torch.nn.Module) -> int:
    """All tensors that a module keeps."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


# ---- what is kept


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [-1, 32, 128])
def test_gptq_keeps_what_its_linears_do(bits: int, group: int) -> None:
    """The bytes of gptqmodel's own linear that trains, with the tables that loading makes."""
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    for outputs, inputs in SHAPES:
        linear = TorchLinear(bits, group, True, False, inputs, outputs, register_buffers=True)
        linear._init_wf_unsqueeze_buffers()
        assert format_of("gptq", Asked(bits, group)).num_bytes(outputs, inputs) == bytes_of(linear)


@pytest.mark.parametrize("group", [-1, 32, 128])
def test_awq_keeps_what_its_linears_do(group: int) -> None:
    """The bytes of gptqmodel's AWQ linear, whose buffers all its kernels of the gemm layout share."""
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    for outputs, inputs in SHAPES:
        linear = AwqTorchLinear(4, group, False, False, inputs, outputs, register_buffers=True)
        assert format_of("awq", Asked(4, group)).num_bytes(outputs, inputs) == bytes_of(linear)


@pytest.mark.parametrize("codebooks", ["1x16", "2x8", "1x8"])
def test_aqlm_keeps_what_its_linears_do(codebooks: str) -> None:
    """The bytes of aqlm's own linear: codes, codebooks, scales."""
    aqlm = pytest.importorskip("aqlm")
    count, bits = map(int, codebooks.split("x"))
    for outputs, inputs in SHAPES:
        linear = aqlm.QuantizedLinear(inputs, outputs, 8, 1, count, bits, bias=False, dtype=torch.bfloat16)
        expected = format_of("aqlm", Asked(options={"codebooks": codebooks})).num_bytes(outputs, inputs)
        assert expected == bytes_of(linear)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_hqq_keeps_what_its_quantiser_makes(bits: int, axis: int) -> None:
    """The bytes of what hqq makes of a real weight, and the shape of what is packed."""
    quantize = pytest.importorskip("hqq.core.quantize")
    for outputs, inputs in SHAPES:
        packed, meta = quantize.Quantizer.quantize(
            torch.randn(outputs, inputs), nbits=bits, group_size=64, axis=axis, optimize=False, device="cpu"
        )
        scales = (meta[name].to(torch.bfloat16) for name in ("scale", "zero"))
        kept = sum(t.numel() * t.element_size() for t in (packed, *scales))
        found = HqqFormat("hqq", bits, 64, axis)
        assert tuple(packed.shape) == found.packed_shape(outputs * inputs)
        assert found.num_bytes(outputs, inputs) == kept


def test_fp8_keeps_what_transformers_linears_and_experts_do() -> None:
    """The bytes of FP8Linear and FP8Experts, blocks that do not fill included."""
    from transformers import Qwen3MoeConfig
    from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear

    found = format_of("fp8", Asked())
    with torch.device("meta"):
        for outputs, inputs in (*SHAPES, (130, 129)):
            assert found.num_bytes(outputs, inputs) == bytes_of(FP8Linear(inputs, outputs, (128, 128)))
        config = Qwen3MoeConfig(**{name: value for name, value in MOE.items() if name != "model_type"})
        experts = bytes_of(FP8Experts(config, (128, 128)))
    assert experts == found.num_bytes(256, 256, 8) + found.num_bytes(256, 128, 8)


def test_mxfp4_keeps_and_dequantises_what_transformers_does() -> None:
    """The bytes of packed experts, and the shape that blocks and exponents are dequantised to."""
    from transformers import GptOssConfig
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts, convert_moe_packed_tensors

    config = GptOssConfig(num_local_experts=4, hidden_size=64, intermediate_size=96)
    with torch.device("meta"):
        experts = Mxfp4GptOssExperts(config)
    found = format_of("mxfp4", Asked())
    blocks, exponents = (size for _, size in found.storages(192, 64, 4))
    assert blocks == experts.gate_up_proj.numel()
    packed = torch.zeros(4, 192, 2, 16, dtype=torch.uint8)
    scales = torch.full((4, 192, 2), 127, dtype=torch.uint8)
    assert (packed.numel(), scales.numel()) == (blocks, exponents)
    assert tuple(convert_moe_packed_tensors(packed, scales).shape) == (4, 64, 192)
    assert found.checkpoint_bytes((4, 64, 192)) == blocks + exponents  # type: ignore[arg-type]


# ---- whole runs


def compared(**fields: Any) -> None:
    """Assert that both engines hold the same bytes at every moment."""
    asked = {"model": LLAMA, "seq_len": 96, "rank": 4, **fields}
    columns = compare([Request(**asked), Request(**asked, engine="trace")]).columns
    closed, traced = (column.memory for column in columns)
    assert columns[0].model.num_params == columns[1].model.num_params
    assert closed.moments == traced.moments
    assert closed.resident == traced.resident
    assert closed.activations_bytes == traced.activations_bytes


@pytest.mark.parametrize(
    "fields",
    [
        {"gpu": "h100"},
        {"gpu": "rtx-4090", "checkpointing": False, "micro_batch": 2},
        {"gpu": "rtx-4090", "precision": "bf16", "kbit_prepare": True, "dropout": 0.1},
        {"gpu": "h100", "quant_block_size": 64, "method": "adalora"},
        {"gpu": "h100", "method": "ia3", "checkpointing": False},
        {"gpu": "h100", "method": "loha"},
        {"gpu": "h100", "method": "ln-tuning"},
        {"gpu": "h100", "quant": None, "model": {**LLAMA, "quantization_config": LISTED}},
        {"gpu": "rtx-4090", "model": MOE, "targets": "attention", "precision": "bf16"},
    ],
    ids=str,
)
def test_fp8_bases_agree_with_their_traces(fields: dict[str, Any]) -> None:
    """transformers' own fp8 linears and experts under peft's layers, but for the kernel that multiplies."""
    compared(**{"quant": "fp8", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"quant_bits": 3, "quant_options": {"axis": 0}, "checkpointing": False},
        {"quant_bits": 8, "dropout": 0.1},
        {"quant_bits": 1, "micro_batch": 2, "checkpointing": False},
        {"quant_bits": 2, "kbit_prepare": True},
        {"method": "dora", "checkpointing": False},
        {"method": "miss", "checkpointing": False},
        {"method": "oft"},
        {"method": "ln-tuning"},
    ],
    ids=str,
)
def test_hqq_bases_agree_with_their_traces(fields: dict[str, Any]) -> None:
    """hqq's own linears on their PyTorch backend under peft's layers."""
    pytest.importorskip("hqq")
    compared(quant="hqq", **fields)


def test_hqq_without_autocast_and_checkpointing_is_near_its_trace() -> None:
    """There the closed form lets go of one tensor of the hidden states early in backward: within 0.5 %."""
    pytest.importorskip("hqq")
    asked = {"model": LLAMA, "seq_len": 96, "rank": 4, "quant": "hqq", "precision": "bf16", "checkpointing": False}
    closed, traced = (
        column.memory for column in compare([Request(**asked), Request(**asked, engine="trace")]).columns
    )
    assert closed.resident == traced.resident
    assert closed.activations_bytes == traced.activations_bytes
    assert closed.moments == pytest.approx(traced.moments, rel=0.005)


@pytest.mark.parametrize(
    "fields",
    [
        {"quant": "gptq", "quant_block_size": 32},
        {"quant": "gptq", "checkpointing": False, "precision": "bf16", "micro_batch": 2},
        {"quant": "gptq", "precision": "fp16-mixed", "base_dtype": "fp16", "dropout": 0.1, "kbit_prepare": True},
        {"quant": "awq", "quant_block_size": 32},
        {"quant": "awq", "checkpointing": False, "precision": "fp16", "micro_batch": 12},
        {"quant": "awq", "kbit_prepare": True, "micro_batch": 2},
        {"quant": "awq", "method": "ln-tuning"},
        {"quant": "gptq", "method": "miss"},
        {"quant": "aqlm", "method": "oft"},
        {"quant": "aqlm"},
        {"quant": "aqlm", "quant_options": {"codebooks": "2x8"}, "checkpointing": False, "dropout": 0.1},
    ],
    ids=str,
)
def test_bases_with_kernels_of_their_own_agree_with_their_traces(fields: dict[str, Any]) -> None:
    """gptqmodel's and aqlm's linears and autograd functions under peft's layers, their kernels stood in for."""
    pytest.importorskip({"aqlm": "aqlm"}.get(str(fields["quant"]), "gptqmodel"))
    compared(**fields)
