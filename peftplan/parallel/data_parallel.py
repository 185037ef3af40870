"""Data parallel training: every GPU holds the whole model, and gradients are averaged in buckets.

torch's DistributedDataParallel copies each gradient into a bucket, sums the bucket over the GPUs and copies it
back, so beside the gradients stand buckets of the same size, from before the first step to the end. The first
step has one bucket for each type of gradient; then they are cut anew, in the order in which gradients were ready.

Source: torch-ddp (distributed.py, reducer.cpp); NCCL's buffers: nccl-buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding
from peftplan.specs.tensors import Parameter
from peftplan.units import KIB, MIB

FIRST_BUCKET = 1 * MIB  # a small one, so that the first sum begins early
BUCKET = 25 * MIB

# One connection's buffers: of the protocols LL (8 lines for each of 512 threads, 8 steps, 16 bytes), LL128
# (120 values of 8 bytes for each of 640 threads, 8 steps) and Simple.
_CONNECTION = 512 * KIB + 120 * 640 * 8 * 8 + 4 * MIB
# (channels, connections whose buffers lie on the device): by ring alone, by ring and tree
_CHANNELS = {"switched": 24, "bus": 2}
_RING, _RING_AND_TREE = 1, 3
_SEEN_AT_MOST = {"switched": 1600 * MIB, "bus": 300 * MIB}


def bucket_sizes(gradients: Iterable[tuple[str, int]]) -> list[int]:
    """Bytes of each bucket, of gradients as (type, bytes) in the order in which they are ready.

    A bucket takes gradients of its type until it holds its limit, so the last one may go beyond it.
    """
    closed: list[int] = []
    open_buckets: dict[str, int] = {}
    begun: set[str] = set()
    for kind, num_bytes in gradients:
        held = open_buckets.pop(kind, 0) + num_bytes
        if held >= (BUCKET if kind in begun else FIRST_BUCKET):
            begun.add(kind)
            closed.append(held)
        else:
            open_buckets[kind] = held
    return closed + list(open_buckets.values())


def gradient_buckets(model: ModelSpec) -> list[int]:
    """Bytes of each bucket of a model's gradients, from the second step on.

    Assumes: gradients are ready in the reverse order of their weights; another order cuts the same bytes elsewhere.
    """
    return bucket_sizes((p.dtype.short, p.num_bytes()) for p in _backwards(model))


def _backwards(model: ModelSpec) -> Iterator[Parameter]:
    """Trained weights as backward reaches them: what follows the blocks, the blocks, the embeddings."""
    met: set[int] = set()
    stem = list(model.stem.walk())
    after = [p for _, module in stem if not isinstance(module, Embedding) for p in module.parameters.values()]
    before = [p for _, module in stem if isinstance(module, Embedding) for p in module.parameters.values()]
    blocks = [([p for _, p in owner.named_parameters()], count) for owner, count, _ in model.groups()[1:]]
    for parameters, count in [(after, 1), *reversed(blocks), (before, 1)]:
        trained = [p for p in parameters if p.edge is not None and id(p) not in met]
        met.update(id(p) for p in trained)
        for _ in range(count):
            yield from reversed(trained)


def communication_bytes(num_gpus: int, switched: bool) -> tuple[int, int, int]:
    """Device memory of NCCL's connections for one group of GPUs: (low, middle, high).

    `switched`: every pair of GPUs has NVLink. From its sources and what its users saw; not measured here.
    """
    if num_gpus < 2:
        return (0, 0, 0)
    name = "switched" if switched else "bus"
    channels = _CHANNELS[name]
    low, middle = channels * _RING * _CONNECTION, channels * _RING_AND_TREE * _CONNECTION
    return (low, middle, _SEEN_AT_MOST[name])
