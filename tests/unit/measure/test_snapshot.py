"""A recording as a file that PyTorch's visualiser opens."""

from __future__ import annotations

import pickle
import pickletools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftplan.errors import BadInput
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import replay
from peftplan.measure.trace.snapshot import snapshot, write_snapshot
from peftplan.units import MIB

# What the unpickler in the visualiser's page understands.
OPCODES = """APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE DICT EMPTY_DICT
EMPTY_LIST EMPTY_TUPLE FRAME LIST LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO
SETITEM SETITEMS SHORT_BINUNICODE STOP TUPLE TUPLE1 TUPLE2 TUPLE3"""
BOTH = pytest.mark.parametrize("expandable", [False, True])


def live_bytes(trace: list[dict[str, Any]]) -> tuple[list[int], dict[int, int]]:
    """The level after each request or free of a trace, and what is alive at its end by address."""
    alive: dict[int, int] = {}
    levels = [0]
    for entry in trace:
        if entry["action"] == "alloc":
            assert entry["addr"] not in alive
            alive[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert alive.pop(entry["addr"]) == entry["size"]
        else:
            continue
        levels.append(sum(alive.values()))
    return levels, alive


@BOTH
def test_the_trace_holds_the_recordings_bytes(steps: Recording, expandable: bool) -> None:
    """Requested bytes alive after each event are the recording's; the peak and the end agree."""
    taken = snapshot(steps, expandable)
    levels, alive = live_bytes(taken["device_traces"][0])
    expected = [sum(steps.sizes[number] for number in steps.alive(n)) for n in range(len(steps.events) + 1)]
    assert levels == expected
    assert max(levels) == replay(steps).requested.num_bytes
    blocks = [block for segment in taken["segments"] for block in segment["blocks"]]
    held = {block["address"]: block["requested_size"] for block in blocks if block["state"] != "inactive"}
    assert held == alive


@BOTH
def test_segments_are_what_is_reserved(steps: Recording, expandable: bool) -> None:
    """Blocks lie without a gap in segments, whose sizes add up to what the allocator reserves."""
    taken = snapshot(steps, expandable)
    for segment in taken["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address
            address += block["size"]
        assert address - segment["address"] == segment["total_size"]
        used = [block for block in segment["blocks"] if block["state"] == "active_allocated"]
        assert segment["allocated_size"] == sum(block["size"] for block in used)
        assert segment["is_expandable"] is expandable
    figures = replay(steps)
    fill = figures.expandable if expandable else figures.segments
    assert sum(segment["total_size"] for segment in taken["segments"]) == fill.reserved.num_bytes
    taken_bytes = [e["size"] for e in taken["device_traces"][0] if e["action"] in ("segment_alloc", "segment_map")]
    assert sum(taken_bytes) == fill.reserved.num_bytes


def test_frames_say_what_a_storage_is(steps: Recording) -> None:
    """Category and operation, shape, module and phase stand where a stack would."""
    trace = snapshot(steps)["device_traces"][0]
    entry = next(e for e in trace if e["action"] == "alloc" and e["category"] == "optimizer state")
    shown = [(frame["filename"], frame["name"]) for frame in entry["frames"]]
    assert shown == [
        ("optimizer state", "zeros_like"),
        ("tensor", "[] bfloat16"),
        ("module", "model.layers.0.mlp"),
        ("phase", "step 1, optimizer step"),
    ]
    assert entry["user_metadata"] == "step 1, optimizer step"


def test_a_category_is_called_unknown(steps: Recording) -> None:
    """The visualiser's page breaks on categories without `unknown`: the segments' entries carry it."""
    trace = snapshot(steps)["device_traces"][0]
    assert "unknown" in {entry.get("category") for entry in trace}


def test_the_page_can_read_the_pickle(steps: Recording, tmp_path: Path) -> None:
    """Protocol 4, and no opcode but those that the visualiser's own unpickler knows."""
    file = tmp_path / "run.pickle"
    write_snapshot(steps, file)
    content = file.read_bytes()
    assert content[:2] == b"\x80\x04"
    assert {opcode.name for opcode, _, _ in pickletools.genops(content)} <= set(OPCODES.split())


@BOTH
def test_torchs_visualiser_opens_it(steps: Recording, tmp_path: Path, expandable: bool) -> None:
    """Torch's own stats, trace, plots, flame graphs and comparison take the file."""
    viz = pytest.importorskip("torch.cuda._memory_viz")
    file = tmp_path / "run.pickle"
    write_snapshot(steps, file, expandable)
    data = pickle.loads(file.read_bytes())  # noqa: S301 written a line above
    figures = replay(steps)
    fill = figures.expandable if expandable else figures.segments
    assert f"total_reserved: {viz.Bytes(fill.reserved.num_bytes)!r}" in viz.segsum(data)
    assert viz.trace(data).count(" = ") >= len(steps.sizes)
    for page in (viz.trace_plot(data), viz.trace_plot(data, plot_segments=True), viz.segment_plot(data)):
        assert "snapshot.pickle" in page
    lines = viz.memory(data, format_flamegraph=str).splitlines()
    assert any("parameter:0:weight" in line and "model.layers.2.mlp" in line for line in lines)
    assert viz.segments(data, format_flamegraph=str)
    assert viz.compare(data["segments"], data["segments"], format_flamegraph=str) == ""
    _, alive = live_bytes(viz.filter_alloc_free_pairs(data)["device_traces"][0])
    assert sum(alive.values()) == sum(steps.sizes[number] for number in steps.alive(len(steps.events)))


def test_the_command_of_torch_opens_it(steps: Recording, tmp_path: Path) -> None:
    """`python _memory_viz.py stats FILE` prints the segments."""
    viz = pytest.importorskip("torch.cuda._memory_viz")
    file = tmp_path / "run.pickle"
    write_snapshot(steps, file)
    words = [sys.executable, viz.__file__, "stats", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"segments: {len(snapshot(steps)['segments'])}" in done.stdout


def _missing(folder: Path) -> Path:
    return folder / "nowhere" / "run.pickle"


def _below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("kept")
    return folder / "file" / "run.pickle"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (_missing, "which is no folder; create it"),
        (_below_a_file, "which is no folder; create it"),
        (lambda folder: folder, "is a folder; name a file in it"),
        (lambda _: Path("/dev/null"), "is no ordinary file"),
        (lambda folder: folder / ("x" * 300), "cannot be written"),
        (lambda folder: folder / "a\0b", "cannot be written"),
    ],
)
def test_a_place_that_takes_no_file_is_refused(
    steps: Recording, tmp_path: Path, place: Callable[[Path], Path], said: str
) -> None:
    """One line names the option, the path and what to do; nothing is written."""
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="--snapshot") as caught:
        write_snapshot(steps, path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_replaced_whole(steps: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file stays as it was until the new one is complete, and nothing is left beside it."""
    file = tmp_path / "run.pickle"
    file.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        write_snapshot(steps, file)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pickle"]
    assert file.read_bytes() == b"old"
    monkeypatch.undo()
    write_snapshot(steps, file)
    assert pickle.loads(file.read_bytes())["segments"]  # noqa: S301 written a line above
    assert [path.name for path in tmp_path.iterdir()] == ["run.pickle"]


def test_a_link_stays_a_link(steps: Recording, tmp_path: Path) -> None:
    """The file behind a link is written, the link is kept."""
    (tmp_path / "link").symlink_to(tmp_path / "run.pickle")
    write_snapshot(steps, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "run.pickle").is_file()


def test_a_segment_is_taken_before_its_first_block(author: Any) -> None:
    """A new segment stands before the request that it serves; a run without a limit gives none back."""
    author.end(author.make(40 * MIB))
    author.make(60 * MIB)
    actions = [entry["action"] for entry in snapshot(author.recording)["device_traces"][0]]
    assert actions == ["segment_alloc", "alloc", "free_requested", "free_completed", "segment_alloc", "alloc"]
