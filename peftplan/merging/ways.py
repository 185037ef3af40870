"""The ways to merge an adapter, and what each holds, reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from peftplan.catalog import GpuRecord
from peftplan.errors import BadInput
from peftplan.memory.files import Entry, adapter_file_bytes, file_bytes, merged_entries, packed_entries, shards
from peftplan.memory.merge import Launch, Merge, play_merge, standing_bytes, unpacking_bytes
from peftplan.memory.overheads import cublas_workspace_bytes, outside
from peftplan.merging import answers
from peftplan.merging.options import Merging
from peftplan.merging.seconds import Moved, merge_time
from peftplan.methods.wrapping import freeze
from peftplan.resolve import Plan, capability_of
from peftplan.specs.formats import QuantFormat
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec

_TITLES: dict[answers.WayName, str] = {
    "merge": "{dtype} base",
    "reload": "{dtype} base, reloaded",
    "unpack": "{quant} base, unpacked",
    "packed": "{quant} weights",
}


@dataclass(slots=True)
class Adapted:
    """A model as it is loaded for a merge: the base alone, and with its adapters."""

    spec: MethodSpec
    base: ModelSpec
    model: ModelSpec
    adapter_bytes: int  # tensors of the adapter's file
    file_bytes: int


# Plays a merge: (what is loaded, on the host, looking for NaNs).
Play = Callable[[Adapted, bool, bool], Merge]


def closed(loaded: Adapted, host: bool, safe: bool) -> Merge:
    """A merge by the closed form."""
    return play_merge(loaded.model, host, safe)


def adapted(plan: Plan, spec: MethodSpec) -> Adapted:
    """Build both; an adapter's file holds what trains, or what the method says."""
    base, model = plan.model, plan.model
    freeze(base, spec)
    plan.method.apply(model, spec)
    stated = model.adapter_checkpoint_bytes
    trained = sum(p.num_bytes() * n for _, p, n in model.parameters() if p.role == "adapter" and p.edge is not None)
    size = trained if stated is None else stated
    return Adapted(spec, base, model, size, adapter_file_bytes(model, size))


def as_loaded(spec: MethodSpec, packed: bool) -> MethodSpec:
    """How a base is loaded to be merged into: nothing is prepared for training; packed as it was, or dense."""
    loaded = replace(spec, kbit_prepare=False, trl_casts=False)
    return loaded if packed else replace(loaded, quant=None, loaded_from=None)


