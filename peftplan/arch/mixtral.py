"""Mixtral: Mistral's attention, experts in place of the MLP. Source: transformers 5.23 modeling_mixtral.py."""

from __future__ import annotations

from peftplan.arch.config import Config, activation, head_dim
from peftplan.arch.llama_like import Attention, DecoderStem
from peftplan.arch.moe import Experts, Router, inactive_weights, top_k_of
from peftplan.arch.rotary import Table, position_ids
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor
