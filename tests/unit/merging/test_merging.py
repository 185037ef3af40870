"""The ways to merge an adapter: what each holds, which one is advised, and what lies on disk."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Merging, Request, merge
from peftplan.errors import BadInput
from peftplan.memory.files import Entry, file_bytes, shards
from peftplan.merging.service import checkpoints
from peftplan.methods import METHODS
from peftplan.specs.formats import BF16, FP32
from peftplan.units import GB

LLAMA = "llama-3-8b"


def merged(method: str = "lora", options: Merging | None = None, **fields: Any) -> Any:
    """The answer for a model of the catalogue."""
    return merge(Request(model=LLAMA, method=method, **fields), options)


def test_a_dense_base_has_one_way_on_each_device() -> None:
    """Merged on the GPU or on the host; `on` leaves one of the two."""
    assert [(way.way, way.device) for way in merged().ways] == [("merge", "gpu"), ("merge", "cpu")]
    assert [way.device for way in merged(options=Merging(on="cpu")).ways] == ["cpu"]


def test_the_peak_is_base_adapter_and_the_largest_layer() -> None:
    """On the host: fp32 delta, its sum and the weight cast up, of the largest matrix, less what was merged."""
    host = merged().ways[1]
    matrix = 14336 * 4096
    attention = 4 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert host.host_bytes == host.moments.loaded + 12 * matrix - attention
    assert host.peak_layer == "model.layers.0.mlp.gate_proj"


def test_a_packed_base_has_ways_into_sixteen_bits_and_into_itself() -> None:
    """Unpacked as a whole, reloaded, or layer by layer; the last keeps the file small and needs least."""
    ways = {(way.way, way.device): way for way in merged("qlora").ways}
    assert set(ways) == {("unpack", "gpu"), ("reload", "gpu"), ("reload", "cpu"), ("packed", "gpu")}
    packed, unpacked, reloaded = ways["packed", "gpu"], ways["unpack", "gpu"], ways["reload", "gpu"]
    assert packed.device_bytes < reloaded.device_bytes < unpacked.device_bytes
    assert packed.written_bytes < unpacked.written_bytes == reloaded.written_bytes
    assert unpacked.moments.unpacking == unpacked.device_bytes


def test_unpacking_holds_both_forms_at_once() -> None:
    """The packed model stays until all of it is unpacked: about what both take together."""
    unpacked = merged("qlora").ways[0]
    assert unpacked.moments.unpacking > unpacked.moments.loaded + 3 * GB


def test_the_advised_way_keeps_what_was_trained() -> None:
    """Unpacking is advised for a packed base, where the GPU holds it; else the original base, on the host."""
    report = merged("qlora", gpu="a100-80")
    assert report.ways[report.recommended].way == "unpack"
    small = merged("qlora", gpu="t4")
    assert small.ways[0].fits is False
    assert (small.ways[small.recommended].way, small.ways[small.recommended].device) == ("reload", "cpu")


def test_a_slow_disk_makes_the_host_as_good() -> None:
    """A GPU is advised only where it is faster by more than a little."""
    slow = merged(gpu="a100-80")
    assert slow.ways[slow.recommended].device == "cpu"
    fast = merged(gpu="a100-80", options=Merging(disk_gb_per_s=10))
    assert fast.ways[fast.recommended].device == "gpu"


@pytest.mark.parametrize("term", ["read", "write"])
def test_seconds_are_bytes_over_the_stated_rate(term: str) -> None:
    """Twice the disk halves reading and writing; parts sum to the whole."""
    one, two = (merged(options=Merging(disk_gb_per_s=rate)).ways[1].time for rate in (1.0, 2.0))
    assert one.terms[term] == pytest.approx(2 * two.terms[term])
    assert sum(one.terms.values()) == pytest.approx(one.s)


def test_safe_merging_takes_more() -> None:
    """A copy of the weight and a look through it."""
    plain, safe = (merged(options=Merging(safe_merge=on)).ways[0] for on in (False, True))
    assert safe.moved_bytes > plain.moved_bytes
    assert safe.device_bytes > plain.device_bytes


def test_small_files_need_less_of_the_host() -> None:
    """What is saved from a GPU is on the host file by file."""
    whole, parted = (merged(options=Merging(max_shard_size=size)).ways[0] for size in (50 * GB, 5 * GB))
    assert whole.num_files == 1
    assert parted.num_files == 4
    assert parted.host_bytes <= 5 * GB < whole.host_bytes


@pytest.mark.parametrize(
    ("method", "word"),
    [("full", "nothing to merge"), ("bitfit", "nothing to merge"), ("prompt-tuning", "cannot be merged")],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(method: str, word: str) -> None:
    """Weights of the base that train, and methods that are no change of weights."""
    with pytest.raises(BadInput, match=word):
        merged(method)


def test_a_refused_way_is_told_beside_the_others() -> None:
    """peft cannot merge (IA)3 into packed weights, and can into the unpacked base."""
    report = merged("ia3", quant="nf4")
    told = {way.way: way.refused for way in report.ways}
    assert told["packed"]
    assert told["unpack"] is None
    assert report.recommended is not None


@pytest.mark.parametrize("name", METHODS)
def test_methods_say_alike_whether_they_merge(name: str) -> None:
    """The word and the switch of a method agree."""
    method = METHODS[name]
    assert method.merges is not method.merging.startswith(("not possible", "nothing"))


# ---- files


def test_a_file_is_header_and_tensors() -> None:
    """Two tensors: eight bytes of length, a header padded to eight, the data."""
    entries = [Entry("b", BF16, (2, 3)), Entry("a", FP32, (5,))]
    header = (
        '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[5],"data_offsets":[0,20]},'
        '"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[20,32]}}'
    )
    assert file_bytes(entries) == 8 + -(-len(header) // 8) * 8 + 32


def test_shards_are_filled_in_order() -> None:
    """One more tensor that would exceed the limit begins another file; one above it has its own."""
    sizes = [6, 6, 2, 20, 6, 2]
    entries = [Entry(str(number), BF16, (size // 2,)) for number, size in enumerate(sizes)]
    names = [[entry.name for entry in shard] for shard in shards(entries, 10)]
    assert names == [["0"], ["3"], ["1", "2"], ["4", "5"]]


def test_tasks_share_one_base() -> None:
    """An adapter each beside one base, or a merged model each."""
    report = merged(options=Merging(tasks=100))
    files = {file.name: file for file in report.disk.files}
    adapter, base = files["adapter"], files["base"]
    assert adapter.tasks_bytes == 100 * adapter.bytes
    assert base.tasks_bytes == base.bytes
    assert report.disk.kept_bytes == adapter.tasks_bytes + base.bytes
    assert report.disk.copies_bytes == 100 * files["merged model"].bytes


def test_a_checkpoint_holds_the_states_of_what_trains() -> None:
    """AdamW keeps two fp32 numbers for each trained one; full fine-tuning in bf16 two in that type."""
    lora = {file.name: file.bytes for file in checkpoints(Request(model=LLAMA)).files}
    trained = 41_943_040
    assert lora["training checkpoint"] - lora["adapter"] == 8 * trained
    full = {file.name: file.bytes for file in checkpoints(Request(model=LLAMA, method="full")).files}
    assert full["training checkpoint"] == 3 * full["trained model"]