class Ways:
    """All ways of one plan, on the devices asked for."""

    def __init__(
        self, plan: Plan, merging: Merging, rates: answers.Rates, gpu: GpuRecord, play: Play = closed
    ) -> None:
        self.plan, self.merging, self.rates, self.gpu, self.play = plan, merging, rates, gpu, play
        self.dense = adapted(plan, as_loaded(plan.method_spec, packed=False))
        packed = plan.method_spec.quant is not None
        self.packed = adapted(plan, as_loaded(plan.method_spec, packed=True)) if packed else None

    def all(self) -> tuple[answers.MergeWay, ...]:
        """Those that there are, the one into what was trained on first."""
        wanted: list[tuple[answers.WayName, answers.DeviceKind]] = []
        if self.packed is None:
            wanted = [("merge", "gpu"), ("merge", "cpu")]
        else:
            wanted = [("unpack", "gpu"), ("reload", "gpu"), ("reload", "cpu"), ("packed", "gpu")]
        return tuple(self.way(name, device) for name, device in wanted if self.merging.on in ("both", device))

    def way(self, name: answers.WayName, device: answers.DeviceKind) -> answers.MergeWay:
        """One of them; a refusal is told in the library's sense, not raised."""
        quant = self.plan.method_spec.quant
        kind = quant.kind if quant is not None else ""
        dtype = self.plan.method_spec.base_dtype.short
        title = _TITLES[name].format(dtype=dtype, quant=kind)
        shown = {"way": name, "device": device, "title": title, "result": kind if name == "packed" else dtype}
        try:
            return answers.MergeWay.model_validate({**shown, **self._figures(name, device)})
        except BadInput as error:
            return answers.MergeWay.model_validate({**shown, "refused": str(error)})

    def _figures(self, name: answers.WayName, device: answers.DeviceKind) -> dict[str, object]:
        host = device == "cpu"
        start = self.dense if name in ("merge", "reload") or self.packed is None else self.packed
        end = start if name == "packed" else self.dense
        if name == "unpack" and not isinstance(self.plan.method_spec.quant, QuantFormat):
            raise BadInput("how such weights are unpacked is not in the closed form; reload the base in 16 bits")
        played = self.play(end, host, self.merging.safe_merge)
        moments = self._moments(name, start, end, played, host)
        files = self._files(name, end)
        source, largest = checkpoint(start.base)
        written = sum(file_bytes(one) for one in files)
        peak = max(moments, key=lambda moment: moments[moment] or 0)
        on_device = None if host else moments[peak]
        held = max(largest, played.host_bytes, max(_data(one) for one in files))
        moved = Moved(
            read_bytes=source + end.file_bytes,
            to_device_bytes=0 if host else source + end.adapter_bytes,
            link_bytes=played.link_bytes,
            to_host_bytes=0 if host else sum(_data(one) for one in files),
            written_bytes=written,
            launches=(*played.launches, *(_unpacking(start.base) if name == "unpack" else ())),
        )
        return {
            "device_bytes": on_device,
            "host_bytes": moments[peak] if host else held,
            "moments": answers.Moments.model_validate(moments),
            "peak_moment": peak,
            "peak_layer": played.peak_layer if peak == "merging" else None,
            "base_read_bytes": source,
            "adapter_read_bytes": end.file_bytes,
            "written_bytes": written,
            "num_files": len(files),
            "num_flop": played.num_flop,
            "moved_bytes": played.num_bytes,
            "fits": self._fits(on_device),
            "time": merge_time(moved, self.rates, None if host else self.gpu),
        }

    def _moments(
        self, name: answers.WayName, start: Adapted, end: Adapted, played: Merge, host: bool
    ) -> dict[str, int | None]:
        """The most at each moment; products take a workspace on a GPU, which stays."""
        workspace = 0 if host or not played.multiplies else cublas_workspace_bytes(capability_of(self.plan.gpu))
        return {
            "loading": standing_bytes(start.base, host) + (0 if host else loading_extra(start.base)),
            "unpacking": unpacking_bytes(start.base) if name == "unpack" else None,
            "loaded": played.loaded_bytes,
            "adapter_loading": played.loaded_bytes + end.adapter_bytes,
            "merging": played.peak_bytes + workspace,
        }

    def _files(self, name: answers.WayName, end: Adapted) -> list[list[Entry]]:
        entries = packed_entries(end.base) if name == "packed" else merged_entries(end.base)
        return shards(entries, self.merging.max_shard_size)

    def _fits(self, device_bytes: int | None) -> bool | None:
        if self.plan.gpu is None or device_bytes is None:
            return None
        around = outside(capability_of(self.plan.gpu)).middle_bytes
        return device_bytes + around <= self.plan.gpu.usable_bytes


def _unpacking(base: ModelSpec) -> Iterator[Launch]:
    """What unpacking moves: each packed weight is read twice, and its dense form written twice."""
    for _, p, count in base.parameters():
        if p.quant is not None:
            yield Launch(p.dtype.short, 0, 2 * (p.num_bytes() + p.numel * p.dtype.itemsize), count)


def _data(entries: Sequence[Entry]) -> int:
    return sum(entry.num_bytes for entry in entries)


def checkpoint(base: ModelSpec) -> tuple[int, int]:
    """Bytes of a base on disk, 16 bits a weight or as it is packed there, and of its largest tensor."""
    sizes = [
        (2 * p.numel if p.quant is None else p.quant.checkpoint_bytes(p.shape), count)
        for _, p, count in base.parameters()
        if p.role == "weight"
    ]
    return sum(size * count for size, count in sizes), max((size for size, _ in sizes), default=0)


def loading_extra(base: ModelSpec) -> int:
    """What a GPU holds beside the kept tensors while one is packed, or cast up, as it comes."""
    most = 0
    for _, parameter, _ in base.parameters():
        if parameter.role != "weight":
            continue
        if parameter.quant is not None:
            most = max(most, parameter.quant.loading_bytes(parameter.shape, parameter.dtype.itemsize))
        elif parameter.dtype.itemsize > 2:
            most = max(most, 2 * parameter.numel)
    return most
