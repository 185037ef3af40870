"""The answer of `merge`. Bytes are integers: on the GPU as its allocator counts them, on the host as requested."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from peftplan.report import ModelFacts

DeviceKind = Literal["gpu", "cpu"]
WayName = Literal["merge", "reload", "unpack", "packed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Moments(_Frozen):
    """Bytes on the device that merges: the most while the base is loaded, and while it is unpacked where it was.

    Base and adapter loaded; the same with the adapter's file beside them; the most while layers are merged.
    """

    loading: int
    unpacking: int | None
    loaded: int
    adapter_loading: int
    merging: int


class MergeTime(_Frozen):
    """Seconds of a merge, one thing after another; `terms` sum to them. Rates are assumptions: see `rates`."""

    s: float
    terms: dict[str, float]


class MergeWay(_Frozen):
    """One way to merge, on one device; where it is refused all its figures are null.

    `merge`: into a base that is loaded dense, as it was in training; `reload`: into the original 16-bit base of a
    run on a packed one; `unpack`: the packed base is unpacked as a whole, then merged; `packed`: every layer is
    unpacked, merged and packed again. `device_bytes` are those of the GPU, null on the CPU; `host_bytes` of the
    process beside Python and its libraries. `fits`: the GPU that was named holds it.
    """

    way: WayName
    device: DeviceKind
    title: str
    result: str
    refused: str | None = None
    device_bytes: int | None = None
    host_bytes: int | None = None
    moments: Moments | None = None
    peak_moment: str | None = None
    peak_layer: str | None = None
    base_read_bytes: int | None = None
    adapter_read_bytes: int | None = None
    written_bytes: int | None = None
    num_files: int | None = None
    num_flop: int | None = None
    moved_bytes: int | None = None
    fits: bool | None = None
    time: MergeTime | None = None


class Rates(_Frozen):
    """Bytes and flop a second that the times rest on, and where each comes from."""

    disk_bytes_per_s: float
    link_bytes_per_s: float
    device_bytes_per_s: float
    host_bytes_per_s: float
    host_flop_per_s: float
    basis: dict[str, str]


class Stored(_Frozen):
    """One kind of file: for one task, and for as many as were asked about. `shared`: one serves all tasks."""

    name: str
    what: str
    bytes: int
    tasks_bytes: int
    shared: bool = False


class OnDisk(_Frozen):
    """What a run leaves on disk.

    `kept_bytes`: an adapter for each task beside one base; `copies_bytes`: a merged model for each.
    """

    tasks: int
    files: tuple[Stored, ...]
    kept_bytes: int
    copies_bytes: int | None


class MergeReport(_Frozen):
    """Ways to merge a request's adapter, the one that is advised, and what lies on disk.

    `recommended` is the place of a way in `ways`, null where none can be taken; `why` says the reason.
    """

    schema_version: int
    request: dict[str, Any]
    merging: dict[str, Any]
    model: ModelFacts
    method: str
    how: str
    adapter_params: int
    ways: tuple[MergeWay, ...]
    recommended: int | None
    why: str
    rates: Rates
    disk: OnDisk
    versions: dict[str, str]
    notes: tuple[str, ...]
