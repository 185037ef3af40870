"""What peftplan knows by heart: models and GPUs, each a dated record with its source.

The records are data (`models/*.json`, `gpus.json`); the readers load them on first use.
"""

from __future__ import annotations

from peftplan.catalog.gpu_records import GpuRecord, all_gpus, find_gpu, nearest_gpus
from peftplan.catalog.model_records import ModelRecord, all_models, find_model, nearest_models

__all__ = [
    "GpuRecord",
    "ModelRecord",
    "all_gpus",
    "all_models",
    "find_gpu",
    "find_model",
    "nearest_gpus",
    "nearest_models",
]
